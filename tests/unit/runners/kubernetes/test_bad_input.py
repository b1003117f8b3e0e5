"""Bad input for `kubernetes`: it is refused when a queue is made, an item is queued, and a job is launched."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import launch_add
from prefect_launch.errors import LaunchError, SpecError
from prefect_launch.planning.plan import Request, local_config, preview_plan
from prefect_launch.runners.base import RunPlan
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items
from tests.support.queue_config import make_config
from tests.unit.runners.kubernetes.plans import job_options, pod_manifest

IMAGE = "registry.example.com/train:1"
TWICE = {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}
LONG = "n" * 400

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "spec that is no object": ({"spec": "run"}, "it must be a mapping"),
    "template that is no object": (job_options("run"), "spec.template is 'run'; it must be a mapping"),
    "pod that is no object": (job_options({"spec": ["run"]}), "it must be a mapping"),
    "unknown option": ({"namspace": "ml"}, "Did you mean 'namespace'?"),
    "unknown field": (job_options(backoffLimt=1), "Did you mean 'backoffLimit'?"),
    "unknown field of a container": (job_options(pod_manifest(imagee="x")), "Did you mean 'image'?"),
    "unknown field of a service": (
        {"additional_services": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "specc": {}}]},
        "Did you mean 'spec'?",
    ),
    "two containers of one name": (job_options(TWICE), "is 'a', which"),
    "variable twice": (job_options(pod_manifest(env=[{"name": "A"}, {"name": "A"}])), "the variable 'A' twice"),
    "mount without its volume": (
        job_options(pod_manifest(volumeMounts=[{"name": "data", "mountPath": "/d"}])),
        "the pod has no volume of that name",
    ),
    "image that is none": ({"image": "UPPER:1"}, "'UPPER:1'"),
    "image of a container that is none": (job_options(pod_manifest(image="a b")), "containers[0].image"),
    "image on the agent's own machine": ({"image": "localhost:5000/x:1"}, "the nodes of a cluster cannot pull it"),
    "container's image on the agent's own machine": (
        job_options(pod_manifest(image="127.0.0.1:5000/x:1")),
        "the nodes of a cluster cannot pull it",
    ),
    "service's image on the agent's own machine": (
        {
            "additional_services": [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "x"},
                    "spec": {"containers": [{"name": "x", "image": "localhost:5000/x:1"}]},
                }
            ]
        },
        "the nodes of a cluster cannot pull it",
    ),
    "namespace of 400 characters": ({"namespace": LONG}, "at most 63 small letters"),
    "account of 400 characters": ({"service_account": LONG}, "at most 253 small letters"),
    "container of 400 characters": (job_options(pod_manifest(name=LONG)), "at most 63 small letters"),
    "label of 400 characters": ({"labels": {"team": LONG}}, "at most 63 letters"),
    "key of a label of 400 characters": ({"labels": {LONG: "x"}}, "a key must be a name of at most 63 letters"),
    "label out of the alphabet": ({"labels": {"team": "vision & speech"}}, "a label's value must be"),
    "key out of the alphabet": ({"annotations": {"a b": "x"}}, "has the key 'a b'"),
    "label of a pod out of the alphabet": (
        job_options({**pod_manifest(), "metadata": {"labels": {"team": "ü"}}}),
        "metadata.labels.team is 'ü'",
    ),
    "label that is no text": ({"labels": {"version": 3}}, "it must be text. Put it in quotes"),
    "label of the agent's": ({"labels": {"prefect-launch.item": "x"}}, "say whose run an object is"),
    "annotation of the agent's": (
        {**job_options(), "metadata": {"annotations": {"prefect-launch.hold": "suspend"}}},
        "say whose run an object is",
    ),
    "number of pods below 0": (job_options(parallelism=-1), "must not be below 0"),
    "job that would start for ever": (
        job_options({"spec": {**pod_manifest()["spec"], "restartPolicy": "Always"}}),
        "'Never' or 'OnFailure'",
    ),
    "kind that is not known": ({**job_options(), "kind": "Experiment"}, "is not known"),
}
EACH_BAD_INPUT = pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)


@EACH_BAD_INPUT
def test_owner_is_told_when_the_queue_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError) as refused:
        make_config("kubernetes", options)

    assert words in str(refused.value)


@EACH_BAD_INPUT
def test_submitter_is_told_before_anything_is_queued(job_api: InMemoryApi, options: dict[str, Any], words: str) -> None:
    allowed = [name for name in options if name != "namspace"]
    job_api.create_run_queue("k8s", type="kubernetes", config={}, submitter_options=allowed)

    with pytest.raises(LaunchError) as refused:
        launch_add(docker_image=IMAGE, queue_name="k8s", resource_args={"kubernetes": options})

    assert words in str(refused.value) or "option 'namspace'" in str(refused.value)
    assert items(job_api) == []


def planned(**options: Any) -> RunPlan:
    """Return what `launch` plans for an image with these options, without a queue."""
    spec = parse_spec({"docker": {"docker_image": IMAGE}, "resource_args": {"kubernetes": options}})
    request = Request(spec=spec, item_id="i1", queue=None, config=local_config("kubernetes"))
    return asyncio.run(preview_plan(request, MachineSettings(home=Path("/h")), None))


@EACH_BAD_INPUT
def test_caller_is_told_before_anything_is_launched(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError) as refused:
        planned(**options)

    # A caller sets what submitters may; the rest stands in their kubeconfig.
    assert words in str(refused.value) or "is for a queue's owner to set" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus": "many"}, "'many'"),
        ({"memory": "2x"}, "'2x'"),
        ({"gpus": -1}, "-1"),
        ({"env": {"1A": "x"}}, "no digit first"),
    ],
)
def test_bad_amount_is_told_before_anything_is_launched(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        planned(**options)

    assert words in str(refused.value)


def test_image_of_the_agents_own_machine_is_refused_before_it_is_queued_for_a_cluster(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("k8s", type="kubernetes", config={})
    job_api.create_run_queue("near", type="kubernetes", config={"node_registries": ["localhost:5000"]})

    with pytest.raises(LaunchError, match="the nodes of a cluster cannot pull it"):
        launch_add(docker_image="localhost:5000/x:1", queue_name="k8s")

    assert items(job_api) == []
    assert launch_add(docker_image="localhost:5000/x:1", queue_name="near")
