"""The launch spec: what is good, what is refused and with which words, and who wins."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from prefect_launch.core.validation import MAX_SPEC_BYTES
from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError, SpecError
from prefect_launch.spec.launch_spec import construct_spec, parse_spec
from prefect_launch.spec.scheduling import Priority

JOB = {"job": "acme/digits/train:latest"}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


# --- the source ---


@pytest.mark.parametrize(
    "given",
    [
        {"job": "a"},
        {"docker_image": "busybox"},
        {"uri": "https://x/y.git"},
        {"config": {"docker": {"docker_image": "b"}}},
    ],
)
def test_one_source_is_right(given: dict[str, Any]) -> None:
    construct_spec(**given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"job": "a", "docker_image": "b"},
        {"job": "a", "uri": "https://x/y.git"},
        {"docker_image": "b", "uri": "https://x/y.git"},
        {"config": {"job": "a"}, "docker_image": "b"},
        {"config": {"job": "a", "image_uri": "b"}},
        {"job": ""},
    ],
)
def test_no_source_or_two_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="Exactly one of job, docker_image or uri must be specified"):
        construct_spec(**given)


# --- who wins ---


def test_arguments_win_over_the_config_key_by_key() -> None:
    config = {
        "job": "of-config",
        "entity": "of-config",
        "resource": "local-process",
        "git": {"version": "main", "repo": "r"},
        "overrides": {"entry_point": ["a"], "args": ["--x"]},
        "template_variables": {"gpus": 1, "site": "north"},
    }
    spec = construct_spec(
        config,
        job="of-call",
        resource="local-container",
        version="v2",
        entry_point=["b"],
        template_variables={"gpus": 2},
    )
    assert (spec.job, spec.entity, spec.resource) == ("of-call", "of-config", "local-container")
    assert (spec.git.version, spec.git.repo) == ("v2", "r")
    assert (spec.overrides.entry_point, spec.overrides.args) == (("b",), ("--x",))
    assert spec.template_variables == {"gpus": 2, "site": "north"}


def test_config_is_never_changed_and_nothing_of_it_is_shared() -> None:
    config = {"job": "a", "overrides": {"run_config": {"lr": [1, 2]}}}
    before = copy.deepcopy(config)
    spec = construct_spec(config, entry_point=["x"], template_variables={"a": 1})
    spec.overrides.run_config["lr"].append(3)
    assert config == before


def test_argument_that_is_none_is_not_given() -> None:
    assert construct_spec({"job": "a", "entity": "e"}, entity=None).entity == "e"
    assert construct_spec({"job": "a", "priority": None}).priority is Priority.MEDIUM


# --- values ---


@pytest.mark.parametrize(
    ("given", "level"),
    [(1, 1), ("critical", 1), (2, 2), ("HIGH", 2), (3, 3), ("medium", 3), ("default", 3), (4, 4), ("low", 4), ("4", 4)],
)
def test_priority_takes_numbers_and_words(given: Any, level: int) -> None:
    assert construct_spec(JOB, priority=given).priority == level


@pytest.mark.parametrize("given", [0, 9, 5, -1, "urgent", "", True, 1.5, "1.0", [1]])
def test_priority_of_another_kind_is_refused(given: Any) -> None:
    with pytest.raises(SpecError, match="Invalid priority"):
        construct_spec(JOB, priority=given)


@pytest.mark.parametrize("given", ["--lr 0.1", {"lr": 1}, [1, 2], 3, ["a", None]])
def test_override_args_that_are_no_list_of_texts_are_refused(given: Any) -> None:
    with pytest.raises(SpecError, match="override args must be a list of strings"):
        construct_spec({**JOB, "overrides": {"args": given}})


@pytest.mark.parametrize("given", ["python train.py", [1]])
def test_entry_point_that_is_no_list_of_texts_is_refused(given: Any) -> None:
    with pytest.raises(SpecError, match="override entry_point must be a list of strings"):
        construct_spec(JOB, entry_point=given)


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf])
def test_number_that_json_does_not_have_is_refused_with_its_place(given: float) -> None:
    with pytest.raises(SpecError, match=r"overrides\.run_config\.loss\[1\] is"):
        construct_spec({**JOB, "overrides": {"run_config": {"loss": [0, given]}}})


@pytest.mark.parametrize(("given", "kind"), [({1, 2}, "set"), (object(), "object"), (b"x", "bytes")])
def test_value_that_is_no_json_is_refused_with_its_place(given: Any, kind: str) -> None:
    with pytest.raises(SpecError, match=rf"overrides\.run_config\.x is of the type '{kind}'"):
        construct_spec({**JOB, "overrides": {"run_config": {"x": given}}})


@pytest.mark.parametrize(("given", "words"), [("a\0b", "NUL"), ("\ud800", "half of a character")])
def test_text_that_no_server_keeps_is_refused_with_its_place(given: str, words: str) -> None:
    with pytest.raises(SpecError, match=rf"overrides\.run_config\.x holds .*{words}"):
        construct_spec({**JOB, "overrides": {"run_config": {"x": given}}})


def test_text_that_only_looks_like_a_nul_is_kept() -> None:
    spec = construct_spec({**JOB, "overrides": {"run_config": {"x": "\\u0000"}}})
    assert spec.overrides.run_config["x"] == "\\u0000"


def test_config_without_an_end_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(SpecError, match="refers to itself"):
        construct_spec({**JOB, "overrides": {"run_config": endless}})


def test_config_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(SpecError):
        construct_spec({**JOB, "overrides": {"run_config": nested(300)}})


def test_spec_that_is_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(SpecError, match=f"at most {MAX_SPEC_BYTES:,}"):
        construct_spec({**JOB, "overrides": {"run_config": {"x": "y" * MAX_SPEC_BYTES}}})


def test_key_that_prefect_would_rewrite_is_refused() -> None:
    with pytest.raises(SpecError, match="__prefect_kind"):
        construct_spec({**JOB, "overrides": {"run_config": {"__prefect_kind": "json"}}})


@pytest.mark.parametrize("given", ["text", 3, ["a"]])
def test_config_that_is_no_mapping_is_refused(given: Any) -> None:
    with pytest.raises(SpecError, match="must be a mapping"):
        construct_spec(given)


@pytest.mark.parametrize("part", ["overrides", "docker", "git", "template_variables", "resource_args"])
def test_part_that_is_no_mapping_is_refused(part: str) -> None:
    with pytest.raises(SpecError, match=part):
        construct_spec({**JOB, part: "text"})


# --- names ---


@pytest.mark.parametrize("field", ["entity", "project", "run_id", "sweep_id", "author"])
@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "a\nb", "x" * 300, "-x", "é"])
def test_bad_name_is_refused(field: str, name: str) -> None:
    with pytest.raises(InvalidNameError, match=field):
        construct_spec(JOB, **{field: name})


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201, "a\0b"])
def test_bad_display_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError):
        construct_spec(JOB, name=name)


@pytest.mark.parametrize("name", ["My run, nr 3", "é", "x" * 200])
def test_display_name_is_free(name: str) -> None:
    assert construct_spec(JOB, name=name).name == name


@pytest.mark.parametrize(
    ("config", "nearest"),
    [
        ({"jobb": "a"}, "job"),
        ({**JOB, "ressource": "x"}, "resource"),
        ({**JOB, "overrides": {"arg": []}}, "args"),
        ({**JOB, "docker": {"docker_img": "x"}}, "docker_image"),
        ({**JOB, "version": "v1.2"}, "git.version"),
        ({**JOB, "args": ["--fast"]}, "overrides.args"),
        ({**JOB, "git": {"versoin": "x"}}, "version"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest_one(config: dict[str, Any], nearest: str) -> None:
    with pytest.raises(NotFoundError, match=f"Did you mean '{nearest}'"):
        parse_spec(config)


def test_every_refusal_is_a_launch_error() -> None:
    for error in (SpecError, InvalidNameError, NotFoundError):
        assert issubclass(error, LaunchError)


def test_dump_holds_what_was_given_and_no_defaults() -> None:
    spec = construct_spec({**JOB, "overrides": {"run_config": {"lr": 0.1}}}, priority=1)
    assert spec.dump() == {**JOB, "overrides": {"run_config": {"lr": 0.1}}, "priority": 1}
    assert parse_spec(spec.dump()) == spec


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"overrides": {"dockerfile": "../Dockerfile"}}, "'../Dockerfile' must be a path inside the job's code"),
        ({"overrides": {"dockerfile": "/etc/passwd"}}, "must be a path inside the job's code"),
        ({"builder": {"accelerator": {"base_image": "cuda # x"}}}, r"accelerator.base_image: Invalid image 'cuda # x'"),
        ({"builder": {"cuda": {"base_image": 12}}}, "builder.cuda.base_image must be an image's name, not int 12"),
        ({"builder": {"accelerator": "cuda:12"}}, "builder.accelerator must be a mapping"),
        ({"builder": {"acelerator": {}}}, "accelerator"),
        ({"builder": {"accelerator": {"image": "cuda:12"}}}, "base_image"),
        ({"python_version": "3.11\nRUN id"}, "Invalid runtime"),
        ({"docker": {"user_id": -1}}, "docker.user_id"),
    ],
)
def test_request_for_an_image_that_could_never_be_built_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        construct_spec({"job": "train", **config})


def test_base_image_for_accelerators_goes_by_the_references_older_word_too() -> None:
    spec = construct_spec({"job": "train", "builder": {"cuda": {"base_image": "nvidia/cuda:12"}}})
    assert spec.builder == {"accelerator": {"base_image": "nvidia/cuda:12"}}


def test_option_that_stands_beside_the_resources_is_refused_with_its_right_place() -> None:
    for named, shown in (({}, "RESOURCE"), ({"resource": "slurm"}, "slurm")):
        with pytest.raises(SpecError, match=rf"'gpus' is 2.*below the name.*: \{{'{shown}': \{{'gpus': 2\}}\}}\."):
            parse_spec({"job": "digits", "resource_args": {"gpus": 2, "env": {"A": "1"}}, **named})
