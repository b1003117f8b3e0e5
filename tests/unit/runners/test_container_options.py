"""Options of `local-container`: what is understood, what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.runners.container_options import (
    OPTIONS,
    SUBMITTER_OPTIONS,
    apply_options,
    check_container_options,
)

GPU = {"Driver": "", "Capabilities": [["gpu"]]}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("cpu-period", 1000, {"HostConfig": {"CpuPeriod": 1000}}),
        ("cpu_quota", "500", {"HostConfig": {"CpuQuota": 500}}),
        ("--cpu-shares", 2, {"HostConfig": {"CpuShares": 2}}),
        ("cpus", "1.5", {"HostConfig": {"NanoCpus": 1_500_000_000}}),
        ("cpu", 2, {"HostConfig": {"NanoCpus": 2_000_000_000}}),
        ("cpuset-cpus", "0-3", {"HostConfig": {"CpusetCpus": "0-3"}}),
        ("cpuset-mems", 0, {"HostConfig": {"CpusetMems": "0"}}),
        ("gpus", "all", {"HostConfig": {"DeviceRequests": [{**GPU, "Count": -1}]}}),
        ("gpus", 2, {"HostConfig": {"DeviceRequests": [{**GPU, "Count": 2}]}}),
        ("gpus", "device=0,GPU-3a", {"HostConfig": {"DeviceRequests": [{**GPU, "DeviceIDs": ["0", "GPU-3a"]}]}}),
        ("gpus", "0,2", {"HostConfig": {"DeviceRequests": [{**GPU, "DeviceIDs": ["0", "2"]}]}}),
        ("gpus", ["1"], {"HostConfig": {"DeviceRequests": [{**GPU, "DeviceIDs": ["1"]}]}}),
        ("m", "512m", {"HostConfig": {"Memory": 512 * 1024**2}}),
        ("memory", "1.5G", {"HostConfig": {"Memory": 1536 * 1024**2}}),
        ("memory", "2GiB", {"HostConfig": {"Memory": 2 * 1024**3}}),
        ("memory-reservation", 7_000_000, {"HostConfig": {"MemoryReservation": 7_000_000}}),
        ("memory-swap", -1, {"HostConfig": {"MemorySwap": -1}}),
        ("name", "mine", {"Labels": {"prefect-launch.wanted-name": "mine"}}),
        ("pids-limit", -1, {"HostConfig": {"PidsLimit": -1}}),
        ("platform", "linux/arm64", {"platform": "linux/arm64"}),
        ("Shm_Size", "1g", {"HostConfig": {"ShmSize": 1024**3}}),
        ("ulimit", "core=0", {"HostConfig": {"Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}]}}),
        ("ulimit", ["nofile=1:2"], {"HostConfig": {"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}]}}),
        ("w", "/app", {"WorkingDir": "/app"}),
        ("command", "a 'b c'", {"Cmd": ["a", "b c"]}),
        ("e", ["A=1=2", "B="], {"Env": {"A": "1=2", "B": ""}}),
        ("env", {"A": 1}, {"Env": {"A": "1"}}),
        ("entrypoint", ["sh", "-c"], {"Entrypoint": ["sh", "-c"]}),
        ("v", "/data:/data:ro", {"HostConfig": {"Binds": ["/data:/data:ro"]}}),
        (
            "mount",
            "type=bind,src=/a,target=/b,readonly",
            {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]}},
        ),
        ("net", "host", {"HostConfig": {"NetworkMode": "host"}}),
        ("privileged", True, {"HostConfig": {"Privileged": True}}),
        ("read-only", "true", {"HostConfig": {"ReadonlyRootfs": True}}),
        ("label", ["team=a", "b"], {"Labels": {"team": "a", "b": ""}}),
        ("tmpfs", "/tmp:size=1m", {"HostConfig": {"Tmpfs": {"/tmp": "size=1m"}}}),
        (
            "device",
            "/dev/fuse",
            {
                "HostConfig": {
                    "Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}]
                }
            },
        ),
        ("rm", True, {}),
        ("detach", True, {}),
    ],
)
def test_option_becomes_what_the_engine_wants(option: str, value: object, expected: dict[str, Any]) -> None:
    assert apply_options({}, {option: value}) == expected
    assert option.strip("-").replace("_", "-").lower() in OPTIONS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "much"}, ["'memory'", "'much'", "512m"]),
        ({"memory": True}, ["'memory'", "True"]),
        ({"memory": -5}, ["'memory'", "-5"]),
        ({"memory": {"a": 1}}, ["Invalid docker argument 'memory': mapping values are not supported."]),
        ({"cpus": 0}, ["'cpus'", "above 0"]),
        ({"cpus": "nan"}, ["'cpus'", "'nan'"]),
        ({"gpus": "0,,1"}, ["'gpus'", "device=0,2"]),
        ({"cpu-period": 1.5}, ["'cpu-period'", "1.5", "whole number"]),
        ({"pids-limit": ["1"]}, ["'pids-limit'", "whole number"]),
        ({"ulimit": []}, ["'ulimit'", "empty"]),
        ({"ulimit": "nofile"}, ["'ulimit'", "nofile=1024:2048"]),
        ({"shm-size": ""}, ["'shm-size'", "empty"]),
        ({"env": ["HOME"]}, ["HOME"]),
        ({"command": 'say "x'}, ["'command'", "quotation"]),
        ({"volume": "data"}, ["'volume'", "SOURCE:/PATH"]),
        ({"mount": "type=bind,what=1"}, ["'mount'", "readonly"]),
        ({"privileged": "yes"}, ["'privileged'", "true or false"]),
        ({"restart": "always"}, ["'restart'", "retry"]),
        ({"restart-policy": "always"}, ["'restart-policy'", "retry"]),
        ({"m": "1g", "memory": "2g"}, ["memory", "twice"]),
        ({"cpu": 1, "cpus": 2}, ["'cpus'", "twice"]),
        ({"workdir": "/a\0b"}, ["'workdir'"]),
    ],
)
def test_value_that_cannot_be_is_refused_with_option_value_and_rule(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        check_container_options(options)
    assert [word for word in words if word not in str(refused.value)] == []


def test_unknown_option_is_refused_in_the_references_words_with_the_nearest_right_one() -> None:
    with pytest.raises(NotFoundError) as refused:
        check_container_options({"memry": "1g"})
    said = str(refused.value)
    assert said.startswith("Unsupported resource_args.local-container option 'memry'. Did you mean 'memory'?")
    assert "Supported options are: command, cpu, cpu-period, cpu-quota" in said


def test_submitters_may_set_just_the_references_list() -> None:
    reference = (
        "command cpu cpu-period cpu-quota cpu-shares cpus cpuset-cpus cpuset-mems e env gpus m memory"
        " memory-reservation memory-swap name pids-limit platform shm-size ulimit w workdir"
    )
    assert sorted(SUBMITTER_OPTIONS) == reference.split()


def test_what_the_plan_says_wins_over_options() -> None:
    config = {"Env": {"A": "plan"}, "Labels": {"prefect-launch.item": "1"}, "Entrypoint": ["plan"]}
    made = apply_options(
        config, {"env": {"A": "option", "B": "b"}, "label": {"prefect-launch.item": "2"}, "entrypoint": "x"}
    )
    assert made == {"Env": {"A": "plan", "B": "b"}, "Labels": {"prefect-launch.item": "1"}, "Entrypoint": ["plan"]}
    assert config["Env"] == {"A": "plan"}


@pytest.mark.parametrize("name", ["", "-", 3])
def test_option_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(LaunchError):
        check_container_options({name: "1"})
