"""How much a whole run asks for, and how a queue's limits hold for what stands in a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.runners.option_values import UNLIMITED
from prefect_launch.runners.remote.kubernetes.amounts import amounts_of
from prefect_launch.runners.remote.kubernetes.options import check_options, check_together, own_image
from prefect_launch.runners.remote.kubernetes.pod_counts import pods_in
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


def container(name: str, cpu: str, memory: str = "1Gi", **more: Any) -> dict[str, Any]:
    """Return a container with these limits."""
    return {"name": name, "image": "busybox", "resources": {"limits": {"cpu": cpu, "memory": memory}}, **more}


def test_sidecar_counts_beside_the_job_and_an_init_container_beside_the_sidecars_before_it() -> None:
    sidecar = container("proxy", "1", restartPolicy="Always")
    pod = {"initContainers": [sidecar, container("fetch", "4")], "containers": [container("main", "2")]}
    late = {"initContainers": [container("fetch", "4"), sidecar], "containers": [container("main", "2")]}

    assert numbers(job_options({"spec": pod}))["cpus"] == 5e9
    assert numbers(job_options({"spec": late}))["cpus"] == 4e9
    assert numbers(job_options({"spec": {**pod, "initContainers": [sidecar]}}))["cpus"] == 3e9


@pytest.mark.parametrize(
    "name",
    [
        *("nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.5gb", "nvidia.com/gpu.shared", "gpu.intel.com/i915"),
        *("google.com/tpu", "habana.ai/gaudi", "aws.amazon.com/neuroncore"),
    ],
)
def test_gpu_counts_under_whatever_name_its_vendor_gives_it(name: str) -> None:
    assert numbers(job_options(of_container("1", "1Gi", **{name: 2})))["gpus"] == 2


def test_device_that_computes_nothing_is_no_gpu() -> None:
    assert numbers(job_options(of_container("1", "1Gi", **{"rdma/hca": 1})))["gpus"] == 0


def test_gpus_behind_claims_are_as_many_as_there_are() -> None:
    pod = of_container("1", "1Gi")
    pod["spec"]["resourceClaims"] = [{"name": "gpus", "resourceClaimName": "eight"}]

    assert numbers(job_options(pod))["gpus"] == UNLIMITED


def test_resources_of_the_pod_itself_count_where_they_are_more() -> None:
    pod = of_container("1", "1Gi")
    pod["spec"]["resources"] = {"limits": {"cpu": 8}}

    assert numbers(job_options(pod)) == {"cpus": 8e9, "memory": GIB, "gpus": 0}


def test_pods_of_additional_services_count_too() -> None:
    pod = {"spec": {"containers": [container("db", "2", "2Gi")]}}
    named = {"metadata": {"name": "x"}}
    template = {"metadata": {"labels": {"app": "x"}}, **pod}
    services = [
        {"apiVersion": "v1", "kind": "Pod", **named, **pod},
        {
            "config": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                **named,
                "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}}, "template": template},
            }
        },
        {"apiVersion": "batch/v1", "kind": "Job", **named, "spec": {"parallelism": 2, "template": template}},
        {"apiVersion": "v1", "kind": "ConfigMap", **named},
    ]

    assert numbers({"cpus": 1, "memory": "1g", "additional_services": services}) == {
        "cpus": 13e9,
        "memory": 13 * GIB,
        "gpus": 0,
    }


def test_service_on_every_node_has_no_limit() -> None:
    spec = {"selector": {}, "template": {"spec": {"containers": [container("x", "1")]}}}
    service = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x"}, "spec": spec}

    assert numbers({"cpus": 1, "additional_services": [service]})["cpus"] == UNLIMITED


def ray_job(**cluster: Any) -> dict[str, Any]:
    """Return a RayJob with one group of two workers."""
    group = {"replicas": 2, "maxReplicas": 9, "numOfHosts": 2, "template": of_container("2", "1Gi")}
    spec = {"headGroupSpec": {"template": of_container("1", "1Gi")}, "workerGroupSpecs": [group], **cluster}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {"entrypoint": "x", "rayClusterSpec": spec}}


def test_ray_job_counts_its_hosts_its_submitter_and_what_it_may_grow_to() -> None:
    assert numbers(ray_job())["cpus"] == 1e9 + 2 * 2 * 2e9 + 1e9
    assert numbers(ray_job(enableInTreeAutoscaling=True))["cpus"] == 1e9 + 9 * 2 * 2e9 + 1e9


def test_elastic_workers_count_as_many_as_they_may_become() -> None:
    workers = {"replicas": 2, "template": of_container("2", "1Gi")}
    workers["template"]["spec"]["containers"][0]["name"] = "pytorch"  # type: ignore[index]
    spec = {"elasticPolicy": {"maxReplicas": 5}, "pytorchReplicaSpecs": {"Worker": workers}}

    assert numbers({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": spec})["cpus"] == 10e9


def test_replicas_count_though_the_description_of_a_kind_does_not_name_them() -> None:
    spec = {"groups": [{"replicas": 4, "pod": of_container("1", "1Gi")}], "extra": of_container("3", "1Gi")}
    custom = {"pods": [{"template": "spec.groups.*.pod"}]}

    found = numbers({"apiVersion": "example.com/v1", "kind": "Experiment", "spec": spec, "custom": custom})

    assert found == {"cpus": 7e9, "memory": 5 * GIB, "gpus": 0}


@pytest.mark.parametrize("count", [-1, "4", 1.5, True])
def test_number_of_pods_that_is_none_is_refused(count: Any) -> None:
    job = ray_job()
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = count

    with pytest.raises(SpecError, match=r"workerGroupSpecs\[0\]\.replicas is .* must be a whole number, not below 0"):
        check_together(check_options(job))


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


@pytest.mark.parametrize("decoy", [[], [{}]])
def test_list_of_containers_above_pods_hides_none_of_them(decoy: list[dict[str, Any]]) -> None:
    worker = {"containers": [{"name": "w", "resources": {"limits": {"nvidia.com/gpu": 8}}}]}
    cluster = {"containers": decoy, "workers": [{"replicas": 2, "template": {"spec": worker}}]}

    found = [(pods.spec, pods.number) for pods in pods_in({"kind": "Any", "spec": cluster})]

    assert (worker, 2) in found
