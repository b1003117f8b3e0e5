"""Vertex AI's runner: one job a claim, every state, throttling, logs that are late, outputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_launch.clouds.gcp import GcpAccount
from prefect_launch.clouds.settings import GcpSettings
from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.errors import InfrastructureError, NoRoomError, QueueError, SpecError, UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan, RunState
from prefect_launch.runners.remote.jobs import RemoteState, RunHandle
from prefect_launch.runners.remote.vertex import logs
from prefect_launch.runners.remote.vertex.runner import VertexRunner
from prefect_launch.runners.remote.vertex.status import STATES, read_job
from prefect_launch.server.blocks import BlockType
from tests.support.clouds import FakeCloud, service_account_key
from tests.support.vertex import BUCKET, PROJECT, REGION, VertexCloud, no_quota, throttled
from tests.unit.runners.vertex.world import SPEC, VertexWorld

BEGAN, ENDED = "2026-11-28T01:00:00.5Z", "2026-11-28T02:00:01Z"


@pytest.fixture
async def world(tmp_path: Path, cloud: VertexCloud) -> AsyncIterator[VertexWorld]:
    world = VertexWorld(tmp_path, cloud)
    yield world
    for runner in world.runners:
        await runner.aclose()


async def started(runner: VertexRunner, plan: RunPlan) -> str:
    """Start a plan's run; return its handle."""
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


async def until(look: Any, seconds: float = 10.0) -> None:
    """Wait until something is seen."""
    due = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < due
        await asyncio.sleep(0.02)


def job(state: str, code: int = 0, message: str = "", *, ran: bool = True, **scheduling: Any) -> dict[str, Any]:
    """Return a job of the REST API."""
    return {
        "name": "projects/1/locations/r/customJobs/7",
        "displayName": "launch-item-1",
        "labels": {"prefect_launch_item": "item"},
        "state": state,
        "jobSpec": {"scheduling": scheduling},
        **({"startTime": BEGAN} if ran else {}),
        "endTime": ENDED,
        **({"error": {"code": code, "message": message}} if code else {}),
    }


# --- states ---


def test_every_state_of_the_api_is_mapped() -> None:
    found = {name: read_job(job(name)).status.state.value for name in STATES}
    assert found == {
        "JOB_STATE_UNSPECIFIED": "running",
        "JOB_STATE_QUEUED": "pending",
        "JOB_STATE_PENDING": "pending",
        "JOB_STATE_RUNNING": "running",
        "JOB_STATE_SUCCEEDED": "ended",
        "JOB_STATE_FAILED": "ended",
        "JOB_STATE_CANCELLING": "running",
        "JOB_STATE_CANCELLED": "ended",
        "JOB_STATE_PAUSED": "running",
        "JOB_STATE_EXPIRED": "ended",
        "JOB_STATE_UPDATING": "running",
        "JOB_STATE_PARTIALLY_SUCCEEDED": "ended",
    }
    assert read_job(job("JOB_STATE_PAUSED", ran=False)).status.state is RemoteState.PENDING
    assert read_job(job("JOB_STATE_OF_2030")).status.state is RemoteState.ENDED


def test_state_that_waits_says_why_in_googles_words_where_there_are_any() -> None:
    quota = read_job(job("JOB_STATE_QUEUED", ran=False)).status
    assert quota.reason.startswith("JOB_STATE_QUEUED: Vertex AI has queued it: the project's quota")
    stockout = read_job(job("JOB_STATE_PENDING", 8, "Resources are insufficient.", ran=False)).status
    assert stockout.reason == "JOB_STATE_PENDING: Resources are insufficient (RESOURCE_EXHAUSTED)"
    assert read_job(job("JOB_STATE_RUNNING")).status.reason == ""
    assert read_job(job("JOB_STATE_PAUSED")).status.reason == "JOB_STATE_PAUSED: somebody has paused it"


def end_of(found: dict[str, Any]) -> ExitStatus:
    """Return how a job of the REST API ended."""
    end = read_job(found).status.exit
    assert end is not None
    return end


