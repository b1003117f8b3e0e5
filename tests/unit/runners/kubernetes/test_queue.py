"""Queues of `kubernetes` at the doors that people use: creating one, queuing an item, a dry run, an agent's plan."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import explain_launch
from prefect_launch.errors import LaunchError, QueueError, UnsafeSpecError
from prefect_launch.planning.plan import Request, preview_plan
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.registry import runner_class
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.testing import InMemoryApi
from tests.support.queue_config import make_config
from tests.unit.runners.kubernetes.plans import job_options, pod_manifest


def queue(config: dict[str, Any], variables: dict[str, Any] | None = None, **more: Any) -> QueueConfig:
    """Return the config of a queue."""
    return make_config("kubernetes", config, variables, **more)


def plan(config: QueueConfig, **asked: Any) -> RunPlan:
    """Return what an agent makes of an item of an image, with these options of its submitter."""
    variables = asked.pop("variables", {})
    spec = {
        "docker": {"docker_image": "registry.example.com/train:1"},
        "resource_args": {"kubernetes": asked},
        "template_variables": variables,
    }
    request = Request(spec=parse_spec(spec), item_id="i1", queue="q", config=config)
    return asyncio.run(preview_plan(request, MachineSettings(home=Path("/h")), None))


def test_manifest_of_the_reference_is_taken_with_its_variables_and_macros() -> None:
    pod = pod_manifest(image="${image_uri}", resources={"limits": {"cpu": "{{cpus}}", "memory": "{{memory}}"}})
    config = queue(
        {"resource_args": {"kubernetes": job_options(pod)}},
        {"cpus": {"type": "integer", "maximum": 4}, "memory": {"type": "string", "default": "1Gi"}},
    )

    made = plan(config, variables={"cpus": 2})

    container = made.options["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example.com/train:1"
    assert container["resources"]["limits"] == {"cpu": 2, "memory": "1Gi"}
    assert runner_class("kubernetes").preview(made)["manifest"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize(
    "config",
    [
        {"namspace": "x"},
        {"memory": "2x"},
        job_options(backoffLimt=1),
        job_options({"spec": {"containers": []}}),
        {"spec": {}},
    ],
)
def test_queue_that_no_cluster_would_take_is_not_made(config: dict[str, Any]) -> None:
    with pytest.raises(LaunchError):
        queue(config)


def test_submitter_sets_how_much_the_job_gets_and_nothing_else() -> None:
    config = queue({"namespace": "ml"})

    assert plan(config, cpus=2, m="2g", env={"A": "1"}).options["memory"] == "2g"
    with pytest.raises(UnsafeSpecError, match=r"Unsupported resource_args\.kubernetes option 'namespace'"):
        plan(config, namespace="kube-system")


def test_field_that_reaches_out_of_its_pod_is_refused_though_the_owner_allows_the_spec() -> None:
    config = queue({"namespace": "ml"}, submitter_options=("spec",))
    pod = {"spec": {**pod_manifest()["spec"], "hostNetwork": True}}

    with pytest.raises(UnsafeSpecError, match=r"spec\.template\.spec\.hostNetwork"):
        plan(config, spec={"template": pod})


def test_maximum_of_a_queue_holds_for_a_manifest_and_all_its_pods() -> None:
    pod = pod_manifest(resources={"limits": {"cpu": 1, "memory": "4Gi"}})

    with pytest.raises(QueueError, match=r"16.0 GiB \(in 4 pods\)"):
        queue({**job_options(pod, parallelism=4), "limits": {"memory": "8g"}})


def test_submitters_manifest_may_ask_for_no_more_than_the_queue_allows() -> None:
    config = queue({"limits": {"memory": "8g"}}, submitter_options=("spec",))
    big = pod_manifest(resources={"limits": {"cpu": 1, "memory": "64Gi"}})

    with pytest.raises(UnsafeSpecError, match=r"64\.0 GiB"):
        plan(config, spec={"template": big})
    assert plan(config, spec={"template": pod_manifest()}).options["memory"] == "8g"


def test_run_that_asks_for_nothing_gets_the_queues_maximum() -> None:
    assert plan(queue({"limits": {"memory": "8g", "cpus": 2}})).options == {"memory": "8g", "cpus": 2}


def test_dry_run_names_secrets_and_shows_none() -> None:
    config = queue({"env": {"TOKEN": "{{ prefect.blocks.secret.hf-token }}", "MODE": "quiet-mode"}})

    shown = json.dumps(runner_class("kubernetes").preview(plan(config)))

    assert "quiet-mode" not in shown


def test_dry_run_of_an_item_shows_no_value_of_a_manifests_variables(job_api: InMemoryApi) -> None:
    pod = pod_manifest(image="${image_uri}", env=[{"name": "OWN", "value": "owner-value"}])
    job_api.create_run_queue("k8s", type="kubernetes", config=job_options(pod))

    of_image = explain_launch(docker_image="registry.example.com/a:1", queue_name="k8s")
    of_code = explain_launch(job="train", queue_name="k8s", config={"overrides": {"run_config": {"lr": 0.1}}})

    assert of_image.creates["manifest"]["spec"]["template"]["spec"]["containers"][0]["env"][-1] == "OWN"
    assert "owner-value" not in of_image.model_dump_json()
    assert of_code.builds
