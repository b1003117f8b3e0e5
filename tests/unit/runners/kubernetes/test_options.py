"""Options of `kubernetes`: what is understood, what is refused before anything is queued, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import LaunchError, NotFoundError, SpecError, UnsafeSpecError
from prefect_launch.runners.remote.kubernetes.options import (
    check_options,
    check_submitter_options,
    check_together,
    read_options,
)
from tests.unit.runners.kubernetes.plans import job_options, pod_manifest


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("cpus", "500m", {"cpus": 500_000_000}),
        ("cpu", 1.5, {"cpus": 1_500_000_000}),
        ("m", "512m", {"memory": 512 * 1024**2}),
        ("memory", "2Gi", {"memory": 2 * 1024**3}),
        ("memory", "2g", {"memory": 2 * 1024**3}),
        ("gpus", "2", {"gpus": 2}),
        ("shm_size", "1g", {"shm_size": 1024**3}),
        ("node_selector", {"gpu": "a100"}, {"node_selector": {"gpu": "a100"}}),
        ("image_pull_timeout", "10min", {"image_pull_timeout": 600}),
        ("image_pull_timeout", 0, {"image_pull_timeout": 0}),
        (
            "tolerations",
            ["gpu=yes:NoSchedule", "spot"],
            {
                "tolerations": (
                    {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
                    {"key": "spot", "operator": "Exists"},
                )
            },
        ),
        ("image_pull_secret", "regcred", {"image_pull_secret": ("regcred",)}),
        ("ttl", "1h", {"ttl": 3600}),
        ("env", ["A=1"], {"env": {"A": "1"}}),
    ],
)
def test_short_option_is_read_as_people_write_it(option: str, value: Any, expected: dict[str, Any]) -> None:
    read = read_options({option: value}).model_dump(include=set(expected))

    assert read == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "must be a mapping"),
        ({"namspace": "x"}, "Did you mean 'namespace'?"),
        ({"spec": []}, "it must be a mapping"),
        ({"namespace": "n" * 400}, "at most 63 small letters"),
        ({"labels": {"team": "ü"}}, "labels.team is 'ü'"),
        ({"labels": {"a b": "x"}}, "has the key 'a b'"),
        ({"gpus": "all"}, "it must be a number of GPUs"),
        ({"memory": 0}, "it must be more than 0"),
        ({"tolerations": [{"kee": "x"}]}, "Did you mean 'key'?"),
        ({"volumes": ["nowhere"]}, "each must be 'CLAIM:/path'"),
        ({"env": {"1A": "x"}}, "no digit first"),
    ],
)
def test_bad_option_is_refused_with_its_value_and_the_rule(options: Any, words: str) -> None:
    with pytest.raises(LaunchError) as refused:
        check_options(options)

    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "Job", "apiVersion": "batch/v1"}, "no 'spec'"),
        (job_options(backoffLimt=0), "Did you mean 'backoffLimit'?"),
        ({"spec": {}}, "spec.template is missing"),
        (job_options({"spec": {"containers": []}}), "has no container"),
        (job_options(pod_manifest(imag="x")), "Did you mean 'image'?"),
        (job_options(pod_manifest(image=["x"])), "it must be text"),
        (job_options(pod_manifest(stdin="yes")), "it must be true or false"),
        (job_options({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}), "is 'a', which"),
        (job_options({"spec": {**pod_manifest()["spec"], "restartPolicy": "Always"}}), "'Never' or 'OnFailure'"),
        (job_options(pod_manifest(name="BAD_name")), "a name there must be"),
        (job_options(pod_manifest(name="n" * 400)), "a name there must be"),
        (job_options(pod_manifest(resources={"limits": {"memory": "2g"}})), "write '2Gi'"),
        (job_options(pod_manifest(resources={"limits": {"nvidia.com/gpu": 0.5}})), "Give a whole number"),
        (job_options({**pod_manifest(), "metadata": {"labels": {"a": "b c"}}}), "a label's value must be"),
        (job_options(parallelism="2"), "it must be a whole number"),
        ({**job_options(), "kind": "Jobb"}, "is not known"),
    ],
)
def test_bad_manifest_is_refused_with_its_path_and_the_rule(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        check_together(check_options(options))

    assert words in str(refused.value)
    assert "resource_args.kubernetes" in str(refused.value)


@pytest.mark.parametrize(
    "part",
    [
        {"securityContext": {}},
        {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]},
        {"hostNetwork": True},
        {"serviceAccountName": "admin"},
        {"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 1}]}]},
    ],
)
def test_pod_field_that_reaches_out_of_its_pod_is_refused_to_submitters_alone(part: dict[str, Any]) -> None:
    pod = {**pod_manifest()["spec"], **part}
    options = check_options(job_options({"spec": pod}))

    with pytest.raises(UnsafeSpecError, match="ask the queue's owner"):
        check_submitter_options(options)


@pytest.mark.parametrize(
    "source",
    [
        {"nfs": {"server": "10.0.0.1", "path": "/"}},
        {"iscsi": {"targetPortal": "10.0.0.1", "iqn": "iqn.2001-04.com.example:a", "lun": 0}},
        {"csi": {"driver": "host.example.com"}},
        {"flexVolume": {"driver": "example/host"}},
        {"cephfs": {"monitors": ["10.0.0.1"]}},
        {"fc": {"lun": 0}},
        {"gitRepo": {"repository": "https://example.com/a.git"}},
    ],
)
def test_volume_from_a_network_or_a_host_is_refused_to_submitters_in_both_forms(source: dict[str, Any]) -> None:
    pod = {**pod_manifest()["spec"], "volumes": [{"name": "a", **source}]}

    for given in (job_options({"spec": pod}), {"volumes": [{**source, "mountPath": "/data"}]}):
        options = check_options(given)
        with pytest.raises(UnsafeSpecError, match=next(iter(source))):
            check_submitter_options(options)


def test_volume_that_is_made_for_the_job_is_free_to_submitters() -> None:
    sources: list[dict[str, Any]] = [{"emptyDir": {}}, {"configMap": {"name": "a"}}, {"downwardAPI": {"items": []}}]
    for source in sources:
        check_submitter_options(check_options({"volumes": [{**source, "mountPath": "/data"}]}))


@pytest.mark.parametrize(
    "volume",
    [
        "/etc:/host:ro",
        {"hostPath": {"path": "/"}, "mountPath": "/host"},
        {"emptyDir": {}, "mountPath": "/x", "mountPropagation": "Bidirectional"},
    ],
)
def test_folder_of_the_host_is_refused_to_submitters_who_may_name_volumes(volume: Any) -> None:
    with pytest.raises(UnsafeSpecError, match="is not allowed: found volumes"):
        check_submitter_options(check_options({"volumes": [volume]}))

    check_submitter_options(check_options({"volumes": ["claim:/data"]}))


def test_option_of_a_submitter_that_is_not_known_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'memory'"):
        check_options({"memry": "2g"})
