"""Submissions that fail half-way: nothing of them stays, or it is found again and removed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest

from prefect_launch.core.masking import Mask
from prefect_launch.errors import LaunchError, QueueError, UnreachableError
from prefect_launch.runners.base import Labels, RunState
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi
from tests.support.kubernetes_pods import JOBS
from tests.support.waiting import until
from tests.unit.runners.kubernetes.scripted import LIMIT_SECONDS, plan_in

VOLCANO = ("apis/batch.volcano.sh/v1alpha1", "jobs")
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "redis"},
    "spec": {"containers": [{"name": "r", "image": "redis:1"}]},
}
SETTINGS = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}}


def everything(server: KubernetesApi) -> list[Any]:
    kinds = [JOBS, VOLCANO, ("api/v1", "pods"), ("api/v1", "secrets"), ("api/v1", "configmaps")]
    return [one for kind in kinds for one in server.store.list(kind)]


async def test_service_that_does_not_become_ready_leaves_nothing_behind(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path, additional_services=[{"config": POD, "wait_timeout": 1}])
    with pytest.raises(QueueError, match="was not ready"):
        await runner.create(plan)
    assert everything(server) == []


async def test_secret_that_is_refused_leaves_nothing_behind_of_a_kind_that_cannot_be_held(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    server.custom["jobs"] = ("batch.volcano.sh/v1alpha1", "Job")
    said = 'secrets is forbidden: User "agent" cannot create resource "secrets" in API group ""'
    server.answer("POST .*/secrets", 403, "Forbidden", said)
    plan = plan_in(tmp_path, **volcano()).model_copy(
        update={"env": {"TOKEN": "a-secret-token"}, "mask": Mask(["a-secret-token"])}
    )
    with pytest.raises(LaunchError, match="'create' on 'secrets'"):
        await runner.create(plan)
    assert server.asked("POST .*/batch.volcano.sh/.*/jobs") == 1
    assert everything(server) == []


@pytest.mark.parametrize("waits", [True, False])
async def test_pods_of_a_kind_that_cannot_be_held_wait_for_the_services_that_are_to_be_ready(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, waits: bool
) -> None:
    server.custom["jobs"] = ("batch.volcano.sh/v1alpha1", "Job")
    services = [{"config": POD, "wait_timeout": 600, "wait_for_ready": waits}]
    plan = plan_in(tmp_path, **volcano(), additional_services=services)
    creating = asyncio.create_task(runner.create(plan))
    if waits:
        await until(lambda: server.asked("GET .*/pods/redis") > 0)
        assert server.store.list(("api/v1", "configmaps")) == []
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        server.store.patch(("api/v1", "pods"), "default", "redis", {"status": ready})
    with anyio.fail_after(LIMIT_SECONDS):
        await creating
    [job] = server.store.list(VOLCANO)
    pod = job["spec"]["tasks"][0]["template"]["spec"]
    mounted = [one["configMap"]["name"] for one in pod.get("volumes") or () if "configMap" in one]
    made = server.store.list(("api/v1", "configmaps"))
    assert mounted == [one["metadata"]["name"] for one in made] == ([f"{plan.name}-ready"] if waits else [])
    assert all(one["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"] for one in made)


def volcano() -> dict[str, Any]:
    tasks = [{"name": "worker", "replicas": 1, "template": {"spec": {"containers": [{"name": "main"}]}}}]
    return {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "spec": {"tasks": tasks}}


async def test_submission_that_is_given_up_leaves_nothing_behind(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path, additional_services=[{"config": POD, "wait_timeout": 600}])
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(runner.create, plan)
            await until(lambda: server.asked("GET .*/pods/redis") > 0)
            group.cancel_scope.cancel()
    assert everything(server) == []


async def test_job_whose_answer_was_lost_and_that_cannot_be_asked_for_is_removed(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    server.answer("POST .*/jobs", 500, "InternalError", "etcd timed out", times=3, done_first=True)
    server.answer("GET .*/jobs/", 503, "ServiceUnavailable", "away", times=3)
    with pytest.raises(UnreachableError):
        await runner.create(plan_in(tmp_path))
    assert everything(server) == []


async def test_what_cannot_be_removed_then_is_found_as_never_started_and_taken_up_by_the_next_try(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path, additional_services=[SETTINGS])
    server.answer("POST .*/configmaps", 503, "ServiceUnavailable", "away", times=3)
    server.answer("DELETE .*/jobs", 503, "ServiceUnavailable", "away", times=3)
    with pytest.raises(UnreachableError):
        await runner.create(plan)
    [found] = await runner.find({Labels.ITEM: plan.item_id})
    # The housekeeping removes what was created and not started, once its item has ended.
    assert (found.is_complete, found.state) == (False, RunState.CREATED)
    await runner.create(plan)
    [found] = await runner.find({Labels.ITEM: plan.item_id})
    assert found.is_complete