def test_end_tells_the_jobs_fault_from_the_services() -> None:
    own = end_of(job("JOB_STATE_FAILED", 3, "The replica workerpool0-0 exited with a non-zero status of 1."))
    assert (own.exit_code, own.is_own_doing, own.preempted) == (None, True, False)
    assert own.describe() == ("FAILED: The replica workerpool0-0 exited with a non-zero status of 1 (INVALID_ARGUMENT)")
    assert own.duration_seconds == 3600.5
    service = end_of(job("JOB_STATE_FAILED", 13, "Internal error."))
    assert (service.is_own_doing, service.describe()) == (False, "FAILED: Internal error (INTERNAL)")
    stockout = end_of(job("JOB_STATE_FAILED", 8, "Resources are insufficient in region.", ran=False, strategy="SPOT"))
    assert (stockout.preempted, stockout.is_own_doing) == (False, False)
    assert "no machine for it" in stockout.describe()
    taken = end_of(job("JOB_STATE_FAILED", 14, "The VM was preempted.", strategy="SPOT"))
    assert taken.preempted
    partly = end_of(job("JOB_STATE_PARTIALLY_SUCCEEDED"))
    assert (partly.succeeded, partly.is_own_doing) == (False, True)


def test_time_limits_of_the_service_are_told_as_such() -> None:
    for found in (
        job("JOB_STATE_EXPIRED"),
        job("JOB_STATE_FAILED", 4, "Timed out."),
        job("JOB_STATE_CANCELLED", 1, "CANCELED", timeout="3600s"),
    ):
        assert end_of(found).timed_out, found
    by_hand = end_of(job("JOB_STATE_CANCELLED", 1, "CANCELED", timeout="7200s"))
    assert (by_hand.timed_out, by_hand.stopped) == (False, False)
    assert (by_hand.ended_by_others, by_hand.describe()) == (True, "CANCELLED")


# --- one job a claim ---


async def test_job_whose_answer_was_lost_is_found_though_lists_are_late(world: VertexWorld, cloud: VertexCloud) -> None:
    cloud.list_lag = 0.2
    plan = world.plan("sleep 0.1")
    handle = await world.runner().create(plan)

    cloud.lose_next_create()
    with pytest.raises(UnreachableError):
        await started(world.runner(), plan)
    # Another agent of this home goes on, as after a crash.
    later = world.runner()
    assert await started(later, plan) == handle
    assert len(cloud.jobs) == 1


async def test_job_that_was_made_long_after_it_was_asked_for_is_found_though_lists_are_late(
    world: VertexWorld, cloud: VertexCloud
) -> None:
    cloud.list_lag = 0.2

    def lose_late(request: httpx.Request) -> httpx.Response | None:
        if request.method != "POST" or not request.url.path.endswith("/customJobs"):
            return None
        cloud.faults.remove(lose_late)
        time.sleep(2 * VertexRunner.lag_seconds)  # Google takes longer than its lists.
        cloud.answer(request)
        raise httpx.ReadTimeout("no answer", request=request)

    cloud.faults.append(lose_late)
    runner, plan = world.runner(), world.plan("sleep 0.1")
    handle = await runner.create(plan)
    with pytest.raises(UnreachableError):
        await runner.start(handle)
    await runner.start(handle)
    assert len(cloud.jobs) == 1


async def test_younger_of_two_jobs_of_one_claim_is_cancelled_and_deleted(
    world: VertexWorld, cloud: VertexCloud
) -> None:
    cloud.list_lag = 1.0  # Later than the runner thinks: so a second job is made.
    first, plan = world.runner("one"), world.plan("sleep 60")
    await started(first, plan)
    older = cloud.job(plan.name)["name"]
    second = world.runner("two")
    handle = await started(second, plan)
    assert len(cloud.jobs) == 2
    await asyncio.sleep(1.0)
    assert (await second.find({Labels.ITEM: plan.item_id}))[0].state is RunState.RUNNING
    await until(lambda: [job["name"] for job in cloud.jobs.values()] == [older])
    await second.stop(handle, 1.0)
    assert cloud.job(plan.name)["state"] == "JOB_STATE_CANCELLED"


async def test_job_of_somebody_else_with_the_name_of_a_run_is_not_taken_for_it(
    world: VertexWorld, cloud: VertexCloud
) -> None:
    plan = world.plan("echo ours")
    other = {**job("JOB_STATE_RUNNING"), "displayName": plan.name, "labels": {}, "createTime": BEGAN, "_shown": 0.0}
    cloud.jobs["7"] = other
    runner = world.runner()
    assert (await runner.watch(await started(runner, plan), plan)).succeeded
    assert cloud.jobs["7"] is other


