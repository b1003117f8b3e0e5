"""The runner of Kubernetes on a server of today: what it answers, what becomes of pods there, and what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from prefect_launch.errors import AgentConfigError, LaunchError, NoRoomError, RunLostError, SpecError, UnreachableError
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi
from tests.support.kubernetes_pods import JOBS, JobPods
from tests.unit.runners.kubernetes.scripted import LIMIT_SECONDS, end_of, plan_in, started

Happening = Callable[[JobPods], None]


async def test_job_is_held_by_suspend_and_released(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle = await runner.create(plan)
    pods = JobPods(server, "default", plan.name)
    assert pods.job["spec"]["suspend"] is True
    await runner.start(handle)
    assert pods.job["spec"]["suspend"] is False


def evicted(pods: JobPods) -> None:
    pods.evict()
    pods.fail("BackoffLimitExceeded")


def disrupted(reason: str) -> Happening:
    def happens(pods: JobPods) -> None:
        pods.disrupt(reason)
        pods.fail("BackoffLimitExceeded")

    return happens


def failed_by_policy(pods: JobPods) -> None:
    pods.end_pod(42)
    pods.fail("PodFailurePolicy", "exit code 42 matches FailJob rule 0")


ENDS: dict[str, tuple[Happening, dict[str, Any]]] = {
    "done": (lambda pods: pods.finish(0), {"exit_code": 0, "preempted": False}),
    "failed": (lambda pods: pods.finish(3), {"exit_code": 3, "preempted": False, "oom_killed": False}),
    "out of memory": (lambda pods: pods.finish(137, reason="OOMKilled"), {"oom_killed": True, "preempted": False}),
    "evicted": (evicted, {"preempted": True}),
    "preempted": (disrupted("PreemptionByScheduler"), {"preempted": True}),
    "drained node": (disrupted("EvictionByEvictionAPI"), {"preempted": True}),
    "lost node": (disrupted("DeletionByTaintManager"), {"preempted": True}),
    "deadline": (lambda pods: pods.fail("DeadlineExceeded", "Job was active longer"), {"timed_out": True}),
    "failure policy": (failed_by_policy, {"exit_code": 42, "preempted": False}),
}


@pytest.mark.parametrize("what", ENDS)
async def test_end_of_a_run_tells_its_cause(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, what: str
) -> None:
    happens, expected = ENDS[what]
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    end = await end_of(runner, handle, plan, lambda: happens(pods))
    assert end.model_dump(include=set(expected)) == expected


async def test_native_sidecar_that_is_killed_at_the_end_is_no_failure_of_the_job(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    sidecar = {"name": "proxy", "image": "registry.example/proxy:1", "restartPolicy": "Always"}
    container = {"name": "main", "image": "registry.example/train:1"}
    spec = {"template": {"spec": {"initContainers": [sidecar], "containers": [container], "restartPolicy": "Never"}}}
    plan = plan_in(tmp_path, apiVersion="batch/v1", kind="Job", spec=spec)
    handle, pods = await started(runner, server, plan)
    pods.run()
    end = await end_of(runner, handle, plan, lambda: pods.finish(0))
    assert (end.exit_code, end.error) == (0, None)


async def test_overloaded_server_is_asked_again_and_a_lost_answer_makes_no_second_job(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    server.answer("POST .*/jobs", 429, "TooManyRequests", "slow down", headers={"Retry-After": "1"})
    server.answer("POST .*/jobs", 500, "InternalError", "etcdserver: request timed out", done_first=True)
    plan = plan_in(tmp_path)
    await runner.create(plan)
    assert server.asked("POST .*/jobs") == 3
    assert [job["metadata"]["name"] for job in server.store.list(("apis/batch/v1", "jobs"))] == [plan.name]


RACES = {
    "quota": 'Operation cannot be fulfilled on resourcequotas "small": the object has been modified; please apply your'
    " changes to the latest version and try again",
    "object": 'Operation cannot be fulfilled on jobs.batch "x": the object has been modified; please apply your changes'
    " to the latest version and try again",
}


@pytest.mark.parametrize("of", RACES)
async def test_request_that_has_raced_with_anothers_is_made_again(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, of: str
) -> None:
    for method in ("POST", "PATCH"):
        server.answer(f"{method} .*/jobs", 409, "Conflict", RACES[of], times=2)
    plan = plan_in(tmp_path)
    handle = await runner.create(plan)
    await runner.start(handle)
    assert not JobPods(server, "default", plan.name).is_held()
    server.answer("DELETE .*/jobs", 409, "Conflict", RACES[of], times=2)
    await runner.stop(handle, 1.0)
    assert server.store.list(JOBS) == []


async def test_job_that_races_again_and_again_waits_in_its_queue_and_stays_to_be_released(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    handle = await runner.create(plan_in(tmp_path))
    server.answer("(POST|PATCH) .*/jobs", 409, "Conflict", RACES["object"], times=6)
    with pytest.raises(NoRoomError, match="asked again later"):
        await runner.start(handle)
    with pytest.raises(NoRoomError, match="asked again later"):
        await runner.create(plan_in(tmp_path))
    await runner.start(handle)
    [job] = server.store.list(JOBS)
    assert job["spec"]["suspend"] is False


REFUSALS: dict[str, tuple[int, str, str, type[LaunchError], str]] = {
    "quota": (
        403,
        "Forbidden",
        'jobs.batch "x" is forbidden: exceeded quota: small, requested: count/jobs.batch=1, used: 1, limited: 1',
        UnreachableError,
        "exceeded quota",
    ),
    "webhook": (
        500,
        "InternalError",
        'Internal error occurred: failed calling webhook "kueue.example.com": connect: connection refused',
        NoRoomError,
        "kueue.example.com.*asked again later",
    ),
    "right": (
        403,
        "Forbidden",
        'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"',
        AgentConfigError,
        "'create' on 'jobs'",
    ),
    "manifest": (
        422,
        "Invalid",
        'Job.batch "x" is invalid: spec.template: Required value',
        SpecError,
        "Required value",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_refused_job_is_the_matter_of_who_can_mend_it_and_leaves_nothing_behind(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path, what: str
) -> None:
    code, reason, message, error, said = REFUSALS[what]
    server.answer("POST .*/jobs", code, reason, message, times=3)
    with pytest.raises(error, match=said):
        await runner.create(plan_in(tmp_path))
    assert server.store.list(("apis/batch/v1", "jobs")) == []


async def test_token_that_was_renewed_in_its_file_is_found(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    await runner.ping()
    server.token = "renewed"
    with pytest.raises(UnreachableError, match="expired or is"):
        await runner.ping()
    server.write_kubeconfig(tmp_path / "kubeconfig")
    await runner.ping()


async def test_run_is_followed_to_its_end_over_broken_and_forgotten_watches(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()

    def happens() -> None:
        server.expire_watches()
        server.answer("GET .*watch=true", 500, "InternalError", "etcd leader changed", times=2)
        pods.finish(3)
        server.cut()

    assert (await end_of(runner, handle, plan, happens)).exit_code == 3


async def test_log_that_is_cut_again_and_again_has_no_gap_and_no_repeat(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    (pod,) = (pod["metadata"]["name"] for pod in pods.pods)
    container = server.store.get(("api/v1", "pods"), "default", pod)["spec"]["containers"][0]["name"]
    watching = asyncio.create_task(runner.watch(handle, plan))
    for part in range(5):
        server.log("default", pod, container, *(f"line {part}.{at}" for at in range(20)))
        with anyio.fail_after(LIMIT_SECONDS):
            while not (plan.log_path.exists() and f"line {part}.19\n" in plan.log_path.read_text()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.cut()
    server.end_log("default", pod, container)
    pods.finish(0)
    with anyio.fail_after(LIMIT_SECONDS):
        end = await watching
    assert (end.exit_code, end.log_complete) == (0, True)
    assert plan.log_path.read_text().splitlines() == [f"line {part}.{at}" for part in range(5) for at in range(20)]


async def test_pod_that_waits_tells_why(server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path) -> None:
    plan, told = plan_in(tmp_path), asyncio.Queue[str]()
    handle, pods = await started(runner, server, plan)
    pods.cannot_be_scheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    waiting = asyncio.create_task(runner.wait_running(handle, told.put))
    with anyio.fail_after(LIMIT_SECONDS):
        assert "Insufficient nvidia.com/gpu" in await told.get()
        pods.run()
        await waiting


async def test_job_that_is_deleted_while_it_waits_is_lost_and_is_not_said_to_run(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    plan, told = plan_in(tmp_path), asyncio.Queue[str]()
    handle, pods = await started(runner, server, plan)
    pods.cannot_be_scheduled()
    waiting = asyncio.create_task(runner.wait_running(handle, told.put))
    with anyio.fail_after(LIMIT_SECONDS):
        await told.get()
        server.store.delete(JOBS, "default", plan.name)
        with pytest.raises(RunLostError, match=f"somebody else deleted the Job '{plan.name}'"):
            await waiting


async def test_stop_is_proved_by_the_end_of_the_pods_and_not_by_that_of_the_job(
    server: KubernetesApi, runner: KubernetesRunner, tmp_path: Path
) -> None:
    server.store.holds_deletions = True
    plan = plan_in(tmp_path)
    handle, pods = await started(runner, server, plan)
    pods.run()
    stopping = asyncio.create_task(runner.stop(handle, 1.0))
    with anyio.fail_after(LIMIT_SECONDS):
        while not server.asked(f"DELETE .*/jobs/{plan.name}"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert not stopping.done()
        pods.end_pod(143, signal=15)
        await stopping
