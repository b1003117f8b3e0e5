"""What a submitter may not ask of an agent's machine."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.policy.secure_mode import secured
from prefect_launch.policy.submitter_options import check_submitter_args, locked_options, merge_resource_args
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.spec.option_names import normalise_option, read_env

ALLOWED = frozenset({"e", "env", "m", "memory", "cpus", "shm-size", "command"})


def check(options: dict[Any, Any], **rules: Any) -> dict[str, Any]:
    return check_submitter_args(options, resource="local-container", allowed=ALLOWED, **rules)


@pytest.mark.parametrize("name", ["shm-size", "--shm-size", "shm_size", "SHM_SIZE", "-Shm-Size-"])
def test_option_is_known_under_every_spelling(name: str) -> None:
    assert check({name: "1g"}) == {"shm-size": "1g"}


def test_short_name_is_the_long_one() -> None:
    assert check({"m": "1g", "e": ["A=1"]}) == {"memory": "1g", "env": {"A": "1"}}
    assert normalise_option("-v") == normalise_option("--volume") == "volume"


@pytest.mark.parametrize(
    "name", ["volume", "v", "-v", "network", "net", "privileged", "rm", "Privileged", "ｍemory", "memory ", "env\n"]
)
def test_option_that_is_not_on_the_list_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UnsafeSpecError) as caught:
        check({"cpus": 1, name: "x"})
    text = str(caught.value)
    assert text.startswith("Unsupported resource_args.local-container option ")
    assert "Supported options are: command, cpus, e, env, m, memory, shm-size." in text
    assert "submitter_options" in text


def test_queues_owner_can_widen_the_list() -> None:
    assert check({"v": ["/data:/data"]}, extra_allowed=["volume"]) == {"volume": ["/data:/data"]}
    assert check({"--Volume": "x"}, extra_allowed=["-v"]) == {"volume": "x"}
    with pytest.raises(UnsafeSpecError):
        check({"privileged": True}, extra_allowed=["volume"])


@pytest.mark.parametrize("name", ["", "--", None, 7])
def test_option_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(SpecError, match="Invalid option name"):
        check({name: 1})


def test_option_given_twice_under_two_names_is_refused() -> None:
    with pytest.raises(SpecError, match="'memory' is given twice, as 'm' and '--memory'"):
        check({"m": "1g", "--memory": "2g"})


def test_options_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(SpecError, match="must be a mapping"):
        check(["memory=1g"])  # type: ignore[arg-type]


def test_option_that_the_queue_sets_from_a_variable_is_refused_with_the_variable() -> None:
    locked = locked_options({"m": "{{ memory_gb }}g", "cpus": 2, "e": ["DATA={{dataset}}", "HOME=/x"]})
    assert locked == {"memory": "memory_gb", "env.DATA": "dataset"}

    for options in ({"memory": "9g"}, {"m": "9g"}, {"--Memory": "9g"}):
        with pytest.raises(UnsafeSpecError, match=r"template_variables=\{'memory_gb': …\}"):
            check(options, locked=locked)
    with pytest.raises(UnsafeSpecError, match="dataset"):
        check({"env": {"DATA": "/etc"}}, locked=locked)
    assert check({"env": {"HOME": "/y"}, "cpus": 9}, locked=locked) == {"env": {"HOME": "/y"}, "cpus": 9}


def test_whole_env_can_be_locked() -> None:
    with pytest.raises(UnsafeSpecError, match="'env'"):
        check({"e": "A=1"}, locked={"env": "variables"})


def test_submitters_options_win_and_env_is_merged_by_name() -> None:
    queue = {"m": "1g", "gpus": "all", "volume": ["/a:/a"], "e": ["A=1", "B=x=y"]}
    submitter = {"--memory": "2g", "env": {"B": 2, "C": "three words"}}

    assert merge_resource_args(queue, submitter) == {
        "memory": "2g",
        "gpus": "all",
        "volume": ["/a:/a"],
        "env": {"A": "1", "B": "2", "C": "three words"},
    }
    assert queue["e"] == ["A=1", "B=x=y"]
    assert submitter == {"--memory": "2g", "env": {"B": 2, "C": "three words"}}


def test_merging_with_nothing_normalises() -> None:
    assert merge_resource_args({"e": "A=1"}, {}) == {"env": {"A": "1"}}
    assert merge_resource_args({}, {"W": "/x"}) == {"workdir": "/x"}
    assert merge_resource_args({}, {}) == {}


@pytest.mark.parametrize(
    ("value", "env"),
    [
        (None, {}),
        ({}, {}),
        ("A=1", {"A": "1"}),
        (["A=", "B=='"], {"A": "", "B": "='"}),
        ({"A": 1.5, "B": "é\n"}, {"A": "1.5", "B": "é\n"}),
    ],
)
def test_env_is_read_in_every_form(value: Any, env: dict[str, str]) -> None:
    assert read_env(value) == env


@pytest.mark.parametrize(
    "value",
    [
        "PATH",
        ["PATH"],
        ["=x"],
        [1],
        [["A", "B"]],
        {"": "x"},
        {"A=B": "x"},
        {"A": None},
        {"A": True},
        {"A": []},
        {1: "x"},
        7,
        {"A": "\0"},
        ["A\0=1"],
    ],
)
def test_env_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SpecError):
        read_env(value)


def test_env_name_alone_would_copy_from_the_agent_and_is_refused() -> None:
    with pytest.raises(SpecError, match="agent's machine"):
        check({"env": ["AWS_SECRET_ACCESS_KEY"]})


def spec(**fields: Any) -> Any:
    return parse_spec({"job": "e/p/j", **fields})


#: A value of each field of a launch spec that is not its default, by the field's dotted path; what a new field needs
#: here, and in `FREE` if a submitter may set it on an agent in secure mode.
SET: dict[str, Any] = {
    "job": "e/p/other",
    "docker.docker_image": "evil:1",
    "docker.user_id": 0,
    "docker.pin": True,
    "docker.digest": "sha256:" + "a" * 64,
    "docker.resolved": True,
    "image_uri": "evil:1",
    "uri": "https://evil.example/x.git",
    "git.repo": "https://x.example/y.git",
    "git.version": "main",
    "entity": "acme",
    "project": "digits",
    "name": "mine",
    "run_id": "r1",
    "author": "ann",
    "sweep_id": "s1",
    "resource": "local-process",
    "resource_args": {"local-process": {"env": {"LD_PRELOAD": "/tmp/x.so"}}},
    "template_variables": {"gpu": "0"},
    "overrides.args": ["--evil"],
    "overrides.run_config": {"lr": 1},
    "overrides.artifacts": {"a": "b"},
    "overrides.files": {"conf.json": {"a": 1}},
    "overrides.entry_point": ["sh", "-c", "true"],
    "overrides.dockerfile": "Dockerfile.evil",
    "overrides.working_dir": "../..",
    "python_version": "3.11",
    "timeout": 3600,
    "registry.uri": "r.example/x",
    "builder": {"accelerator": {"base_image": "mine:1"}},
    "priority": 1,
    "retries": {"max": 3},
}
PASSES = {
    *("job", "overrides.run_config", "template_variables", "priority", "name", "entity", "project", "run_id"),
    *("author", "sweep_id", "resource", "git.repo", "git.version", "docker.digest", "docker.resolved"),
}


def fields_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted paths of all fields of a model, those of its parts one by one."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        part = field.annotation
        is_part = isinstance(part, type) and issubclass(part, BaseModel)
        found += fields_of(part, f"{prefix}{name}.") if is_part and isinstance(part, type) else [f"{prefix}{name}"]
    return found


def spec_with(*paths: str) -> LaunchSpec:
    """A spec of a job with these fields set."""
    data: dict[str, Any] = {"job": "e/p/j"}
    for path in paths:
        part, _, leaf = path.rpartition(".")
        (data.setdefault(part, {}) if part else data)[leaf] = SET[path]
    return parse_spec(data)


def test_each_field_of_a_spec_is_known_to_the_test_of_secure_mode() -> None:
    assert set(fields_of(LaunchSpec)) == set(SET)
    assert set(SET) >= PASSES


@pytest.mark.parametrize("path", sorted(set(SET) - PASSES))
def test_secure_agent_refuses_all_that_is_not_listed(path: str) -> None:
    with pytest.raises(UnsafeSpecError) as caught:
        secured(spec_with(path))
    assert str(caught.value).startswith("This agent is configured to lock ")
    assert "but the job specification attempts to override it." in str(caught.value)
    word = {"overrides.entry_point": "entrypoint", "image_uri": "image", "docker.docker_image": "image"}.get(path)
    assert f'"{word or path.removeprefix("overrides.")}"' in str(caught.value) or path == "resource_args"


def test_secure_agent_takes_a_job_its_inputs_and_names() -> None:
    assert secured(spec_with(*PASSES)).overrides.run_config == {"lr": 1}
    assert secured(parse_spec({"job": "e/p/j", "resource_args": {"local-process": {}}}))


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "PATH", "HARMLESS"])
def test_secure_agent_locks_the_whole_environment(name: str) -> None:
    with pytest.raises(UnsafeSpecError, match=r'lock "env" in resource_args\.local-container but'):
        secured(parse_spec({"job": "e/p/j", "resource_args": {"local-container": {"e": [f"{name}=x"]}}}))


def test_secure_agent_believes_a_digest_only_where_the_queue_pins() -> None:
    by_submitter = spec_with("docker.digest", "docker.resolved")
    assert secured(by_submitter).docker.digest is None
    pinned = spec_with("docker.digest", "docker.pin")
    assert secured(pinned, pins=True).docker.digest == SET["docker.digest"]
    with pytest.raises(UnsafeSpecError, match=r'lock "docker.pin"'):
        secured(pinned, pins=False)