async def test_refused_job_says_what_google_says(world: VertexWorld, cloud: VertexCloud) -> None:
    plan = world.plan(options={"spec": {**SPEC, "worker_pool_specs": SPEC["worker_pool_specs"] * 1}})
    runner = world.runner()

    def refuse(request: httpx.Request) -> httpx.Response | None:
        error = {"code": 400, "status": "INVALID_ARGUMENT", "message": "Machine type n1-standard-4 is not supported."}
        is_it = request.method == "POST" and request.url.path.endswith("/customJobs")
        return httpx.Response(400, json={"error": error}) if is_it else None

    cloud.faults.append(refuse)
    with pytest.raises(SpecError, match=r"refuses the job .*n1-standard-4 is not supported. Correct its spec"):
        await started(runner, plan)
    await started(runner, plan)
    assert len(cloud.jobs) == 1


async def test_bucket_that_is_not_there_is_the_queue_owners_fault(world: VertexWorld) -> None:
    plan = world.plan(options={"spec": {**SPEC, "staging_bucket": "gs://no-such-bucket"}})
    with pytest.raises(QueueError, match=r"no bucket gs://no-such-bucket: .*correct spec.staging_bucket"):
        await started(world.runner(), plan)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("/customJobs", InfrastructureError, "does not let this agent make the job .*Service Account User"),
        ("/o", QueueError, "may not write into gs://launch-tests: .*Storage Object User"),
    ],
)
async def test_right_that_lacks_for_one_queue_alone_closes_no_other(
    world: VertexWorld, cloud: VertexCloud, path: str, error: type[Exception], words: str
) -> None:
    def refuse(request: httpx.Request) -> httpx.Response | None:
        is_it = request.method == "POST" and request.url.path.endswith(path)
        return httpx.Response(403, json={"error": {"message": "Permission denied."}}) if is_it else None

    cloud.faults.append(refuse)
    with pytest.raises(error, match=words) as refused:
        await started(world.runner(), world.plan())
    assert not isinstance(refused.value, UnreachableError)


async def test_run_of_no_agent_is_asked_for_without_a_list_of_all_the_projects_jobs(
    world: VertexWorld, cloud: VertexCloud
) -> None:
    runner, plan = world.runner(), world.plan("echo hi")
    plan = plan.model_copy(update={"labels": {Labels.ITEM: plan.item_id}})
    handle = await started(runner, plan)
    cloud.calls.clear()
    assert (await runner.watch(handle, plan)).succeeded
    assert cloud.calls["GET customJobs"] == 0


# --- many, throttled, away ---


async def test_many_jobs_are_asked_for_in_one_list(world: VertexWorld, cloud: VertexCloud) -> None:
    cloud.runs = False
    runner, plans = world.runner(), [world.plan() for _ in range(120)]
    for plan in plans:
        await started(runner, plan)
        cloud.set(cloud.job(plan.name), "JOB_STATE_RUNNING")
    cloud.set(cloud.job(plans[0].name), "JOB_STATE_SUCCEEDED")
    cloud.calls.clear()
    found = await runner.poll([plan.name for plan in plans])
    assert len(found) == 120
    # Two pages of a hundred, and the one that has ended by its id.
    assert cloud.calls == {"GET customJobs": 2, "GET ID": 1}


async def test_throttled_calls_are_made_again(world: VertexWorld, cloud: VertexCloud) -> None:
    cloud.faults += [lambda request: throttled() for _ in range(3)]
    runner, plan = world.runner(), world.plan("echo hello")
    assert (await runner.watch(await started(runner, plan), plan)).succeeded
    assert len(cloud.jobs) == 1


async def test_quota_that_is_used_up_leaves_the_item_in_its_queue(world: VertexWorld, cloud: VertexCloud) -> None:
    def refuse(request: httpx.Request) -> httpx.Response | None:
        return no_quota() if request.url.path.endswith("/customJobs") and request.method == "POST" else None

    cloud.faults.append(refuse)
    with pytest.raises(NoRoomError, match=r"no quota for the job now: .*a100_gpus"):
        await started(world.runner(), world.plan())
    assert list((cloud.folder / "gcs" / BUCKET).rglob("launch-*")) == []
    assert list((world.folder / "home" / "remote" / "vertex").glob("*.json")) == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(403, json={"error": {"message": "Permission denied."}}), r"needs the role Vertex AI User"),
        (httpx.Response(200, text="<html>Sign in</html>"), "is not Google"),
        (httpx.Response(503, json={"error": {"message": "Unavailable."}}), "busy or fails"),
    ],
)
async def test_agent_that_is_not_let_in_says_what_it_needs(
    world: VertexWorld, cloud: VertexCloud, answer: httpx.Response, words: str
) -> None:
    cloud.faults += [lambda request: answer for _ in range(500)]
    with pytest.raises(UnreachableError, match=words):
        await world.runner().ping()


