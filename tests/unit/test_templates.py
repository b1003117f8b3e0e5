"""Queue configurations as templates: template variables and macros."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prefect_launch.errors import AgentConfigError, NotFoundError, QueueError, SpecError
from prefect_launch.policy.template import (
    BUILT_IN,
    QueueConfig,
    check_placeholders,
    check_variables,
    fill_macros,
    macro_values,
    placeholders,
    read_template_variables,
)

GPUS = {"type": "integer", "minimum": 1, "maximum": 8}
SITE = {"type": "string", "enum": ["north", "south"], "default": "north"}


def config(args: dict[str, Any], **variables: dict[str, Any]) -> QueueConfig:
    return QueueConfig(resource="local-container", resource_args=args, template_variables=variables)


def test_config_comes_back_from_its_template() -> None:
    made = QueueConfig(
        resource="local-container",
        resource_args={"gpus": "{{ gpus }}", "memory": "4g"},
        template_variables={"gpus": GPUS, "site": SITE},
        submitter_options=("shm-size",),
        entity="acme",
        prioritization_mode="DISABLED",
        fail_impossible_after=3600,
        per_author=4,
        per_author_waiting=20,
        preempt=True,
    )
    assert QueueConfig.from_template("q", made.to_template()) == made


def test_template_refuses_unknown_variables_and_asks_for_those_without_a_default() -> None:
    variables = config({}, gpus=GPUS, site=SITE).to_template()["variables"]
    assert variables["additionalProperties"] is False
    assert variables["required"] == ["gpus"]


@pytest.mark.parametrize(
    "template",
    [
        {},
        {"job_configuration": {}},
        {"job_configuration": {"command": "x"}, "variables": {}},
        {"job_configuration": None},
        {"job_configuration": {"resource": "local-process"}, "variables": ["gpus"]},
        {"job_configuration": {"resource": 3, "resource_args": {"local-process": "x"}}},
    ],
)
def test_template_that_is_not_ours_is_refused_with_the_repair(template: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match="has no launch configuration"):
        QueueConfig.from_template("q", template)


# --- filling in ---


def test_whole_placeholder_keeps_the_type_and_one_in_text_becomes_text() -> None:
    options = {"gpus": "{{gpus}}", "name": "on-{{ site }}-{{gpus}}", "list": ["{{ gpus }}", "x"]}
    made = config(options, gpus=GPUS, site=SITE)
    assert made.fill({"gpus": 2}) == {"gpus": 2, "name": "on-north-2", "list": [2, "x"]}


def test_option_of_a_variable_without_a_value_is_left_out() -> None:
    assert config({"gpus": "{{ gpus }}", "e": {"A": "{{ gpus }}", "B": "b"}}, gpus=GPUS).fill({}) == {"e": {"B": "b"}}


def test_prefects_own_placeholders_stay() -> None:
    own = {"env": {"TOKEN": "{{ prefect.blocks.secret.tok }}"}}
    assert config(own).fill({}) == own
    assert placeholders(own) == []


def test_value_that_looks_like_a_placeholder_is_not_filled_again() -> None:
    made = config({"a": "{{ a }}"}, a={"type": "string"}, b={"type": "string", "default": "secret"})
    assert made.fill({"a": "{{ b }}"}) == {"a": "{{ b }}"}


@pytest.mark.parametrize("text", ["${image_ur}", " ${image_url}", "${imageuri}"])
def test_misspelt_macro_is_refused_with_the_one_that_is_meant(text: str) -> None:
    spec = [{"container_spec": {"image_uri": text}}]
    with pytest.raises(QueueError, match=rf"'{re.escape(text)}'.*Did you mean \$\{{image_uri\}}\?.*rename it there"):
        check_placeholders(config({"worker-pool-specs": spec}))


@pytest.mark.parametrize("text", ["${image_uri}", "${registry}", "${job_name}", 'echo "${item_ids}"', "$${run_ids}"])
def test_macro_that_an_agent_or_a_program_may_know_is_none_that_is_misspelt(text: str) -> None:
    check_placeholders(config({"env": {"A": text}}))


def test_placeholder_that_is_not_declared_is_refused() -> None:
    with pytest.raises(QueueError, match=r"'gpu'.*Did you mean 'gpus'.*Declare it"):
        check_placeholders(config({"gpus": "{{ gpu }}"}, gpus=GPUS))


# --- reading variables ---


@pytest.mark.parametrize(
    "given",
    [
        {"gpus": {"schema": GPUS}},
        {"gpus": GPUS},
        [{"name": "gpus", "schema": GPUS}],
        [{"name": "gpus", "schema": '{"type": "integer", "minimum": 1, "maximum": 8}'}],
    ],
)
def test_variables_are_read_in_the_references_forms(given: Any) -> None:
    assert read_template_variables(given) == {"gpus": GPUS}


@pytest.mark.parametrize("given", [None, {}, []])
def test_no_variables_are_none(given: Any) -> None:
    assert read_template_variables(given) == {}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object"}, "use one of string, integer, number, boolean"),
        ({"type": "integer", "minimun": 1}, "Did you mean 'minimum'"),
        ({"type": "integer", "default": "x"}, "breaks its own rule"),
        ({"type": "integer", "maximum": 4, "default": 9}, "breaks its own rule"),
        ({"type": "integer", "enum": [1, "two"]}, "breaks its own rule"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum 5 is above maximum 1"),
        ({"type": "integer", "minimum": "a"}, "no good schema"),
        ({"enum": "abc"}, "no good schema"),
        ("{not json", "is no JSON"),
        (["a"], "must be a mapping"),
        (3, "must be a mapping"),
    ],
)
def test_variable_with_a_wrong_schema_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(QueueError, match=words):
        read_template_variables({"gpus": {"schema": schema}})


@pytest.mark.parametrize("name", ["", "1st", "a b", "a.b", "prefect.x", "$X"])
def test_variable_of_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(QueueError, match="Invalid template variable name"):
        read_template_variables({name: {"type": "string"}})


@pytest.mark.parametrize("given", ["text", [1], [{"schema": {}}], {"gpus": 3}])
def test_variables_of_another_form_are_refused(given: Any) -> None:
    with pytest.raises(QueueError):
        read_template_variables(given)


# --- checking values ---


@pytest.mark.parametrize("values", [{"gpus": 1}, {"gpus": 8, "site": "south"}])
def test_good_values_pass(values: dict[str, Any]) -> None:
    check_variables("q", config({}, gpus=GPUS, site=SITE), values)


@pytest.mark.parametrize("gpus", [0, 9, "2", 1.5, True, None])
def test_value_of_the_wrong_type_or_out_of_range_is_refused_with_the_rule(gpus: Any) -> None:
    values = {"gpus": gpus}
    with pytest.raises(SpecError, match=r"type integer, minimum 1, maximum 8"):
        check_variables("q", config({}, gpus=GPUS), values)


def test_value_outside_the_enum_is_refused() -> None:
    with pytest.raises(SpecError, match="north"):
        check_variables("q", config({}, site=SITE), {"site": "west"})


def test_unknown_variable_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'gpus'"):
        check_variables("q", config({}, gpus=GPUS), {"gpu": 1})


def test_missing_variable_is_refused_with_how_to_give_it() -> None:
    with pytest.raises(SpecError, match="-v gpus="):
        check_variables("q", config({}, gpus=GPUS), {})


def test_macros_are_filled_in_text_at_every_depth_and_not_in_keys() -> None:
    args = {
        "${run_id}": "x-${run_id}-${run_id}",
        "deep": [{"env": ["A=${author}"]}, ("${run_id}",)],
        "n": 3,
        "none": None,
    }

    assert fill_macros(args, {"run_id": "r1", "author": "me"}) == {
        "${run_id}": "x-r1-r1",
        "deep": [{"env": ["A=me"]}, ["r1"]],
        "n": 3,
        "none": None,
    }


def test_arguments_that_were_given_stay_as_they_are() -> None:
    args = {"a": ["${run_id}"]}
    fill_macros(args, {"run_id": "r1"})

    assert args == {"a": ["${run_id}"]}


@pytest.mark.parametrize("text", ["${nothing}", "$run_id", "${run-id}", "${ run_id }", "${}", "${run_id", "{{run_id}}"])
def test_unknown_macro_stays_as_it_is_written(text: str) -> None:
    assert fill_macros(text, {"run_id": "r1"}) == text


def test_macro_in_a_value_is_not_filled_again() -> None:
    assert fill_macros("${author}", {"author": "${run_id}", "run_id": "r1"}) == "${run_id}"


def test_agents_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("run_id", "forged")
    values = macro_values(run_id="r1", item_id="i1", attempt=1)

    assert fill_macros("${SECRET} ${run_id} ${HOME}", values) == "${SECRET} r1 ${HOME}"


def test_every_built_in_macro_has_its_value() -> None:
    values = macro_values(
        run_id="r1",
        item_id="i1",
        attempt=2,
        project_name="p",
        entity_name="e",
        run_name="n",
        image_uri="img:1",
        author="me",
        queue_name="q",
    )

    assert set(values) == set(BUILT_IN)
    assert all(values.values())
    assert fill_macros("${project_name}/${entity_name}/${attempt}/${queue_name}", values) == "p/e/2/q"


def test_macro_without_a_value_is_not_the_word_none() -> None:
    values = macro_values(run_id="r1", item_id="i1", attempt=1, run_name=None, author="")

    assert fill_macros("${run_name}${author}", values) == "${run_name}${author}"


def test_operators_own_macros_are_filled() -> None:
    values = macro_values(run_id="r1", item_id="i1", attempt=1, named={"data_dir": "/data"})

    assert fill_macros("${data_dir}/${run_id}", values) == "/data/r1"


@pytest.mark.parametrize(
    "named", [{"run_id": "x"}, {"author": "x"}, {"a b": "x"}, {"": "x"}, {"a": 1}, {"a": None}, {1: "x"}]
)
def test_operators_bad_macro_is_refused(named: dict[Any, Any]) -> None:
    with pytest.raises(AgentConfigError, match=r"[Mm]acro"):
        macro_values(run_id="r1", item_id="i1", attempt=1, named=named)
