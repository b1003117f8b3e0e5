"""Streams of changes: what breaks, falls silent or is refused hides no end, and disturbs no other."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import anyio
import pytest

from prefect_launch.errors import UnreachableError
from prefect_launch.runners.base import Labels, RunState
from prefect_launch.runners.remote.jobs import JobChange, RunHandle
from prefect_launch.runners.remote.kubernetes import client, watch
from prefect_launch.runners.remote.kubernetes.handles import KubernetesHandle
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from prefect_launch.runners.remote.kubernetes.watch import JOBS, SeenRun
from tests.support import kubernetes_pods as pods_support
from tests.support.kubernetes_api import KubernetesApi
from tests.support.waiting import until
from tests.unit.runners.kubernetes.scripted import LIMIT_SECONDS, plan_in, started


async def test_call_that_fails_leaves_the_streams_over_other_connections_alone(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(lambda: server.asked("watch=true") == 2)
    server.hang("GET /version")
    with monkeypatch.context() as hurried:
        hurried.setattr(client, "_CALL_SECONDS", 0.5)
        with pytest.raises(UnreachableError, match="does not answer"):
            await runner.ping()
    server.wake()
    await runner.ping()
    pods.finish(3)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).exit_code == 3
    assert server.asked("watch=true") == 2


async def test_stop_is_seen_though_the_connection_of_the_watch_is_dead(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_SILENCE_SECONDS", 600.0)
    handle, pods = await started(runner, server, plan_in(tmp_path))
    pods.run()
    server.mute = {"jobs", "pods"}
    with anyio.fail_after(LIMIT_SECONDS):
        await runner.stop(handle, 1.0)


async def test_silence_that_is_too_long_makes_the_watch_list_again(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_SILENCE_SECONDS", 0.5)
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(plan.log_path.exists)
    server.mute = {"jobs", "pods"}
    pods.finish(3)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).exit_code == 3


async def test_watch_of_an_overloaded_cluster_gets_the_pause_that_it_asks_for(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    server.answer("GET .*/jobs.*watch=true", 429, "TooManyRequests", "slow down", headers={"Retry-After": "2"})
    handle, pods = await started(runner, server, plan)
    begun = time.monotonic()
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(lambda: server.asked("GET .*/jobs.*watch=true") == 2)
    assert time.monotonic() - begun >= 2
    pods.run()
    pods.finish(0)
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).succeeded


async def test_run_that_is_another_ones_by_now_is_not_released(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle = await runner.create(plan)
    said = 'Job.batch "x" is invalid: metadata.uid: Invalid value: "u": field is immutable'
    server.answer("PATCH .*/jobs", 422, "Invalid", said)
    await runner.start(handle)
    assert server.asked("PATCH .*/jobs") == 1


async def test_cause_of_an_end_is_asked_for_where_the_pods_stream_is_behind_that_of_the_job(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(plan.log_path.exists)
    pods.end_pod(143)
    await until(lambda: bool((run := runner._run(KubernetesHandle.parse(handle.split("@")[0]))) and _has_failed(run)))
    server.mute = {"pods"}
    pods.disrupt("PreemptionByScheduler")
    pods.fail("BackoffLimitExceeded")
    with anyio.fail_after(LIMIT_SECONDS):
        assert (await watching).preempted


def _has_failed(run: SeenRun) -> bool:
    return any(pod["status"].get("phase") == "Failed" for pod in run.live_pods)


async def test_change_of_a_run_that_cannot_be_asked_for_or_is_removed_meanwhile_breaks_no_other(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    changes = runner.changes(runner.part_of(RunHandle.parse(handle).job))
    with anyio.fail_after(LIMIT_SECONDS):
        assert await anext(changes) == JobChange()
        job = RunHandle.parse(handle).job
        assert await runner.poll([job])
        said = 'jobs.batch is forbidden: User "agent" cannot list resource "jobs"'
        server.answer("GET .*/jobs[?].*limit", 403, "Forbidden", said, times=1000)
        pods.fail("BackoffLimitExceeded")
        while (change := await anext(changes)) != JobChange(job):
            assert change.handle == job
        server.heal()
        watched = runner._watch(KubernetesHandle.parse(job).place)
        seeing = asyncio.create_task(watched.refresh(JOBS, plan.name))
        await asyncio.sleep(0)
        watched.forget(plan.name)
        assert (await seeing).job is not None


@pytest.mark.parametrize("keeps_owner", [True, False])
async def test_pods_that_run_on_without_their_job_are_found_and_stopped_by_an_agent_that_starts_again(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, keeps_owner: bool
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    [pod] = pods.pods
    server.store.delete(pods_support.JOBS, "default", plan.name, keeps_owned=True)
    if not keeps_owner:  # As with --cascade=orphan.
        server.store.patch(
            pods_support.PODS, "default", pod["metadata"]["name"], {"metadata": {"ownerReferences": None}}
        )
    again = KubernetesRunner(tmp_path / "home")
    [found] = await again.find({Labels.ITEM: plan.item_id})
    assert (found.handle, found.state) == (handle, RunState.RUNNING)
    watching = asyncio.create_task(again.watch(handle, plan))
    await until(plan.log_path.exists)
    await again.find({})
    assert not watching.done()
    with anyio.fail_after(LIMIT_SECONDS):
        await again.stop(handle, 1.0)
        assert (await watching).stopped
    assert server.store.list(pods_support.PODS) == []
    await again.aclose()


async def test_pods_that_have_ended_without_their_job_tell_their_end_and_are_removed(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    pods.end_pod(3)
    server.store.delete(pods_support.JOBS, "default", plan.name, keeps_owned=True)
    again = KubernetesRunner(tmp_path / "home")
    with anyio.fail_after(LIMIT_SECONDS):
        end = await again.watch(handle, plan)
        await again.remove(handle)
    assert end.exit_code == 3
    assert "somebody else deleted the Job" in str(end.error)
    assert server.store.list(pods_support.PODS) == []
    await again.aclose()
