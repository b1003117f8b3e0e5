"""Limits of a queue: what its owner fixes stays fixed, and no request may exceed a maximum, wherever it is made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import launch_add
from prefect_launch.errors import LaunchError, NotFoundError, QueueError, SpecError, SubmitterError, UnsafeSpecError
from prefect_launch.planning.item_options import merged_options
from prefect_launch.planning.plan import Request, local_config, preview_plan
from prefect_launch.policy.limits import check_limits, with_limits
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.runners.option_values import CONTAINER_QUANTITIES, UNLIMITED, Amount
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items
from tests.support.queue_config import make_config

IMAGE = {"docker": {"docker_image": "b"}}
SET: dict[str, Any] = {
    "memory": "8g",
    "pids-limit": 256,
    "shm-size": "1g",
    "gpus": 1,
    "cpus": 2,
    "ulimit": "nofile=1024",
    "workdir": "/job",
    "entrypoint": "wrap",
    "env": {"HF_HOME": "/cache", "LEVEL": "1"},
}


def plan(config: QueueConfig, *, queue: str | None = "q", **asked: Any) -> RunPlan:
    """What an agent makes of an item, whose spec comes straight from the server."""
    if "resource_args" in asked:
        asked["resource_args"] = {config.resource: asked["resource_args"]}
    request = Request(spec=parse_spec({**IMAGE, **asked}), item_id="i1", queue=queue, config=config)
    return asyncio.run(preview_plan(request, MachineSettings(home=Path("/h")), None))


def options(config: QueueConfig, **asked: Any) -> dict[str, Any]:
    return plan(config, resource_args=asked).options


def container(
    config: dict[str, Any] | None = None, variables: dict[str, Any] | None = None, **more: Any
) -> QueueConfig:
    return make_config("local-container", config, variables, **more)


# --- what the queue sets is fixed ---

OVER_THE_QUEUE = [
    ("memory", "0"),
    ("m", "1024g"),
    ("--memory", 1),
    ("memory-swap", -1),
    ("memory-swap", "16g"),
    ("pids-limit", -1),
    ("pids-limit", 128),
    ("shm-size", "2g"),
    ("gpus", "all"),
    ("gpus", ["0", "1"]),
    ("cpus", 1),
    ("cpu", 64),
    ("cpu-quota", 100000),
    ("cpu-period", 100000),
    ("ulimit", "nofile=-1"),
    ("workdir", "/"),
    ("w", "/"),
    ("env", {"HF_HOME": "/mine"}),
    ("e", ["OTHER=1", "LEVEL=2"]),
]


@pytest.mark.parametrize(("option", "value"), OVER_THE_QUEUE)
def test_option_that_the_queue_sets_is_fixed_for_its_submitters(option: str, value: Any) -> None:
    with pytest.raises(
        UnsafeSpecError, match=r"(is set by the queue|would change what the queue's '[a-z]+' limits) and"
    ):
        options(container(SET), **{option: value})


def test_rest_of_env_stays_the_submitter_s() -> None:
    assert options(container(SET), env={"MINE": "2"})["env"] == {"HF_HOME": "/cache", "LEVEL": "1", "MINE": "2"}


@pytest.mark.parametrize(
    ("overrides", "option"), [({"working_dir": "/"}, "workdir"), ({"entry_point": ["sh"]}, "entrypoint")]
)
def test_override_that_takes_the_place_of_a_fixed_option_is_refused(overrides: dict[str, Any], option: str) -> None:
    with pytest.raises(UnsafeSpecError, match=f"would take the place of the option '{option}'"):
        plan(container(SET), overrides=overrides)


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ("memory", {"m": "0"}),
        ("m", {"memory": "1024g"}),
        ("memory_swap", {"memory-swap": -1}),
        ("env", {"env": {"LEVEL": "2", "HF_HOME": "/x"}}),
        ("env.LEVEL", {"env": {"LEVEL": "2"}}),
        ("-e.LEVEL", {"env": {"LEVEL": "2"}}),
    ],
)
def test_option_that_the_owner_lists_as_the_submitters_is_theirs(allowed: str, asked: dict[str, Any]) -> None:
    config = container({"memory": "8g", "env": {"HF_HOME": "/cache", "LEVEL": "1"}}, submitter_options=[allowed])
    made = options(config, **asked)
    for name, value in asked.items():
        normal = {"m": "memory"}.get(name, name)
        assert made[normal] == value if normal != "env" else made["env"].items() >= value.items()


def test_one_variable_that_is_let_go_leaves_the_others_fixed() -> None:
    config = container({"env": {"HF_HOME": "/cache", "LEVEL": "1"}}, submitter_options=["env.LEVEL"])
    assert config.submitter_options == ("env.LEVEL",)
    with pytest.raises(UnsafeSpecError, match=r"'env\.HF_HOME' is set by the queue"):
        options(config, env={"HF_HOME": "/x"})


def test_what_a_template_variable_sets_is_given_by_the_variable_alone() -> None:
    config = container({"memory": "{{ gb }}g"}, {"gb": {"type": "integer", "minimum": 1}}, submitter_options=["memory"])
    with pytest.raises(UnsafeSpecError, match="template variable 'gb'"):
        plan(config, resource_args={"memory": "1g"}, template_variables={"gb": 1})


# --- no limit is nobody's to ask for ---

NO_LIMIT = [
    ("memory", 0),
    ("memory", "0g"),
    ("memory-reservation", 0),
    ("memory-swap", -1),
    ("memory-swap", "0"),
    ("pids-limit", -1),
    ("pids-limit", "0"),
    ("shm-size", 0),
    ("cpu-quota", -1),
    ("cpu-quota", 0),
    ("gpus", "all"),
    ("gpus", -1),
    ("ulimit", "memlock=-1"),
    ("ulimit", ["nofile=10", "memlock=10:-1"]),
]


@pytest.mark.parametrize(("option", "value"), NO_LIMIT)
def test_submitter_may_not_ask_for_no_limit(option: str, value: Any) -> None:
    with pytest.raises(UnsafeSpecError, match=f"option '{option}' is .*, which means no limit"):
        options(container(), memory="1g", **{option: value}) if option != "memory" else options(
            container(), memory=value
        )


def test_submitter_may_ask_for_no_limit_where_the_owner_lets_them() -> None:
    assert options(container(submitter_options=["gpus"]), gpus="all")["gpus"] == "all"


@pytest.mark.parametrize("gb", [0, -1])
def test_no_limit_through_a_template_variable_is_refused(gb: int) -> None:
    config = container({"pids-limit": "{{ n }}"}, {"n": {"type": "integer"}})
    with pytest.raises(SubmitterError, match="no limit"):
        plan(config, template_variables={"n": gb})


def test_no_limit_that_the_owner_wrote_into_an_enum_is_the_owner_s() -> None:
    config = container({"pids-limit": "{{ n }}"}, {"n": {"type": "integer", "enum": [-1, 512]}})
    assert plan(config, template_variables={"n": -1}).options == {"pids-limit": -1}


# --- maxima ---

LIMITS: dict[str, Any] = {
    "memory": "16g",
    "gpus": 2,
    "timeout": "12h",
    "cpus": "4",
    "pids-limit": 512,
    "shm_size": "2g",
}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("memory", "17g"),
        ("m", 0),
        ("memory-swap", "16g"),
        ("gpus", 3),
        ("gpus", "all"),
        ("gpus", "0,1,2"),
        ("gpus", ["0", "1", "GPU-3a"]),
        ("cpus", 4.5),
        ("cpu-quota", 800000),
        ("pids-limit", 513),
        ("pids-limit", -1),
        ("shm-size", "2049m"),
        ("env", {"CUDA_VISIBLE_DEVICES": "0,1,2"}),
        ("env", {"NVIDIA_VISIBLE_DEVICES": "all"}),
    ],
)
def test_more_than_the_limit_is_refused(option: str, value: Any) -> None:
    with pytest.raises(UnsafeSpecError, match=r"at most .* is allowed on this queue|would change what the queue's"):
        options(container({"limits": LIMITS}), **{option: value})


@pytest.mark.parametrize(
    "asked",
    [{"memory": "16g"}, {"m": 16 * 1024**3}, {"gpus": 2}, {"gpus": ["0", "7"]}, {"cpus": 4}, {"shm-size": "2g"}],
)
def test_as_much_as_the_limit_is_given(asked: dict[str, Any]) -> None:
    (value,) = asked.values()
    assert value in options(container({"limits": LIMITS}), **asked).values()


def test_run_that_asks_for_nothing_gets_the_limit_where_nothing_is_no_limit() -> None:
    made = plan(container({"limits": LIMITS}))
    assert made.options == {"memory": "16g", "cpus": "4", "pids-limit": 512}
    assert made.timeout == 12 * 3600


def test_cpus_of_the_limit_are_a_quota_since_an_engine_refuses_more_cpus_than_it_has() -> None:
    config = container({"limits": {"cpus": 64}})

    nobody, somebody = (LocalContainerRunner.preview(plan(config, resource_args=asked)) for asked in ({}, {"cpus": 2}))

    assert nobody["HostConfig"].items() >= {"CpuPeriod": 100_000, "CpuQuota": 6_400_000}.items()
    assert somebody["HostConfig"]["NanoCpus"] == 2_000_000_000
    assert "NanoCpus" not in nobody["HostConfig"]


@pytest.mark.parametrize(
    ("own", "asked", "memory"),
    [
        ({}, {}, None),
        ({}, {"cpus": 8}, "8g"),
        ({}, {"cpus": 2, "ntasks": 4}, "8g"),
        ({}, {"cpus": 2, "ntasks": 4, "nodes": 2}, None),
        ({}, {"cpus": 8, "memory": "1g"}, "1g"),
        ({"sbatch": ["--mem-per-cpu=4G"]}, {"cpus": 8}, None),
    ],
)
def test_memory_that_a_job_of_slurm_has_by_its_cpus_is_within_the_limit(
    own: dict[str, Any], asked: dict[str, Any], memory: str | None
) -> None:
    config = make_config("slurm", {**own, "container": "apptainer", "limits": {"memory": "8g"}}, None)

    assert options(config, **asked).get("memory") == memory


def test_plan_tells_what_the_limits_gave_from_what_was_asked_for() -> None:
    config = container({"cpus": 1, "limits": {"memory": "16g", "pids-limit": 512}})

    made = plan(config, resource_args={"pids_limit": 10})

    assert made.from_limits == {"memory": "16g"}
    assert made.limits_note == "from the queue's limits, not the item: memory 16g"


def test_queue_s_own_value_comes_before_its_limit() -> None:
    config = container({"memory": "8g", "limits": {"memory": "16g"}}, submitter_options=["memory"])
    assert options(config) == {"memory": "8g"}
    assert options(config, memory="12g") == {"memory": "12g"}
    with pytest.raises(UnsafeSpecError, match="'memory' is '17g', and at most '16g' is allowed on this queue"):
        options(config, memory="17g")


def test_limit_of_cpus_leaves_an_owner_s_quota_alone() -> None:
    assert options(container({"cpu-quota": 50000, "limits": {"cpus": 2}})) == {"cpu-quota": 50000}


def test_limit_holds_for_what_a_template_variable_makes() -> None:
    config = container({"memory": "{{ gb }}g", "limits": {"memory": "16g"}}, {"gb": {"type": "integer"}})
    assert plan(config, template_variables={"gb": 16}).options == {"memory": "16g"}
    for gb in (17, 0):
        with pytest.raises(UnsafeSpecError, match="at most '16g'"):
            plan(config, template_variables={"gb": gb})


@pytest.mark.parametrize("timeout", ["13h", 12 * 3600 + 1])
def test_longer_time_limit_than_the_queue_s_is_refused(timeout: Any) -> None:
    with pytest.raises(UnsafeSpecError, match="and at most 12 h is allowed on this queue"):
        plan(container({"limits": LIMITS}), timeout=timeout)
    assert plan(container({"limits": LIMITS}), timeout="1h").timeout == 3600


def test_processes_are_limited_too() -> None:
    config = make_config("local-process", {"limits": {"memory": "4g", "gpus": 1, "timeout": "1h"}, "nice": 5}, None)
    for asked in ({"memory": "5g"}, {"gpus": 2}, {"gpus": "all"}, {"nice": 0}):
        spec = parse_spec({"job": "j", "resource_args": {"local-process": asked}})
        with pytest.raises(UnsafeSpecError):
            merged_options(config, spec, "q", macros={}, secrets={})
    spec = parse_spec({"job": "j", "resource_args": {"local-process": {"memory": "4g"}}})
    assert merged_options(config, spec, "q", macros={}, secrets={}) == {"nice": 5, "memory": "4g"}


def test_run_of_no_queue_is_its_caller_s_own() -> None:
    made = plan(
        local_config("local-container"), queue=None, resource_args={"gpus": "all", "pids-limit": -1}, timeout="99h"
    )
    assert made.options == {"gpus": "all", "pids-limit": -1}


# --- the owner's side ---


@pytest.mark.parametrize(
    ("limits", "error", "words"),
    [
        ({"memroy": "1g"}, QueueError, "Did you mean 'memory'"),
        ({"ulimit": 5}, QueueError, "limit"),
        ({"workdir": "/x"}, QueueError, "limit"),
        ({"memory": "much"}, QueueError, "'much' of 'memory' is no good value"),
        ({"memory": 0}, QueueError, "is no maximum"),
        ({"gpus": "all"}, QueueError, "is no maximum"),
        ({"pids-limit": -1}, QueueError, "is no maximum"),
        ({"timeout": "soon"}, QueueError, "'soon'"),
        ({"timeout": None}, QueueError, "is no maximum"),
        ({"m": "1g", "memory": "2g"}, QueueError, "given twice"),
        (["memory"], QueueError, "must be a mapping"),
        ({"memory": 2**64}, QueueError, "cannot send"),
    ],
)
def test_limit_that_is_none_is_refused(limits: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        container({"limits": limits})


@pytest.mark.parametrize("own", [{"memory": "32g"}, {"memory": "0"}, {"m": "17g"}])
def test_queue_whose_own_value_is_above_its_limit_is_refused(own: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match="above its own limit '16g'"):
        container({**own, "limits": {"memory": "16g"}})


def test_limits_come_back_from_the_queue_s_template() -> None:
    config = container(
        {"resource_args": {"local-container": {"memory": "1g"}}, "limits": LIMITS, "docker": {"pin": True}}
    )
    assert config.limits == {**{key: value for key, value in LIMITS.items() if key != "shm_size"}, "shm-size": "2g"}
    assert QueueConfig.from_template("q", config.to_template()) == config


def test_submitter_option_that_is_none_is_refused() -> None:
    with pytest.raises(NotFoundError, match="memroy"):
        container({}, submitter_options=["memroy"])


# --- at the queue, before anything is queued ---


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"resource_args": {"local-container": {"memory": "17g"}}}, "at most '16g'"),
        ({"resource_args": {"local-container": {"gpus": ["0", "1", "2"]}}}, "at most 2"),
        ({"resource_args": {"local-container": {"env": {"A": "2"}}}}, r"'env\.A' is set by the queue"),
        ({"resource_args": {"local-container": {"pids-limit": -1}}}, "means no limit"),
        ({"config": {"timeout": "13h"}}, "at most 12 h"),
    ],
)
def test_item_that_asks_for_too_much_is_refused_at_the_queue(
    job_api: InMemoryApi, asked: dict[str, Any], words: str
) -> None:
    limits = {"memory": "16g", "gpus": 2, "timeout": "12h"}
    queue = job_api.create_run_queue("small", "local-container", config={"env": {"A": "1"}, "limits": limits})
    assert (queue.limits, queue.default_resource_config["limits"]) == (limits, limits)
    with pytest.raises(UnsafeSpecError, match=words):
        launch_add(docker_image="b", queue_name="small", **asked)
    assert items(job_api) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("cpuset-cpus", "0; id"), ("platform", "../x"), ("workdir", "../.."), ("name", "a b"), ("memory", "1k")],
)
def test_value_that_is_none_is_refused_at_the_queue_and_by_the_agent(
    job_api: InMemoryApi, option: str, value: Any
) -> None:
    job_api.create_run_queue("small", "local-container")
    asked = {"local-container": {option: value}}
    with pytest.raises(SpecError, match=f"option '{option}'") as at_queue:
        launch_add(docker_image="b", queue_name="small", resource_args=asked)
    with pytest.raises(SpecError) as by_agent:
        options(container(), **{option: value})
    assert str(at_queue.value) == str(by_agent.value)
    assert items(job_api) == []


@pytest.mark.parametrize(
    "config",
    [
        {"cpuset-cpus": "0; id"},
        {"platform": "../x"},
        {"volume": "data"},
        {"user": "a b"},
        {"network": "a b"},
        {"memory": "1g", "memory-swap": "512m"},
    ],
)
def test_queue_with_a_value_that_is_none_is_not_made(config: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match=r"The queue's config is not right: .*local-container"):
        container(config)


def test_value_that_is_filled_in_later_is_checked_later() -> None:
    config = container(
        {"memory": "{{ m }}", "cpuset-cpus": "${cpus}", "user": "{{ prefect.blocks.secret.me }}"}, {"m": {}}
    )
    with pytest.raises(SpecError, match="option 'memory': 'x; id'"):
        plan(config, template_variables={"m": "x; id"})


@pytest.mark.parametrize("text", ["${run_id}", "${data_dir}"])
def test_variable_s_value_is_checked_at_the_queue_even_if_it_looks_like_a_macro(text: str) -> None:
    config = container({"memory": "{{m}}", "limits": {"memory": "1g"}}, {"m": {}})
    spec = parse_spec({**IMAGE, "template_variables": {"m": text}})
    with pytest.raises(SpecError, match=r"option 'memory': .* must be a number of bytes"):
        merged_options(config, spec, "q", macros={}, secrets={})


def test_options_that_do_not_go_together_are_refused_at_the_queue_whatever_env_names() -> None:
    config = container({"env": {"T": "{{ prefect.blocks.secret.t }}"}})
    asked = {"memory": "1g", "memory-swap": "512m", "env": {"HOME": "${HOME}"}}
    spec = parse_spec({**IMAGE, "resource_args": {"local-container": asked}})
    with pytest.raises(SpecError, match="'memory-swap' of local-container must not be below"):
        merged_options(config, spec, "q", macros={}, secrets={})


@pytest.mark.parametrize("limits", [{"memroy": "1g"}, {"memory": "much"}, {"ulimit": 1}])
def test_limit_that_was_written_by_hand_and_is_none_lets_nothing_through(limits: dict[str, Any]) -> None:
    config = QueueConfig(resource="local-container", limits=limits)
    with pytest.raises(LaunchError, match=r"limit|memory"):
        options(config, cpus=1)


# --- memory and swap ---


@pytest.mark.parametrize(
    ("limits", "asked", "runs_with"),
    [
        ({"memory-swap": "16g"}, {}, {"memory": "16g", "memory-swap": "16g"}),
        ({"memory-swap": "16g"}, {"memory": "4g"}, {"memory": "4g"}),
        ({"memory-swap": "16g"}, {"memory": "10g"}, {"memory": "10g", "memory-swap": "16g"}),
        ({"memory-swap": "16g"}, {"memory": "4g", "memory-swap": "5g"}, {"memory": "4g", "memory-swap": "5g"}),
        ({"memory": "8g", "memory-swap": "10g"}, {}, {"memory": "8g", "memory-swap": "10g"}),
        ({"memory": "8g", "memory_swap": "16g"}, {}, {"memory": "8g"}),
        ({"shm-size": "32m"}, {}, {"shm-size": "32m"}),
        ({"shm-size": "1g"}, {}, {}),
        ({"cpu-shares": 512}, {}, {"cpu-shares": 512}),
    ],
)
def test_limit_holds_for_what_a_run_has_that_asks_for_nothing(
    limits: dict[str, Any], asked: dict[str, Any], runs_with: dict[str, Any]
) -> None:
    assert options(container({"limits": limits}), **asked) == runs_with


@pytest.mark.parametrize("asked", [{"memory": "17g"}, {"memory": "0"}, {"memory": "4g", "memory-swap": -1}])
def test_limit_of_memory_and_swap_alone_limits_both(asked: dict[str, Any]) -> None:
    with pytest.raises(UnsafeSpecError, match="at most '16g' is allowed on this queue"):
        options(container({"limits": {"memory-swap": "16g"}}), **asked)


def test_memory_that_the_queue_fixes_beside_a_limit_of_memory_and_swap_stays_fixed() -> None:
    config = container({"memory": "8g", "limits": {"memory-swap": "12g"}})
    assert options(config) == {"memory": "8g", "memory-swap": "12g"}
    with pytest.raises(UnsafeSpecError, match="'memory' is set by the queue"):
        options(config, memory="1g")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"limits": {"memory": "16g", "memory-swap": "8g"}}, "limit '16g' of 'memory' is above its limit '8g' of"),
        ({"memory": "16g", "limits": {"memory-swap": "8g"}}, "'memory' is '16g', above its own limit '8g'"),
    ],
)
def test_limit_of_memory_and_swap_below_that_of_memory_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(QueueError, match=said):
        make_config("local-container", config, None)


# --- what a whole run asks for, where its options alone do not say it: containers of a manifest, times its pods ---

GIB = 1024**3


def test_run_that_asks_for_more_in_all_than_the_queue_allows_is_refused() -> None:
    config = container({"limits": {"memory": "8g"}})

    with pytest.raises(UnsafeSpecError, match=r"asks for 16.0 GiB \(in 4 pods\) of 'memory' in all"):
        check_limits({}, config, CONTAINER_QUANTITIES, {"memory": Amount(16 * GIB, "16.0 GiB (in 4 pods)")})


def test_limit_is_given_to_a_run_that_asks_for_nothing_and_changes_nothing_that_is_asked_for() -> None:
    config = container({"limits": {"memory": "8g"}})

    asked = with_limits({}, config, CONTAINER_QUANTITIES, {"memory": Amount(2 * GIB, "2 GiB")})
    unlimited = with_limits({}, config, CONTAINER_QUANTITIES, {"memory": Amount(UNLIMITED, "no limit")})

    assert asked == {}
    assert unlimited == {"memory": "8g"}
