"""An agent's configuration: defaults, then the file, then the environment, then the call."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.clouds.settings import AwsSettings, CloudSettings
from prefect_launch.errors import AgentConfigError, InvalidNameError, LaunchError
from prefect_launch.jobs.store import JobStore
from prefect_launch.settings.agent_config import AgentConfig, parse_agent_config, resolve_agent_config

ENVIRONMENT = (
    "LAUNCH_ENTITY",
    "WANDB_ENTITY",
    "LAUNCH_MAX_JOBS",
    "WANDB_LAUNCH_MAX_JOBS",
    "LAUNCH_AGENT_NAME",
    "WANDB_LAUNCH_START_TIMEOUT",
)

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "launch"))


def test_registries_are_read_by_their_address() -> None:
    config = parse_agent_config({"registries": {"https://Registry.example:5000/": {"credentials": "mine"}}})

    assert config.registries["registry.example:5000"].credentials == "mine"


def test_defaults_are_the_references() -> None:
    config = resolve_agent_config()
    assert (config.max_jobs, config.max_schedulers, config.queues) == (1, 1, ())
    assert (config.secure_mode, config.verbosity, config.stopped_run_timeout) == (False, 0, 60)


@pytest.mark.parametrize(
    ("given", "most"),
    [(8, 8), ("8", 8), (2.7, 2), (0, 0), (-1, math.inf), ("-1", math.inf), (math.inf, math.inf), (None, 1)],
)
@pytest.mark.parametrize("field", ["max_jobs", "max_schedulers"])
def test_maximum_takes_the_references_forms(field: str, given: Any, most: float) -> None:
    assert getattr(parse_agent_config({field: given}), field) == most


@pytest.mark.parametrize("given", [-2, "-7", "many", "", True, [1], {"a": 1}, "1e3", math.nan, -1.5, -0.5, -math.inf])
def test_maximum_of_another_form_is_refused_with_the_rule(given: Any) -> None:
    with pytest.raises(AgentConfigError, match=r"'max_jobs' must be a whole number, or -1 for no limit"):
        parse_agent_config({"max_jobs": given})


def test_single_queue_is_added_to_the_list() -> None:
    assert parse_agent_config({"queue": "b", "queues": ["a"]}).queues == ("a", "b")
    assert parse_agent_config({"queue": "a"}).queues == ("a",)


@pytest.mark.parametrize("given", [["a"], 3, {"a": 1}])
def test_single_queue_that_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(AgentConfigError, match="must be a queue's name"):
        parse_agent_config({"queue": given})


def test_queues_that_are_no_list_are_refused() -> None:
    with pytest.raises(AgentConfigError, match="must be a list of queue names"):
        parse_agent_config({"queues": "gpu"})


def test_queue_named_twice_is_one() -> None:
    assert parse_agent_config({"queues": ["a", "b", "a"]}).queues == ("a", "b")


@pytest.mark.parametrize("name", ["../x", "a b", "", "x" * 300])
def test_queue_or_agent_of_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        parse_agent_config({"queues": [name]})
    with pytest.raises(InvalidNameError):
        parse_agent_config({"name": name})


def test_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(AgentConfigError, match="Did you mean 'max_jobs'"):
        parse_agent_config({"max_job": 3})


def test_keys_of_the_references_file_are_taken() -> None:
    config = parse_agent_config(
        {
            "entity": "team",
            "queues": ["gpu"],
            "max_jobs": 4,
            "max_schedulers": 2,
            "secure_mode": True,
            "verbosity": 1,
            "stopped_run_timeout": 10,
            "registry": {"type": "ecr", "uri": f"https://{ECR}/team/train"},
            "environment": {"type": "aws", "region": "eu-west-1"},
            "builder": {"type": "noop"},
        }
    )
    assert (config.entity, config.max_jobs, config.secure_mode) == ("team", 4, True)
    assert (config.builder.type, config.builder.destination) == ("none", f"{ECR}/team/train")
    assert config.clouds.aws.region == "eu-west-1"


def test_environment_of_the_reference_goes_with_what_clouds_says_besides() -> None:
    config = parse_agent_config(
        {"environment": {"type": "gcp", "region": "europe-west4"}, "clouds": {"gcp": {"project": "team-ml"}}}
    )

    assert (config.clouds.gcp.region, config.clouds.gcp.project) == ("europe-west4", "team-ml")
    assert config.clouds.aws == AwsSettings()


def test_environment_of_azure_is_taken_and_adds_nothing() -> None:
    assert parse_agent_config({"environment": {"type": "azure", "region": "x"}}).clouds == CloudSettings()


@pytest.mark.parametrize(
    "nothing", [{}, {"registry": {}, "environment": None}, {"registry": {"type": "local"}, "environment": {}}]
)
def test_references_keys_that_say_nothing_are_taken(nothing: dict[str, Any]) -> None:
    assert parse_agent_config(nothing).builder.destination is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"registry": {"type": "ecr"}}, "registry.uri"),
        ({"registry": {"uri": f"{ECR}/a"}}, "registry.type is None"),
        ({"registry": {"type": "gcr", "uri": f"{ECR}/a"}}, "no repository of Google"),
        ({"registry": {"type": "ecr", "account_id": "1", "region": "r", "repo_name": "x"}}, "as builder.destination"),
        ({"registry": {"type": "ecr", "uri": f"{ECR}/a"}, "builder": {"destination": "box.example/a"}}, "two places"),
        ({"environment": {"type": "moon"}}, "must be one of aws, gcp, azure"),
        (
            {"environment": {"type": "aws", "region": "us-east-1"}, "clouds": {"aws": {"region": "eu-west-1"}}},
            "two regions",
        ),
        ({"environment": {"type": "aws", "access_key": "AKIA"}}, r"environment.access_key .*clouds\.aws who .*profile"),
        ({"environment": {"type": "azure", "tenant": "t"}}, "as the cloud's own client finds it"),
    ],
)
def test_reference_key_that_nothing_would_read_is_refused_with_the_next_step(given: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentConfigError, match=words):
        parse_agent_config(given)


@pytest.mark.parametrize(
    "bad",
    [
        {"verbosity": -1},
        {"stopped_run_timeout": -1},
        {"poll_seconds": 0},
        {"start_timeout": True},
        {"secure_mode": "perhaps"},
        {"registry": "ecr"},
    ],
)
def test_wrong_value_names_its_field_and_itself(bad: dict[str, Any]) -> None:
    ((field, value),) = bad.items()
    with pytest.raises(AgentConfigError, match=field) as raised:
        parse_agent_config(bad)
    assert repr(value) in str(raised.value)


# --- file, environment, call ---


def test_call_wins_over_environment_and_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("max_jobs: 2\nentity: of-file\nname: of-file\nqueues: [gpu]\n")
    monkeypatch.setenv("LAUNCH_MAX_JOBS", "3")
    monkeypatch.setenv("WANDB_ENTITY", "of-environment")
    config = resolve_agent_config(file, max_jobs=4, name=None)
    assert (config.max_jobs, config.entity, config.name) == (4, "of-environment", "of-file")


def test_own_environment_names_win_over_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_MAX_JOBS", "5")
    monkeypatch.setenv("WANDB_LAUNCH_MAX_JOBS", "9")
    assert resolve_agent_config().max_jobs == 5


@pytest.mark.parametrize("name", ["WANDB_LAUNCH_MAX_JOBS", "WANDB_LAUNCH_START_TIMEOUT"])
def test_wrong_number_in_the_environment_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "abc")
    with pytest.raises(AgentConfigError, match="'abc'"):
        resolve_agent_config()


@pytest.mark.parametrize(
    ("given", "limit"), [("1800", 1800), ("30min", 1800), ("0", None), ("-1", None), ("-0.5", None), ("", None)]
)
def test_limit_of_the_start_is_read_as_the_reference_does(
    monkeypatch: pytest.MonkeyPatch, given: str, limit: float | None
) -> None:
    monkeypatch.setenv("WANDB_LAUNCH_START_TIMEOUT", given)
    assert resolve_agent_config().start_timeout == limit


def test_default_file_is_read_when_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / ".config" / "prefect-launch" / "agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("queue: gpu\n")
    assert resolve_agent_config().queues == ("gpu",)


def test_file_that_is_missing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AgentConfigError, match="Could not find the agent's config file"):
        resolve_agent_config(tmp_path / "no.yaml")


@pytest.mark.parametrize(("content", "words"), [("a: [", "no YAML"), ("- a\n- b\n", "mapping"), ("text", "mapping")])
def test_file_that_is_no_mapping_is_reported(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(content)
    with pytest.raises(AgentConfigError, match=words):
        resolve_agent_config(file)


def test_file_that_is_no_text_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AgentConfigError):
        resolve_agent_config(file)


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("# nothing\n")
    assert resolve_agent_config(file).max_jobs == 1


def test_config_cannot_be_changed() -> None:
    config = AgentConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.max_jobs = 3  # type: ignore[misc]


def test_every_error_is_a_launch_error() -> None:
    assert issubclass(AgentConfigError, LaunchError)


async def test_home_of_agents_moves_runs_and_leaves_the_jobs_where_all_find_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = await JobStore().files()
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "elsewhere"))

    assert parse_agent_config({"name": "box"}).home == tmp_path / "elsewhere"
    assert str(await JobStore().files()) == str(before)
    assert "elsewhere" not in str(before)