async def test_token_that_google_refuses_is_not_used_again(world: VertexWorld) -> None:
    async with FakeCloud() as google:
        block = {"service_account_info": service_account_key(f"{google.url}/token")}

        async def read(kind: BlockType, name: str) -> dict[str, Any]:
            return block

        runner = world.runner()
        settings = GcpSettings(credentials="mine", project=PROJECT, region=REGION)
        vars(runner.clouds)["gcp"] = GcpAccount(settings, read_block=read)
        for asked in (1, 2):
            with pytest.raises(UnreachableError, match=r"does not take the agent's login.*Log in again"):
                await runner.ping()
            assert google.tokens == asked


async def test_check_looks_at_jobs_logs_and_bucket(world: VertexWorld, cloud: VertexCloud) -> None:
    found = await world.runner().diagnose({"spec": SPEC})
    assert [(one.name, one.is_ok) for one in found] == [
        *(("reachable", True), ("Vertex AI", True), ("right to read logs", True), ("staging bucket", True)),
    ]
    assert f"project {PROJECT}" in found[1].detail
    missing = await world.runner().diagnose({"spec": {**SPEC, "staging_bucket": "gs://no-such-bucket"}})
    assert (missing[-1].is_ok, "no-such-bucket" in missing[-1].detail) == (False, True)


# --- stopping ---


async def test_stop_returns_once_the_job_is_seen_as_cancelled(world: VertexWorld, cloud: VertexCloud) -> None:
    cloud.cancel_seconds = 0.5
    runner, plan = world.runner(), world.plan("sleep 60")
    handle = await started(runner, plan)
    await runner.stop(handle, 1.0)
    assert cloud.job(plan.name)["state"] == "JOB_STATE_CANCELLED"
    end = await runner.watch(handle, plan)
    assert (end.stopped, end.describe()) == (True, "its exit code is not known")
    await runner.remove(handle)
    assert cloud.jobs == {}


# --- logs ---


async def test_late_and_reordered_entries_are_kept_once_and_the_services_own_left_out(
    world: VertexWorld, cloud: VertexCloud
) -> None:
    cloud.runs = False
    plan, first = world.plan(), world.runner()
    handle = await started(first, plan)
    found = cloud.job(plan.name)
    cloud.set(found, "JOB_STATE_RUNNING")
    cloud.write(found, "one", "two")
    cloud.write(found, "Job is preparing.", worker="service")
    cloud.write(found, "from another", worker="workerpool1-0")
    watching = asyncio.create_task(first.watch(handle, plan))
    await until(lambda: plan.log_path.exists() and b"another" in plan.log_path.read_bytes())
    watching.cancel()
    await asyncio.wait({watching})
    # Written before the others, received after them, and the agent is another one.
    cloud.write(found, "late", late=0.01)
    cloud.put(found, {"textPayload": "plain\n"}, worker="workerpool0-0")
    cloud.put(found, {"jsonPayload": {"message": "m", "loss": 0.5}}, worker="workerpool0-0")
    cloud.set(found, "JOB_STATE_SUCCEEDED")
    end = await world.runner().watch(handle, plan)
    assert (end.succeeded, end.log_complete) == (True, True)
    lines = plan.log_path.read_text().splitlines()
    assert lines[:3] == ["one", "two", "[workerpool1-0] from another"]
    assert sorted(lines[3:]) == sorted(["late", "plain", '{"message": "m", "loss": 0.5}'])


async def test_each_worker_of_a_job_has_its_lines_in_the_log(world: VertexWorld) -> None:
    pool = SPEC["worker_pool_specs"][0]
    spec = {**SPEC, "worker_pool_specs": [pool, {**pool, "replica_count": 2}]}
    runner, plan = world.runner(), world.plan("echo hi; sleep 0.5", options={"spec": spec})
    assert (await runner.watch(await started(runner, plan), plan)).succeeded
    lines = sorted(plan.log_path.read_text().splitlines())
    assert lines == ["[workerpool1-0] hi", "[workerpool1-1] hi", "hi"]


