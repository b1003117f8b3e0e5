"""Runs of several pods: their end is told once none of them runs any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest

from prefect_launch.errors import ImagePullError
from prefect_launch.runners.base import Labels, RunPlan, RunState
from prefect_launch.runners.remote.kubernetes import events
from prefect_launch.runners.remote.kubernetes import runner as runner_module
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi
from tests.support.kubernetes_pods import JOBS, PODS, JobPods
from tests.support.waiting import until
from tests.unit.runners.kubernetes.scripted import LIMIT_SECONDS, plan_in, started

TEMPLATE = {"spec": {"containers": [{"name": "main"}], "restartPolicy": "Never"}}
TWO: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "spec": {"parallelism": 2, "completions": 2, "template": TEMPLATE},
}


def pod_of(server: KubernetesApi, name: str) -> Any:
    return server.store.get(PODS, "default", name)


async def failed_beside_another(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> tuple[str, asyncio.Task[Any], str]:
    """Start a Job of two pods, of which one fails, and the Job with it; return the name of the one that runs on."""
    plan = plan_in(tmp_path, **TWO)
    handle, pods = await started(runner, server, plan)
    first = pods.pods[0]["metadata"]["name"]
    pods.run()
    pods.create()
    pods.run()
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(plan.log_path.exists)
    pods.end_pod(3)
    pods.fail("BackoffLimitExceeded")
    return handle, watching, first


async def test_job_that_has_failed_has_not_ended_while_another_of_its_pods_runs(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    _, watching, first = await failed_beside_another(server, runner, tmp_path)
    [found] = await runner.find({Labels.AGENT: "box"})
    assert found.state is RunState.RUNNING
    done, _ = await asyncio.wait({watching}, timeout=1)
    assert not done
    server.store.patch(PODS, "default", first, {"status": {"phase": "Failed"}})
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).exit_code == 3


async def test_pods_that_go_on_after_the_end_of_their_job_are_ended(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_LATE_SECONDS", 0.2)
    _, watching, first = await failed_beside_another(server, runner, tmp_path)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).exit_code == 3
    assert server.asked(f"DELETE .*/pods/{first}") == 1


async def test_removal_waits_for_the_pods_of_the_run(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    pods.finish(3)
    name = pods.pods[0]["metadata"]["name"]
    server.store.holds_deletions = True
    removing = asyncio.create_task(runner.remove(handle))
    await until(lambda: server.asked(f"DELETE .*/jobs/{plan.name}") > 0)
    server.store.delete(JOBS, "default", plan.name, at_once=True, keeps_owned=True)
    done, _ = await asyncio.wait({removing}, timeout=1)
    assert not done
    server.store.delete(PODS, "default", name, at_once=True)
    with anyio.fail_after(LIMIT_SECONDS):
        await removing


async def beside_one_that_runs(server: KubernetesApi, runner: KubernetesRunner, plan: RunPlan) -> tuple[str, JobPods]:
    handle, pods = await started(runner, server, plan)
    pods.run()
    pods.create()
    return handle, pods


async def test_pod_that_can_never_start_ends_the_run_whose_other_pods_run(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path, **TWO, image_pull_timeout=0)
    handle, pods = await beside_one_that_runs(server, runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(plan.log_path.exists)
    pods.wait("ImagePullBackOff", 'Back-off pulling image "nope"')
    with anyio.fail_after(LIMIT_SECONDS), pytest.raises(ImagePullError, match="Back-off pulling image"):
        await watching


async def test_pod_that_waits_while_others_run_is_told(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KubernetesRunner, "part_seconds", 0.1)
    handle, pods = await beside_one_that_runs(server, runner, plan_in(tmp_path, **TWO))
    pods.cannot_be_scheduled("0/3 nodes are available: 3 Insufficient cpu.")
    told = asyncio.Queue[str]()
    watching = asyncio.create_task(runner.watch_parts(handle, told.put))
    with anyio.fail_after(LIMIT_SECONDS):
        assert await told.get() == "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu."
        await runner.stop(handle, 1.0)
        await watching


async def test_quota_that_keeps_a_later_pod_away_is_told_from_the_events_of_the_job(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KubernetesRunner, "part_seconds", 0.1)
    monkeypatch.setattr(events, "_FIRST_SECONDS", 0.1)
    handle, pods = await started(runner, server, plan_in(tmp_path, **TWO))
    pods.run()
    pods.event("FailedCreate", 'pods "x" is forbidden: exceeded quota: few', kind="Job")
    told = asyncio.Queue[str]()
    watching = asyncio.create_task(runner.watch_parts(handle, told.put))
    with anyio.fail_after(LIMIT_SECONDS):
        assert await told.get() == 'FailedCreate: pods "x" is forbidden: exceeded quota: few'
        await runner.stop(handle, 1.0)
        await watching


async def test_run_that_its_agent_stops_has_no_part_that_waits_and_nobody_else_as_its_cause(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KubernetesRunner, "part_seconds", 0.1)
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    told = asyncio.Queue[str]()
    watching = asyncio.create_task(runner.watch(handle, plan))
    of_parts = asyncio.create_task(runner.watch_parts(handle, told.put))
    await until(plan.log_path.exists)
    server.store.holds_deletions = True
    stopping = asyncio.create_task(runner.stop(handle, 30.0))
    await until(lambda: server.asked(f"DELETE .*/jobs/{plan.name}") > 0)
    done, _ = await asyncio.wait({watching}, timeout=1)  # The time of its grace.
    assert not done
    pods.end_pod(137)
    pods.fail("BackoffLimitExceeded")
    with anyio.fail_after(LIMIT_SECONDS):
        end = await watching
        await asyncio.gather(stopping, of_parts)
    assert (end.stopped, end.exit_code, end.error) == (True, 137, None)
    assert told.empty()
