"""`item rerun` and `QueuedRun.rerun`: a new item of the same job version, image and variables, with changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefect_launch import create_job, launch_add
from prefect_launch.cli.main import app
from prefect_launch.core.names import short_id
from prefect_launch.core.states import StateType
from prefect_launch.errors import InputError, NotFoundError, SpecError
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs, items

OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
Command = Callable[..., Result]


@pytest.fixture
def command(job_api: InMemoryApi) -> Command:
    return lambda *arguments: CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def make_next_version(api: InMemoryApi, folder: Path) -> None:
    (folder / "code" / "main.py").write_text("print('changed')\n")
    assert create_job(str(folder / "code"), "code", name="train", entrypoint="python main.py", api=api).version == 1


def test_rerun_has_the_version_that_its_alias_meant_then_and_the_same_inputs(
    job_api: InMemoryApi, tmp_path: Path
) -> None:
    first = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), priority="high", author="ann", run_id="r1")
    make_next_version(job_api, tmp_path)

    again = first.rerun()

    was, now = first.item, again.item
    assert now.parameters == {**was.parameters, "run_id": again.run_id}
    assert now.parameters["job"] == "acme/digits/train:v0"
    assert (now.id != was.id, again.run_id != "r1", now.work_queue_name) == (True, True, "high")
    assert now.labels["prefect-launch.rerun-of"] == first.id
    assert was.state_type is now.state_type is StateType.SCHEDULED


def test_rerun_has_the_digest_that_its_image_had_and_not_the_one_of_its_tag_by_now(job_api: InMemoryApi) -> None:
    image = "r.example/team/train:1"
    job_api.registry.digests[image] = OLD
    first = launch_add(docker_image=image, queue_name="gpu", template_variables={"gpus": 4})
    job_api.registry.digests[image] = NEW

    again = first.rerun().item

    assert again.parameters["docker"] == {"docker_image": image, "digest": OLD}
    assert again.job_variables == {"gpus": 4}


def test_rerun_takes_changes_over_its_own_and_arguments_in_their_place(job_api: InMemoryApi) -> None:
    config = {"overrides": {"run_config": {"model": {"layers": 2, "width": 8}, "lr": 1}, "args": ["--old"]}}
    first = launch_add(job="box", queue_name="gpu", config=config, name="box", template_variables={"gpus": 4})
    job_api.create_run_queue("other", "local-container", template_variables={"gpus": {"type": "integer"}})

    again = first.rerun(
        {"model": {"width": 16}},
        args=["--new"],
        template_variables={"gpus": 2},
        queue_name="other",
        priority=4,
        name="n",
    )

    overrides = again.item.parameters["overrides"]
    assert overrides == {"run_config": {"model": {"layers": 2, "width": 16}, "lr": 1}, "args": ["--new"]}
    assert (again.queue_name, again.priority, again.name, again.item.job_variables) == ("other", 4, "n", {"gpus": 2})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inputs": {"lr": 5}}, InputError, "lr"),
        ({"queue_name": "gpux"}, NotFoundError, "gpu"),
        ({"queue_name": "small"}, NotFoundError, "template variable 'speed'"),
        ({"priority": "soon"}, SpecError, "priority"),
    ],
)
def test_rerun_that_adding_it_would_refuse_is_refused_and_leaves_nothing(
    job_api: InMemoryApi, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    variables = {"speed": {"type": "integer", "default": 1}}
    job_api.create_run_queue("fast", "local-process", config={"env": ["S={{speed}}"]}, template_variables=variables)
    job_api.create_run_queue("small", "local-process")
    first = launch_add(job="train", queue_name="fast", config=inputs(lr=0.1), template_variables={"speed": 3})

    with pytest.raises(error, match=words):
        first.rerun(**change)

    assert len(items(job_api)) == 1


def test_rerun_of_a_sweep_and_of_a_run_on_no_queue_is_refused(
    job_api: InMemoryApi, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text("method: grid\nparameters: {lr: {values: [0.1, 0.2]}}\nrun_cap: 2\n")
    assert command("sweep", "create", str(tmp_path / "sweep.yaml"), "-j", "train", "-q", "cpu").exit_code == 0
    (sweep,) = job_api.items()
    with pytest.raises(SpecError, match="is a sweep"):
        sweep.rerun()
    gone = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1))
    job_api.server.detach(gone.item.id)
    with pytest.raises(SpecError, match="on no queue"):
        gone.rerun()
    assert gone.rerun(queue_name="cpu").queue_name == "cpu"


def test_rerun_of_a_trial_is_no_trial(job_api: InMemoryApi) -> None:
    trial = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), sweep_id="s1")

    again = trial.rerun()

    assert (again.sweep, [tag for tag in again.item.tags if tag.startswith("sweep")]) == (None, [])


def test_command_reads_inputs_by_the_job_s_schema_and_shows_what_it_is_a_rerun_of(
    job_api: InMemoryApi, command: Command
) -> None:
    first = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), name="first")

    told = command("item", "rerun", "first", "--set", "lr=0.5", "--name", "second", "-P", "low")

    assert told.output.startswith(f"Added second to the queue cpu: a rerun of first ({short_id(first.id)}).\nid:   "), (
        told.exception
    )
    shown = command("item", "show", "second").output
    assert f"rerun of  {short_id(first.id)}\n" in shown
    fields = json.loads(command("item", "show", "second", "--json").output)
    assert (fields["rerun_of"], fields["inputs"]["lr"], fields["priority"]) == (first.id, 0.5, 4)
    third = json.loads(command("item", "rerun", "second", "--json", "--", "--data", "big").output)
    assert third["rerun_of"] == fields["id"]
    assert job_api.queued_run(third["id"]).item.parameters["overrides"]["args"] == ["--data", "big"]
    assert "unexpected extra argument (big)" in str(command("item", "rerun", "second", "big").output)
