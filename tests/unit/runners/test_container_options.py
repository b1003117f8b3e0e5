"""Options of `local-container`: what is understood, what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.runners.docker.options import (
    OPTIONS,
    SUBMITTER_OPTIONS,
    apply_options,
    check_container_options,
    check_together,
)
from prefect_launch.spec.option_names import normalise_option

GPU = {"Driver": "", "Capabilities": [["gpu"]]}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("cpu-period", 1000, {"HostConfig": {"CpuPeriod": 1000}}),
        ("cpu_quota", "5000", {"HostConfig": {"CpuQuota": 5000}}),
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
        (
            "v",
            "/data:/data:ro",
            {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/data", "Target": "/data", "ReadOnly": True}]}},
        ),
        (
            "volume",
            ["data:/data", "/x:/y:rw,rslave", "cache:/c:nocopy"],
            {
                "HostConfig": {
                    "Mounts": [
                        {"Type": "volume", "Source": "data", "Target": "/data"},
                        {
                            "Type": "bind",
                            "Source": "/x",
                            "Target": "/y",
                            "ReadOnly": False,
                            "BindOptions": {"Propagation": "rslave"},
                        },
                        {"Type": "volume", "Source": "cache", "Target": "/c", "VolumeOptions": {"NoCopy": True}},
                    ]
                }
            },
        ),
        ("mount", "type=tmpfs,dst=/t", {"HostConfig": {"Mounts": [{"Type": "tmpfs", "Target": "/t"}]}}),
        (
            "add-host",
            ["db:10.0.0.1", "me:host-gateway", "v6:::1"],
            {"HostConfig": {"ExtraHosts": ["db:10.0.0.1", "me:host-gateway", "v6:::1"]}},
        ),
        ("security-opt", "no-new-privileges:true", {"HostConfig": {"SecurityOpt": ["no-new-privileges:true"]}}),
        ("user", "1000:www-data", {"User": "1000:www-data"}),
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


#: Each option with values that it takes, and values that are none: what a hostile submitter, or a slip, writes there.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "add-host": (["db:10.0.0.1", "me:host-gateway"], ["db", "db:x", "a b:1.2.3.4", "\n:1.2.3.4", ":1.2.3.4"]),
    "cap-add": (["SYS_PTRACE", "all", ["CAP_NET_ADMIN"]], ["SYS PTRACE", "x;y", "", []]),
    "cap-drop": (["ALL"], ["../x"]),
    "command": (["a 'b'", ["a", "", 1]], ["'", ["a\0b"], [None], [True], {"a": 1}]),
    "cpu-period": ([1000, 100_000, 0], [999, 1_000_001, -1, "x", 1.5]),
    "cpu-quota": ([1000, -1, 0], [999, -2, 2**63, "x"]),
    "cpu-shares": ([2, 262_144, 0], [1, -1, 262_145, "x"]),
    "cpus": ([0.5, "64"], [0, -1, "inf", "nan", "1e9", "x", True]),
    "cpuset-cpus": (["0", 3, "0-3,5", "1,2"], ["0; id", "3-1", "0,", "-1", "a", "0 1", "999999", "", "0\n"]),
    "cpuset-mems": (["0-1"], ["0; id"]),
    "device": (["/dev/x", "/dev/x:/dev/y:rw"], ["dev/x", "/dev/../x", "/dev/x:y", "/dev/x:/y:rx", "/dev/x:/y:rr"]),
    "dns": (["1.1.1.1", "::1"], ["one", "1.1.1", ""]),
    "entrypoint": (["sh -c", ["sh"]], ["a\0b"]),
    "env": ([{"A": "1"}, ["A=1"]], [["A"], {"": "1"}, {"A=": "1"}]),
    "gpus": (["all", 2, ["0"], "device=0,1"], ["0,,1", "two", True, 10**30, ["0", "0"]]),
    "hostname": (["a", "a-b.c"], ["-a", "a b", "a\n", "a_b", "x" * 65, "a;b"]),
    "init": ([True, "false"], ["yes", 1]),
    "ipc": (["host", "private", "container:x"], ["container:", "hosts", "host\n"]),
    "label": ([["a=b", "c"], {"a": "b"}], [{"": "x"}, []]),
    "memory": (["6m", 0, "1.5g", "8TiB"], ["5m", "1k", -1, "much", "1 g b", "9" * 400 + "g", "16e", ["1g"], "1g\n;"]),
    "memory-reservation": (["6m"], ["1k", "-1"]),
    "memory-swap": (["-1", "1g"], [-2, "x"]),
    "mount": (
        ["type=bind,source=/a,target=/b", "target=/b", "type=volume,src=data,dst=/x,readonly=false"],
        [
            "type=bind,source=a,target=/b",
            "type=bind,target=/b",
            "source=data",
            "target=b",
            "target=/",
            "type=npipe,dst=/x",
            "type=bind,source=/a/../b,target=/b",
            "type=bind,source=/a,target=/b/..",
            "source=a b,target=/b",
            "target=/a\nb",
        ],
    ),
    "name": (["mine", "a.b-c_1"], ["../x", "a b", "-a", "a\n", "x" * 256, "é"]),
    "network": (["host", "none", "team_net", "container:abc"], ["a b", "../x", "host\n", "container:"]),
    "pids-limit": ([1, "100", -1, 0], [-2, "x", 4_194_305, 1.5]),
    "platform": (
        ["linux", "linux/arm64", "linux/arm/v7"],
        ["../x", "linux/", "/arm64", "a/b/c/d", "linux/arm 64", "x\n"],
    ),
    "privileged": ([True], ["yes"]),
    "read-only": (["true"], [1]),
    "runtime": (["nvidia", "io.containerd.kata.v2"], ["a b", "-x", "/x"]),
    "security-opt": (["no-new-privileges", "label=disable"], ["a b", "LABEL=x", "seccomp=\n"]),
    "shm-size": (["64m", 0], [-1, "big"]),
    "tmpfs": (["/t", "/t:size=1m,mode=1777"], ["t", "/t/../x", "/t:a b", "/t:size=1m\n"]),
    "ulimit": (
        ["core=0", "memlock=-1", "nofile=1:2", "rtprio=-1:-1"],
        ["core", "cores=1", "nofile=2:1", "nofile=-2", "nofile=-1:5", f"nofile={2**63}", "nofile=1;id=2"],
    ),
    "user": (["0", "me", "1000:1000", "a:b"], ["a b", ":x", "a:", "a;b", "me\n"]),
    "volume": (
        ["/a:/b", "data:/b:ro", "/a:/b:rshared"],
        [
            "/a",
            "a:b",
            ":/b",
            "/a:",
            "/a:/b:x",
            "/a:/b:z",
            "/a/..:/b",
            "/a:/../b",
            "/a:/",
            "a b:/c",
            "/a:/b:ro:x",
            "./a:/b",
        ],
    ),
    "workdir": (["/app", "sub/dir", "."], ["../x", "/a/../b", "/a\nb", "", "x" * 5000]),
}


def test_table_of_values_has_every_option() -> None:
    assert VALUES.keys() == {normalise_option(option) for option in OPTIONS} - {"rm", "detach", "d"}


@pytest.mark.parametrize(("option", "value"), [(option, one) for option, (good, _) in VALUES.items() for one in good])
def test_good_value_of_each_option_is_taken(option: str, value: Any) -> None:
    assert check_container_options({option: value})[option] == ({"A": "1"} if option == "env" else value)


@pytest.mark.parametrize(("option", "value"), [(option, one) for option, (_, bad) in VALUES.items() for one in bad])
def test_value_that_is_none_is_refused_before_it_reaches_the_engine(option: str, value: Any) -> None:
    with pytest.raises(SpecError):
        check_container_options({option: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory-swap": "1g"}, "needs the option 'memory'"),
        ({"memory": "2g", "memory-swap": "1g"}, "must not be below 'memory'"),
        ({"memory": "1g", "memory-reservation": "2g"}, "must not be above 'memory'"),
        ({"cpus": 1, "cpu-quota": 50_000}, "'cpu-quota' .* says the same as 'cpus'"),
        ({"volume": "/a:/x", "mount": "type=bind,src=/b,dst=/x/"}, "Two mounts .* have the target '/x'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_together(check_container_options(options))


def test_options_that_go_together_are_taken() -> None:
    check_together({"memory": "1g", "memory-swap": -1, "memory-reservation": "1g", "cpus": 1, "cpu-period": 0})


def test_volumes_and_mounts_are_all_made() -> None:
    made = apply_options({}, {"volume": "/a:/x", "mount": "target=/y"})["HostConfig"]["Mounts"]
    assert [mount["Target"] for mount in made] == ["/x", "/y"]


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
