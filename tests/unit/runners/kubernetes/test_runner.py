"""The runner of Kubernetes against answers that a real cluster of the tests does not give on demand."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.errors import AgentConfigError, LaunchError, NoRoomError, QueueError, SpecError, UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan
from prefect_launch.runners.remote.kubernetes import client
from prefect_launch.runners.remote.kubernetes.errors import LoginError
from prefect_launch.runners.remote.kubernetes.holding import HOLD, QUEUE_LABEL
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JOBS, JobPods
from tests.unit.runners.kubernetes.plans import pod_manifest

LIMIT_SECONDS = 60.0


class Bench:
    """A runner, and the scripted server that it speaks to."""

    def __init__(self, api: KubernetesApi, folder: Path) -> None:
        self.api, self.folder = api, folder
        self.kubeconfig = api.write_kubeconfig(folder / "kubeconfig")
        self.runner = KubernetesRunner(folder / "home")

    def plan(self) -> RunPlan:
        item = str(uuid4())
        (self.folder / item).mkdir()
        labels = {Labels.ITEM: item, Labels.ATTEMPT: "1", Labels.CLAIM: "c1"}
        return RunPlan(
            item_id=item, run_id="r", run_dir=self.folder / item, image="busybox:1", command=("train",), labels=labels
        )

    async def running(self, plan: RunPlan) -> tuple[JobPods, asyncio.Task[ExitStatus]]:
        """Start a run, let its pod run, and follow it; return once its log is read."""
        handle = await self.runner.create(plan)
        await self.runner.start(handle)
        pods = JobPods(self.api, "default", plan.name)
        assert not pods.is_held()
        pod = pods.create()
        pods.run()
        self.api.log("default", pod, container_of(pods), "first")
        watching = asyncio.create_task(self.runner.watch(handle, plan))
        await until_logged(plan, b"first\n")
        return pods, watching


def container_of(pods: JobPods) -> str:
    name: str = pods.pods[0]["spec"]["containers"][0]["name"]
    return name


async def until_logged(plan: RunPlan, text: bytes) -> None:
    due = time.monotonic() + LIMIT_SECONDS
    while not (plan.log_path.exists() and plan.log_path.read_bytes() == text):
        assert time.monotonic() < due, plan.log_path.read_bytes()
        await asyncio.sleep(0.02)


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    """A scripted server."""
    with scripted_api() as api:
        yield api


@pytest.fixture
async def bench(api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A runner whose kubeconfig leads to the server."""
    bench = Bench(api, tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(bench.kubeconfig))
    yield bench
    await bench.runner.aclose()


def _end(pods: JobPods, api: KubernetesApi, code: int) -> None:
    for pod in pods.pods:
        api.end_log("default", pod["metadata"]["name"], container_of(pods))
    pods.finish(code)


async def test_run_goes_on_over_a_watch_and_a_log_that_are_cut(bench: Bench) -> None:
    plan = bench.plan()
    pods, watching = await bench.running(plan)
    bench.api.cut()
    pod = pods.pods[0]["metadata"]["name"]
    bench.api.log("default", pod, container_of(pods), "second", "third")
    await until_logged(plan, b"first\nsecond\nthird\n")
    bench.api.cut()
    _end(pods, bench.api, 3)
    end = await asyncio.wait_for(watching, LIMIT_SECONDS)
    assert (end.exit_code, end.log_complete) == (3, True)
    assert plan.log_path.read_bytes() == b"first\nsecond\nthird\n"


async def test_version_that_the_cluster_has_forgotten_makes_the_watch_list_again(bench: Bench) -> None:
    plan = bench.plan()
    pods, watching = await bench.running(plan)
    lists = bench.api.asked(r"GET /apis/batch/v1/namespaces/default/jobs\?labelSelector=[^&]*&limit")
    bench.api.expire_watches()
    _end(pods, bench.api, 3)
    assert (await asyncio.wait_for(watching, LIMIT_SECONDS)).exit_code == 3
    assert bench.api.asked(r"GET /apis/batch/v1/namespaces/default/jobs\?labelSelector=[^&]*&limit") > lists


