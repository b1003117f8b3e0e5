"""How much a whole run asks for, and how a queue's limits hold for what stands in a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.runners.option_values import UNLIMITED
from prefect_launch.runners.remote.kubernetes.amounts import amounts_of
from prefect_launch.runners.remote.kubernetes.options import own_image
from prefect_launch.runners.remote.kubernetes.quantities import parse_quantity, written_bytes, written_cpus
from tests.unit.runners.kubernetes.plans import job_options, pod_manifest

GIB = 1024**3


def numbers(options: dict[str, Any]) -> dict[str, float]:
    """Return amounts without their texts."""
    return {name: amount.number for name, amount in amounts_of(options).items()}


def of_container(cpu: str, memory: str, **more: Any) -> dict[str, Any]:
    """Return a pod template whose container has these limits."""
    return pod_manifest(resources={"limits": {"cpu": cpu, "memory": memory, **more}})


def test_short_options_are_what_a_run_asks_for() -> None:
    assert numbers({"cpus": "500m", "memory": "2g", "gpus": 1}) == {"cpus": 5e8, "memory": 2 * GIB, "gpus": 1}


def test_container_without_limits_may_use_all_that_its_node_has() -> None:
    assert numbers(job_options()) == {"cpus": UNLIMITED, "memory": UNLIMITED, "gpus": 0}


def test_pods_of_a_manifest_count_together() -> None:
    pod = of_container("2", "4Gi", **{"nvidia.com/gpu": 1})

    assert numbers(job_options(pod, parallelism=4)) == {"cpus": 8e9, "memory": 16 * GIB, "gpus": 4}
    assert amounts_of(job_options(pod, parallelism=4))["memory"].text == "16.0 GiB (in 4 pods)"


def test_request_above_nothing_counts_too() -> None:
    pod = pod_manifest(resources={"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": "1"}})
    two = {"spec": {"containers": [*pod["spec"]["containers"], {**of_container("1", "1Gi")["spec"]["containers"][0]}]}}
    two["spec"]["containers"][1]["name"] = "side"

    assert numbers(job_options(two)) == {"cpus": 2e9, "memory": 2 * GIB, "gpus": 0}


def test_short_option_replaces_what_the_manifest_gives_the_jobs_container() -> None:
    assert numbers({**job_options(of_container("2", "4Gi")), "memory": "1g"})["memory"] == GIB


def test_replicas_of_a_custom_resource_count() -> None:
    spec: dict[str, Any] = {
        "pytorchReplicaSpecs": {
            "Master": {"replicas": 1, "template": of_container("1", "1Gi")},
            "Worker": {"replicas": 3, "template": of_container("2", "2Gi")},
        }
    }
    for replica in spec["pytorchReplicaSpecs"].values():
        replica["template"]["spec"]["containers"][0]["name"] = "pytorch"
    options = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": spec}

    assert numbers(options) == {"cpus": 7e9, "memory": 7 * GIB, "gpus": 0}


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("500m", 0.5),
        ("2", 2),
        (2, 2),
        ("1e3", 1000),
        ("2Gi", 2 * GIB),
        ("2G", 2e9),
        (".5", 0.5),
        ("128974848000m", 128974848),
    ],
)
def test_quantity_is_read_as_kubernetes_reads_it(written: Any, number: float) -> None:
    assert float(parse_quantity(written)) == number


@pytest.mark.parametrize("written", ["2g", "2gb", "512mb", "-1", "", "1.2.3", "1 Gi", None])
def test_what_kubernetes_does_not_take_for_a_quantity_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match="it must"):
        parse_quantity(written)


def test_amounts_are_written_as_kubernetes_takes_them() -> None:
    assert [written_cpus(n) for n in (2_000_000_000, 1_500_000_000, 1)] == ["2", "1500m", "1m"]
    assert [written_bytes(n) for n in (2 * GIB, 512 * 1024**2, 1000)] == ["2Gi", "512Mi", "1000"]


@pytest.mark.parametrize(
    ("options", "image"),
    [
        ({}, None),
        ({"image": "base:1"}, "base:1"),
        (job_options(pod_manifest(image="base:2")), "base:2"),
        (job_options(pod_manifest(image="${image_uri}")), None),
    ],
)
def test_image_of_the_queue_is_for_jobs_that_name_none(options: dict[str, Any], image: str | None) -> None:
    assert own_image(options) == image
