"""What a submitter may not ask of an agent's machine."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import SpecError, UnsafeSpecError
from prefect_launch.safety import (
    check_kubernetes_manifest,
    check_secure_mode,
    check_submitter_args,
    locked_options,
    merge_resource_args,
    normalise_option,
    read_env,
)
from prefect_launch.spec import parse_spec

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


def pod(**spec: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": {"containers": [{"name": "a"}], **spec}}}}


@pytest.mark.parametrize(
    ("manifest", "option"),
    [
        (pod(securityContext={}), "securityContext"),
        (pod(containers=[{"securityContext": {"privileged": True}}]), "securityContext"),
        (pod(volumes=[{"name": "x", "hostPath": {"path": "/"}}]), "hostPath"),
        (pod(volumes=[{"projected": {"sources": [{"serviceAccountToken": {}}]}}]), "serviceAccountToken"),
        (pod(hostPID=True), "hostPID"),
        (pod(hostIPC="true"), "hostIPC"),
        (pod(hostNetwork=1), "hostNetwork"),
        (pod(host_network=True), "host_network"),
        (pod(HostNetwork=True), "HostNetwork"),
        (pod(shareProcessNamespace=True), "shareProcessNamespace"),
        (pod(hostUsers=True), "hostUsers"),
        (pod(automountServiceAccountToken=True), "automountServiceAccountToken"),
        (pod(containers=[{"ports": [{"hostPort": 80}]}]), "hostPort"),
        (pod(serviceAccountName="admin"), "serviceAccountName"),
        (pod(serviceAccount="admin"), "serviceAccount"),
        (pod(containers=[{"volumeMounts": [{"mountPropagation": "Bidirectional"}]}]), "mountPropagation"),
        (
            {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}}},
            "container.apparmor.security.beta.kubernetes.io/a",
        ),
        (
            {"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "Unconfined"}}},
            "seccomp.security.alpha.kubernetes.io/pod",
        ),
        ([{"kind": "Pod"}, {"kind": "Pod", "spec": {"hostPID": True}}], "hostPID"),
    ],
)
def test_manifest_that_reaches_out_of_its_pod_is_refused(manifest: Any, option: str) -> None:
    with pytest.raises(UnsafeSpecError) as caught:
        check_kubernetes_manifest(manifest)
    assert str(caught.value).startswith(f"Unsafe resource_args.kubernetes option {option!r} is not allowed: ")


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        None,
        pod(hostPID=False, hostNetwork=None, serviceAccountName="", automountServiceAccountToken=False),
        pod(volumes=[{"emptyDir": {}}], containers=[{"volumeMounts": [{"mountPropagation": "HostToContainer"}]}]),
        {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "runtime/default"}}},
    ],
)
def test_ordinary_manifest_passes(manifest: Any) -> None:
    check_kubernetes_manifest(manifest)


@pytest.mark.timeout(10)
def test_refused_option_is_found_at_any_depth() -> None:
    manifest: dict[str, Any] = {"hostPID": True}
    for _ in range(3_000):
        manifest = {"x": [manifest]}

    with pytest.raises(UnsafeSpecError, match="hostPID"):
        check_kubernetes_manifest(manifest)


def spec(**fields: Any) -> Any:
    return parse_spec({"job": "e/p/j", **fields})


@pytest.mark.parametrize(
    ("launched", "locked"),
    [
        (spec(overrides={"entry_point": ["sh", "-c", "true"]}), 'the "entrypoint" override'),
        (spec(overrides={"dockerfile": "FROM x"}), 'the "dockerfile" override'),
        (parse_spec({"docker": {"docker_image": "evil:1"}}), 'the "image"'),
        (parse_spec({"image_uri": "evil:1"}), 'the "image"'),
        (spec(resource_args={"kubernetes": pod(hostPID=False)}), '"hostPID" in pod spec'),
        (spec(resource_args={"kubernetes": pod(initContainers=[])}), '"initContainers" in pod spec'),
        (spec(resource_args={"kubernetes": pod(containers=[{}, {"command": ["x"]}])}), '"command" in container spec'),
        (spec(resource_args={"kubernetes": pod(containers=[{"image": "x"}])}), '"image" in container spec'),
        (
            spec(resource_args={"local-container": {"--entrypoint": "sh"}}),
            '"entrypoint" in resource_args.local-container',
        ),
        (spec(resource_args={"local-container": {"Command": "sh"}}), '"command" in resource_args.local-container'),
        (spec(additional_services=[{"config": {"spec": {"hostNetwork": True}}}]), '"hostNetwork" in pod spec'),
        (spec(builder={"accelerator": {"base_image": "mine:1"}}), 'the "builder" base image'),
        (spec(docker={"user_id": 0}), 'the "docker" user id'),
    ],
)
def test_secure_agent_refuses_what_decides_which_code_runs(launched: Any, locked: str) -> None:
    with pytest.raises(UnsafeSpecError) as caught:
        check_secure_mode(launched)
    assert str(caught.value).startswith(f"This agent is configured to lock {locked}")
    assert "but the job specification attempts to override it." in str(caught.value)


def test_secure_agent_takes_inputs_and_ordinary_options() -> None:
    check_secure_mode(
        spec(
            overrides={"run_config": {"command": "x", "hostPID": 1}, "args": ["--lr", "1"]},
            resource_args={
                "local-container": {"env": {"command": "x"}, "memory": "1g"},
                "kubernetes": pod(containers=[{"args": ["x"]}]),
            },
            additional_services=[{"config": {"spec": {"containers": [{"image": "redis", "command": ["redis"]}]}}}],
        )
    )


def test_secure_agent_sees_the_merged_arguments_when_given_them() -> None:
    with pytest.raises(UnsafeSpecError, match="hostIPC"):
        check_secure_mode(spec(), {"kubernetes": pod(hostIPC=True)})
