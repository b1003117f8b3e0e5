"""Between an item and its spec: items of `launch_add`, and items of a job's form."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.errors import InvalidNameError, NotFoundError, SpecError
from prefect_launch.server.values import Item
from prefect_launch.spec.item_parameters import (
    FORM_LABEL,
    JOB_LABEL,
    is_scheduler,
    labels_of,
    run_id_of,
    spec_of,
    tags_of,
)
from prefect_launch.spec.launch_spec import construct_spec
from prefect_launch.spec.scheduling import Cause, Retries
from prefect_launch.testing import InMemoryApi

ID = UUID("12345678-0000-4000-8000-567890abcdef")
FORM = {FORM_LABEL: "job", JOB_LABEL: "acme/digits/train:v0"}


def item(parameters: dict[str, Any], *, form: bool = False, **fields: Any) -> Item:
    return Item(**{"id": ID, "name": "x", "parameters": parameters, "labels": FORM if form else {}, **fields})


def test_item_of_launch_add_carries_the_spec() -> None:
    spec = construct_spec({"job": "a", "overrides": {"args": ["--x"]}}, run_id="r1", entity="acme")
    assert spec_of(item(spec.dump())) == spec


def test_item_without_a_run_id_gets_one_of_its_own_id() -> None:
    assert spec_of(item({"job": "a"})).run_id == run_id_of(item({"job": "a"})) == "90abcdef"


def test_items_that_a_schedule_makes_at_once_have_run_ids_of_their_own() -> None:
    made = item({"job": "a"})
    beside = made.model_copy(update={"id": UUID("12345678-0000-4000-8000-567890abcdee")})

    assert run_id_of(made) != run_id_of(beside)


def test_template_variables_come_from_the_job_variables() -> None:
    assert spec_of(item({"job": "a"}, job_variables={"gpus": 2})).template_variables == {"gpus": 2}


def test_item_of_a_form_has_its_inputs_at_the_top_and_options_in_a_group() -> None:
    made = item({"lr": 0.1, "epochs": 3, "launch": {"name": "my run", "args": ["--fast"]}}, form=True)
    for _ in range(2):  # reading it does not change it
        spec = spec_of(made)
        assert (spec.job, spec.name) == ("acme/digits/train:v0", "my run")
        assert spec.overrides.run_config == {"lr": 0.1, "epochs": 3}
        assert spec.overrides.args == ("--fast",)


@pytest.mark.parametrize("group", [None, {}, {"args": None}])
def test_form_that_was_left_as_it_is_has_no_options(group: Any) -> None:
    assert spec_of(item({"lr": 0.1, "launch": group}, form=True)).overrides.args == ()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"max": 2, "on": ["failed"]}, Retries(max=2, on=(Cause.FAILED,))),
        ({"max": 0}, Retries(max=0)),
        ({"max": None, "on": [], "delay": ""}, None),
        ({}, None),
    ],
)
def test_retries_of_a_form_are_the_items_rule_unless_nothing_was_filled_in(given: object, rule: Retries | None) -> None:
    assert spec_of(item({"launch": {"retries": given}}, form=True)).retries == rule


def test_fields_of_a_form_that_were_emptied_again_are_not_given() -> None:
    made = item({"lr": 0.1, "launch": {"name": "", "author": "", "args": []}}, form=True)
    assert (spec_of(made).name, spec_of(made).author) == (None, None)


def test_inputs_of_a_form_are_never_taken_for_launch_options() -> None:
    named = {"run_id": "chosen", "entity": "e", "project": "p", "sweep_id": "s", "uri": "placeholder-x", "job": "j"}
    made = item(named, form=True, work_pool_name="gpu")
    spec = spec_of(made)
    assert (spec.job, spec.run_id, spec.entity) == ("acme/digits/train:v0", "90abcdef", None)
    assert spec.overrides.run_config == named
    run = QueuedRun(InMemoryApi(entity="acme", project="digits"), made)
    assert (run.run_id, run.entity, run.project, run.sweep) == ("90abcdef", "acme", "digits", None)


@pytest.mark.parametrize("flow", ["launch", "train", None])
def test_kind_of_an_item_is_its_flows_and_never_its_parameters(flow: str | None) -> None:
    for named in ({"uri": "placeholder-x"}, {"flow": "launch-sweep"}, {"kind": "scheduler", "sweep_id": "s"}):
        assert not is_scheduler(item(named, flow=flow, labels={"prefect-launch.kind": "scheduler"}, tags=["sweep:s"]))
    assert is_scheduler(item({"docker": {}}, flow="launch-sweep"))


@pytest.mark.parametrize("group", ["text", 3, ["a"]])
def test_group_of_options_that_is_no_group_is_refused(group: Any) -> None:
    with pytest.raises(SpecError, match="must be a group of launch options"):
        spec_of(item({"launch": group}, form=True))


def test_form_whose_deployment_lost_its_job_is_refused() -> None:
    with pytest.raises(SpecError, match="Deploy the job again"):
        spec_of(Item(id=ID, name="x", labels={FORM_LABEL: "job"}))


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({}, SpecError),
        ({"jobb": 1}, NotFoundError),
        ({"job": 3}, SpecError),
        ({"job": "a", "run_id": "../x"}, InvalidNameError),
        ({"job": "a", "overrides": "x"}, SpecError),
        ({"job": "a", "docker": {"docker_image": "b"}}, SpecError),
        ({"job": "a", "priority": "urgent"}, SpecError),
    ],
)
def test_parameters_that_are_no_spec_are_refused(parameters: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        spec_of(item(parameters))


def test_item_is_found_by_its_tags_and_labels() -> None:
    spec = construct_spec({"job": "a"}, entity="acme", project="digits", author="ann", sweep_id="s1", run_id="r1")
    assert tags_of(spec, queue="gpu", job="train", version=2) == (
        "queue:gpu",
        "job:train",
        "version:v2",
        "entity:acme",
        "project:digits",
        "author:ann",
        "sweep:s1",
    )
    assert labels_of(spec, job="acme/digits/train:v2") == {
        "prefect-launch.job": "acme/digits/train:v2",
        "prefect-launch.run-id": "r1",
        "prefect-launch.entity": "acme",
        "prefect-launch.project": "digits",
        "prefect-launch.author": "ann",
        "prefect-launch.sweep": "s1",
    }


def test_what_is_not_known_is_no_tag() -> None:
    assert tags_of(construct_spec({"job": "a"}), queue=None, job=None, version=None) == ()