async def test_job_whose_end_is_told_before_its_pods_are_keeps_its_log_and_its_outputs(bench: Bench) -> None:
    plan = bench.plan()
    handle = await bench.runner.create(plan)
    await bench.runner.start(handle)
    watching = asyncio.create_task(bench.runner.watch(handle, plan))
    while not bench.api.asked(r"/pods\?watch=true"):  # noqa: ASYNC110 - the server is in another thread
        await asyncio.sleep(0.02)
    bench.api.hang(r"/pods\?watch=true")
    bench.api.cut()
    pods = JobPods(bench.api, "default", plan.name)
    pod = pods.create()
    bench.api.log("default", pod, container_of(pods), "all of it")
    pods.finish(0, message='{"acc": 0.5}')
    end = await asyncio.wait_for(watching, LIMIT_SECONDS)
    assert (end.exit_code, end.warnings) == (0, ())
    assert plan.log_path.read_bytes() == b"all of it\n"
    assert (plan.output_dir / "outputs.json").read_text() == '{"acc": 0.5}'
    bench.api.wake()


async def test_jobs_of_one_namespace_share_one_watch(bench: Bench) -> None:
    plans = [bench.plan() for _ in range(5)]
    started = [await bench.running(plan) for plan in plans]
    for pods, _ in started:
        _end(pods, bench.api, 0)
    for _, watching in started:
        assert (await asyncio.wait_for(watching, LIMIT_SECONDS)).succeeded
    assert bench.api.asked(r"/jobs\?watch=true") == 1
    assert bench.api.asked(r"/pods\?watch=true") == 1


async def test_overloaded_cluster_gets_the_pause_that_it_asks_for(bench: Bench) -> None:
    bench.api.answer("POST .*/jobs", 429, "TooManyRequests", "slow down", headers={"Retry-After": "1"})
    begun = time.monotonic()
    await bench.runner.create(bench.plan())
    assert time.monotonic() - begun >= 1
    assert bench.api.asked("POST .*/jobs") == 2


async def test_failure_that_was_none_makes_no_second_job(bench: Bench) -> None:
    plan = bench.plan()
    bench.api.answer("POST .*/jobs", 500, "InternalError", "etcdserver: leader changed", done_first=True)
    await bench.runner.create(plan)
    assert len(bench.api.store.list(JOBS, "default")) == 1
    assert len(await bench.runner.find({Labels.ITEM: plan.item_id})) == 1


async def test_expired_token_is_told_and_the_renewed_one_is_read_from_the_kubeconfig(bench: Bench) -> None:
    plan = bench.plan()
    bench.api.token = "renewed"
    with pytest.raises(LoginError, match="Renew it in the kubeconfig"):
        await bench.runner.create(plan)
    bench.api.write_kubeconfig(bench.kubeconfig)
    await bench.runner.create(plan)


async def test_token_that_is_renewed_while_a_run_goes_on_is_taken_without_a_word(bench: Bench) -> None:
    plan = bench.plan()
    pods, watching = await bench.running(plan)
    bench.api.token = "renewed"
    bench.api.write_kubeconfig(bench.kubeconfig)
    bench.api.cut()
    _end(pods, bench.api, 3)
    assert (await asyncio.wait_for(watching, LIMIT_SECONDS)).exit_code == 3


