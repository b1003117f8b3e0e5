"""What operators need of an object that is made held, and what they would retry, or wait for, by themselves."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.kubernetes.kinds import first
from prefect_launch.runners.remote.kubernetes.objects import build_objects
from prefect_launch.runners.remote.kubernetes.options import check_options, check_together
from tests.unit.runners.kubernetes.plans import ITEM, make_plan, pod_manifest


def ray_job(**spec: Any) -> dict[str, Any]:
    """Return a RayJob, with these fields in its spec."""
    head = pod_manifest(image="ray:2", imagePullPolicy="Always")
    head["spec"]["imagePullSecrets"] = [{"name": "regcred"}]
    cluster = {"headGroupSpec": {"template": head}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "spec": {"entrypoint": "python main.py", "rayClusterSpec": cluster, **spec},
    }


def made(options: dict[str, Any], **plan: Any) -> dict[str, Any]:
    """Return the manifest of a run."""
    return build_objects(make_plan(options, image=None, **plan)).manifest


def test_ray_job_is_held_as_kuberay_takes_it() -> None:
    spec = made(ray_job())["spec"]

    assert (spec["suspend"], spec["shutdownAfterJobFinishes"]) == (True, True)
    assert spec["ttlSecondsAfterFinished"] == 600
    assert made({**ray_job(), "ttl": "5min"})["spec"]["ttlSecondsAfterFinished"] == 300


def test_pod_that_submits_a_ray_job_has_the_runs_labels_and_the_heads_image() -> None:
    template = made({**ray_job(), "gpus": 4, "cpus": 2})["spec"]["submitterPodTemplate"]

    container = template["spec"]["containers"][0]
    assert template["metadata"]["labels"][Labels.ITEM] == ITEM
    assert (container["image"], container["imagePullPolicy"]) == ("ray:2", "Always")
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    assert template["spec"]["imagePullSecrets"] == [{"name": "regcred"}]
    assert template["spec"]["restartPolicy"] == "Never"


def test_pod_of_the_owners_that_submits_a_ray_job_gets_labels_alone() -> None:
    own = {"spec": {"restartPolicy": "Never", "containers": [{"name": "mine", "image": "submit:1"}]}}

    template = made(ray_job(submitterPodTemplate=own))["spec"]["submitterPodTemplate"]

    assert template["spec"]["containers"] == [{"name": "mine", "image": "submit:1", "env": []}]
    assert template["metadata"]["labels"][Labels.ITEM] == ITEM


@pytest.mark.parametrize("mode", ["HTTPMode", "SidecarMode"])
def test_ray_job_that_needs_no_pod_to_be_submitted_gets_none(mode: str) -> None:
    assert "submitterPodTemplate" not in made(ray_job(submissionMode=mode))["spec"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"shutdownAfterJobFinishes": False}, "spec.shutdownAfterJobFinishes is False; its operator holds"),
        ({"clusterSelector": {"ray.io/cluster": "c"}}, "use a queue of the resource 'ray'"),
        ({"deletionStrategy": {"onSuccess": {}}}, "spec.deletionStrategy does not go with"),
        ({"submissionMode": "InteractiveMode"}, "waits until somebody submits a job by hand"),
    ],
)
def test_ray_job_that_kuberay_would_refuse_or_wait_with_is_refused_first(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        check_together(check_options(ray_job(**spec)))

    assert words in str(refused.value)
    assert "resource_args.kubernetes.spec." in str(refused.value)


def replicas(**roles: dict[str, Any]) -> dict[str, Any]:
    return {role: {"replicas": 1, "template": deepcopy(template)} for role, template in roles.items()}


MPI = {
    "apiVersion": "kubeflow.org/v2beta1",
    "kind": "MPIJob",
    "spec": {"mpiReplicaSpecs": replicas(Launcher=pod_manifest(), Worker=pod_manifest())},
}
PYTORCH = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "spec": {"pytorchReplicaSpecs": replicas(Master=pod_manifest(name="pytorch"), Worker=pod_manifest(name="pytorch"))},
}
JOB_SET = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "spec": {"replicatedJobs": [{"name": "w", "template": {"spec": {"template": pod_manifest()}}}]},
}


@pytest.mark.parametrize(
    ("options", "path", "default", "own"),
    [
        (PYTORCH, "spec.pytorchReplicaSpecs.Master.restartPolicy", "Never", "OnFailure"),
        (PYTORCH, "spec.pytorchReplicaSpecs.Worker.restartPolicy", "Never", "ExitCode"),
        (MPI, "spec.mpiReplicaSpecs.Launcher.restartPolicy", "Never", "OnFailure"),
        (MPI, "spec.runPolicy.backoffLimit", 0, 3),
        (JOB_SET, "spec.replicatedJobs.0.template.spec.backoffLimit", 0, 2),
    ],
)
def test_operator_retries_nothing_that_its_owner_has_not_told_it_to(
    options: dict[str, Any], path: str, default: Any, own: Any
) -> None:
    above, _, name = path.rpartition(".")
    asked = deepcopy(options)
    if first(asked, above) is None:
        asked["spec"]["runPolicy"] = {}
    first(asked, above)[name] = own

    assert first(made(options), path) == default
    assert first(made(asked), path) == own


def test_command_of_an_mpi_job_runs_in_its_launcher_and_its_image_everywhere() -> None:
    manifest = build_objects(make_plan(MPI, command=("mpirun", "train"))).manifest

    launcher, worker = (manifest["spec"]["mpiReplicaSpecs"][role]["template"] for role in ("Launcher", "Worker"))
    assert launcher["spec"]["containers"][0]["command"] == ["mpirun", "train"]
    assert "command" not in worker["spec"]["containers"][0]
    assert worker["spec"]["containers"][0]["image"] == "registry.example.com/train:1"
    assert launcher["metadata"]["labels"][Labels.ITEM] == worker["metadata"]["labels"][Labels.ITEM] == ITEM
    assert first(manifest, "spec.runPolicy.suspend") is True