async def test_entries_that_come_after_the_end_are_waited_for(
    world: VertexWorld, cloud: VertexCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_launch.runners.remote.vertex import runner as module

    monkeypatch.setattr(module, "_LOG_SETTLE_SECONDS", 2.0)
    cloud.log_lag = 0.8
    runner, plan = world.runner(), world.plan("echo last words")
    end = await runner.watch(await started(runner, plan), plan)
    assert (end.log_complete, plan.log_path.read_text()) == (True, "last words\n")


async def test_logs_of_many_jobs_are_read_together_at_the_pace_of_the_quota(
    world: VertexWorld, cloud: VertexCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_PACE_SECONDS", 0.5)
    cloud.runs = False
    runner, plans = world.runner(), [world.plan() for _ in range(20)]
    handles = [await started(runner, plan) for plan in plans]
    for plan in plans:
        cloud.set(cloud.job(plan.name), "JOB_STATE_RUNNING")
        cloud.write(cloud.job(plan.name), plan.name)
    cloud.calls.clear()
    began = time.monotonic()
    watching = [asyncio.create_task(runner.watch(one, plan)) for one, plan in zip(handles, plans, strict=True)]
    await until(lambda: all(plan.log_path.exists() and plan.log_path.stat().st_size for plan in plans))
    assert cloud.calls["POST entries:list"] <= 2 + (time.monotonic() - began) / 0.5
    for plan in plans:
        assert plan.log_path.read_text() == f"{plan.name}\n"
    for task in watching:
        task.cancel()
    await asyncio.wait(watching)


async def test_log_of_more_than_one_page_is_whole(
    world: VertexWorld, cloud: VertexCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_PAGE", 10)
    runner, plan = world.runner(), world.plan("seq 1 45")
    await runner.watch(await started(runner, plan), plan)
    assert plan.log_path.read_text() == "".join(f"{number}\n" for number in range(1, 46))


# --- outputs ---


async def test_files_come_back_within_the_limits_the_results_first(world: VertexWorld, cloud: VertexCloud) -> None:
    script = 'cd "$LAUNCH_OUTPUT_DIR"; mkdir model; echo big > model/a; echo b > b; printf \'{"x": 1}\' > outputs.json'
    runner = world.runner()
    plan = world.plan(script, output_limits=OutputLimits(max_files=2))
    end = await runner.watch(await started(runner, plan), plan)
    kept = sorted(path.name for path in plan.output_dir.rglob("*") if path.is_file())
    assert (kept, end.left_out.count) == (["b", "outputs.json"], 1)
    assert "model/a" in end.left_out.named[0]


async def test_object_whose_name_leads_out_of_the_folder_is_left_out(world: VertexWorld, cloud: VertexCloud) -> None:
    runner, plan = world.runner(), world.plan("true")
    handle = await started(runner, plan)
    folder = f"team/launch/{plan.name}/"

    def listed(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != f"/storage/v1/b/{BUCKET}/o":
            return None
        names = ("../../evil", "/abs", "a//b", "x/./y")
        return httpx.Response(200, json={"items": [{"name": folder + one, "size": "1"} for one in names]})

    cloud.faults.append(listed)
    end = await runner.watch(handle, plan)
    assert (end.left_out.count, list(plan.output_dir.iterdir())) == (4, [])


async def test_download_that_breaks_off_leaves_no_part_of_a_file(world: VertexWorld, cloud: VertexCloud) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"hel"
        raise httpx.ReadError("connection lost")

    def media(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(200, content=broken()) if request.url.params.get("alt") == "media" else None

    runner, plan = world.runner(), world.plan('printf hello > "$LAUNCH_OUTPUT_DIR/file"')
    cloud.faults.append(media)
    end = await runner.watch(await started(runner, plan), plan)
    assert [one for one in end.warnings if "the outputs are not kept" in one]
    assert list(plan.output_dir.iterdir()) == []


async def test_adopted_run_whose_plan_has_no_options_keeps_its_outputs(world: VertexWorld) -> None:
    plan = world.plan('printf hello > "$LAUNCH_OUTPUT_DIR/file"')
    handle = await started(world.runner(), plan)
    adopted = plan.model_copy(update={"options": {}, "env": {}})
    await world.runner().watch(handle, adopted)
    assert (plan.output_dir / "file").read_text() == "hello"
    assert RunHandle.parse(handle).job == plan.name