async def test_missing_right_is_told_to_the_operator_and_a_full_quota_makes_the_item_wait(bench: Bench) -> None:
    said = 'jobs.batch is forbidden: User "agent" cannot create resource "jobs" in API group "batch"'
    bench.api.answer("POST .*/jobs", 403, "Forbidden", said)
    with pytest.raises(AgentConfigError, match="a Role with the verb 'create' on 'jobs'"):
        await bench.runner.create(bench.plan())
    bench.api.answer("POST .*/jobs", 403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: few')
    with pytest.raises(NoRoomError, match="exceeded quota: few"):
        await bench.runner.create(bench.plan())


async def test_cluster_that_hangs_does_not_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = bench.plan()
    await bench.runner.ping()
    bench.api.hang("POST .*/jobs")
    with monkeypatch.context() as hurried:
        hurried.setattr(client, "_CALL_SECONDS", 0.5)
        with pytest.raises(UnreachableError, match="does not answer"):
            await bench.runner.create(plan)
    bench.api.wake()
    await bench.runner.create(plan)
    assert len(bench.api.store.list(JOBS, "default")) == 1


async def test_run_whose_node_was_taken_away_is_preempted(bench: Bench) -> None:
    pods, watching = await bench.running(bench.plan())
    pods.disrupt("PreemptionByScheduler", "preempted by a more important pod")
    bench.api.end_log("default", pods.pods[0]["metadata"]["name"], container_of(pods))
    pods.fail("BackoffLimitExceeded")
    end = await asyncio.wait_for(watching, LIMIT_SECONDS)
    assert end.preempted
    assert "PreemptionByScheduler" in end.describe()


async def test_agent_without_a_cluster_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(AgentConfigError, match="Set KUBECONFIG to a kubeconfig"):
        await KubernetesRunner(tmp_path).ping()


async def test_context_that_is_not_in_the_kubeconfig_is_told_with_those_that_are(bench: Bench) -> None:
    plan = bench.plan().model_copy(update={"options": {"context": "prod"}})
    with pytest.raises(AgentConfigError, match=r"has no context 'prod'\. It has: scripted"):
        await bench.runner.create(plan)


async def test_diagnosis_names_the_rights_that_are_missing(bench: Bench) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    bench.api.store.create(("api/v1", "namespaces"), "", namespace)
    bench.api.denied = {"watch pods", "get pods/log", "list events"}
    [reached, rights] = await bench.runner.diagnose({"namespace": "{{namespace}}"})
    assert (reached.is_ok, reached.detail) == (True, "version 1.34, namespace default")
    assert (rights.is_ok, rights.detail) == (
        False,
        "Give the agent's account a Role in default with: watch pods, get pods/log.",
    )
    bench.api.denied = {"list events"}
    [_, rights] = await bench.runner.diagnose({"namespace": "{{namespace}}"})
    assert rights.is_ok
    assert "without list events, why a job waits may not be told" in rights.detail


# --- what is made, and when ---


async def test_release_takes_the_mark_of_the_hold_away(bench: Bench) -> None:
    plan = bench.plan()
    handle = await bench.runner.create(plan)
    job = JobPods(bench.api, "default", plan.name)
    assert job.is_held()
    assert HOLD in job.job["metadata"]["annotations"]

    await bench.runner.start(handle)

    assert not job.is_held()
    assert HOLD not in job.job["metadata"]["annotations"]


async def test_job_of_a_queue_of_kueue_is_left_suspended_to_kueue_in_its_queue(bench: Bench) -> None:
    plan = bench.plan().model_copy(update={"options": {"labels": {QUEUE_LABEL: "team-a"}}})
    handle = await bench.runner.create(plan)
    job = JobPods(bench.api, "default", plan.name)
    assert job.job["metadata"]["labels"][QUEUE_LABEL] != "team-a"

    await bench.runner.start(handle)

    assert job.job["metadata"]["labels"][QUEUE_LABEL] == "team-a"
    assert job.job["spec"]["suspend"] is True


async def test_pod_that_somebody_else_deletes_gets_what_the_agent_gives_its_jobs_to_end_in(bench: Bench) -> None:
    bench.runner.stop_seconds = 75.0
    plan = bench.plan()

    await bench.runner.create(plan)

    job = JobPods(bench.api, "default", plan.name).job
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 75


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cpus": "many"}, SpecError),
        ({"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {"entrypoint": "x"}}, LaunchError),
        ({"apiVersion": "none.io/v1", "kind": "Job", "custom": {}, "spec": {"template": pod_manifest()}}, QueueError),
    ],
)
async def test_code_of_a_run_that_cannot_be_made_is_not_packed(
    bench: Bench, options: dict[str, Any], error: type[Exception]
) -> None:
    code = bench.folder / "code"
    code.mkdir()
    (code / "data.bin").write_bytes(random.Random(0).randbytes(1_200_000))  # Packing it would be refused.
    plan = bench.plan().model_copy(update={"options": options, "code_dir": code})

    with pytest.raises(error) as refused:
        await bench.runner.create(plan)

    assert "ConfigMap" not in str(refused.value)
