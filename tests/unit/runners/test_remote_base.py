"""The base of runners of clusters: what a cluster may do wrong, and what the runner makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.core import supervision
from prefect_launch.errors import ImagePullError, InfrastructureError
from prefect_launch.runners.base import NEVER_STARTED, ExitStatus, Labels, RunPlan
from prefect_launch.runners.remote import base
from prefect_launch.runners.remote.jobs import JobChange, LogPart, RemoteJob, RemoteState, RemoteStatus
from prefect_launch.runners.remote.poller import StatusFeed
from prefect_launch.testing import InMemoryCluster, InMemoryRemoteRunner, Script
from prefect_launch.testing.remote_runner import InMemoryTellingRunner
from tests.support.waiting import until


def plan_in(folder: Path) -> RunPlan:
    item = str(uuid4())
    (folder / item).mkdir()
    labels = {Labels.ITEM: item, Labels.CLAIM: str(uuid4())}
    return RunPlan(item_id=item, run_id=item[:8], run_dir=folder / item, command=("train",), labels=labels)


async def started(runner: InMemoryRemoteRunner, plan: RunPlan) -> str:
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


async def test_stop_that_cannot_be_proved_says_so_and_where_the_job_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryRemoteRunner, "stop_margin_seconds", 0.2)
    cluster = InMemoryCluster(lambda plan: Script(seconds=60), is_deaf=True)
    runner = InMemoryRemoteRunner(tmp_path, cluster)
    handle = await started(runner, plan_in(tmp_path))
    with pytest.raises(InfrastructureError, match=r"was told to end, and 0\.3 s later it is still running"):
        await runner.stop(handle, 0.0)
    cluster.is_deaf = False
    await runner.stop(handle, 0.0)


async def test_job_that_some_polls_do_not_show_is_not_gone(tmp_path: Path) -> None:
    class Lagging(InMemoryRemoteRunner):
        lag_seconds = 20.0
        polls = 0

        async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
            self.polls += 1
            return {} if self.polls % 4 else await super().poll(handles)

    plan = plan_in(tmp_path)
    runner = Lagging(tmp_path, InMemoryCluster(lambda plan: Script(seconds=0.3, exit_code=3)))
    assert (await runner.watch(await started(runner, plan), plan)).exit_code == 3


async def test_job_that_somebody_deletes_is_reported_as_such_and_not_as_a_stop(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plan = InMemoryRemoteRunner(tmp_path, cluster), plan_in(tmp_path)
    handle = await started(runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await until(lambda: cluster.calls["poll"] > 0)
    cluster.lose(plan.name)
    end = await asyncio.wait_for(watching, 10)
    assert (end.exit_code, end.stopped) == (None, False)
    assert end.describe() == "somebody else removed it from in-memory-cluster, and its exit code with it"


@pytest.mark.parametrize("has_started", [True, False])
@pytest.mark.parametrize("is_asked", [True, False])
async def test_end_that_the_system_ascribes_to_nobody_is_the_agents_own_only_if_it_had_asked(
    tmp_path: Path, has_started: bool, is_asked: bool
) -> None:
    started_at = datetime.now(timezone.utc) if has_started else None

    class Silent(InMemoryRemoteRunner):
        async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
            end = ExitStatus(exit_code=None, error="STOPPED", ended_by_others=True, started_at=started_at)
            return {
                name: job.model_copy(update={"status": job.status.model_copy(update={"exit": end})})
                if job.status.state is RemoteState.ENDED
                else job
                for name, job in (await super().poll(handles)).items()
            }

    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plan = Silent(tmp_path, cluster), plan_in(tmp_path)
    handle = await started(runner, plan)
    if is_asked:
        await runner.stop(handle, 0.0)
    else:
        next(iter(cluster.jobs.values())).finish()
    end = await runner.watch(handle, plan)
    ours, others = None if has_started else NEVER_STARTED, "STOPPED: somebody stopped it on in-memory-cluster"
    assert (end.stopped, end.ended_by_others) == (is_asked, not is_asked)
    assert end.error == (ours if is_asked else f"{others}, and not this agent")


async def test_job_of_another_item_that_has_the_name_is_left_alone(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plan = InMemoryRemoteRunner(tmp_path, cluster), plan_in(tmp_path)
    foreign = plan.model_copy(update={"labels": {Labels.ITEM: "another"}})
    await started(runner, foreign)
    with pytest.raises(InfrastructureError, match="is not of this item"):
        await runner.create(plan)
    assert len(cluster.started) == len(cluster.jobs) == 1


async def test_end_of_a_log_that_cannot_be_read_is_reported_and_the_job_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LOG_END_SECONDS", 0.2)
    runner, plan = (
        InMemoryRemoteRunner(tmp_path, InMemoryCluster(lambda plan: Script(log=(b"one\n",)))),
        plan_in(tmp_path),
    )
    plan.log_path.mkdir()
    end = await runner.watch(await started(runner, plan), plan)
    assert (end.exit_code, end.log_complete) == (0, False)
    assert "the log could not be copied" in end.warnings[0]


async def test_copy_of_a_log_that_fails_unforeseen_is_told_at_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.01)

    class Failing(InMemoryRemoteRunner):
        failures = 1

        async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
            if self.failures:
                self.failures -= 1
                raise ValueError("not foreseen")
            async for part in super().read_logs(handle, after):
                yield part

    cluster, plan = InMemoryCluster(lambda plan: Script(log=(b"one\n",), seconds=60)), plan_in(tmp_path)
    runner = Failing(tmp_path, cluster)
    watching = await followed(runner, plan)
    await until(lambda: plan.log_path.read_bytes() == b"one\n")
    assert "task-failed copy of the log of" in caplog.text
    next(iter(cluster.jobs.values())).finish()
    end = await asyncio.wait_for(watching, 60)
    assert (end.exit_code, end.log_complete) == (0, True)


async def followed(runner: InMemoryRemoteRunner, plan: RunPlan) -> asyncio.Task[ExitStatus]:
    watching = asyncio.create_task(runner.watch(await started(runner, plan), plan))
    await until(plan.log_path.exists)
    return watching


async def test_cluster_that_tells_of_changes_is_not_polled_for_them(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plans = InMemoryTellingRunner(tmp_path, cluster), [plan_in(tmp_path) for _ in range(20)]
    watching = [await followed(runner, plan) for plan in plans]
    await until(lambda: bool(cluster.told))
    await asyncio.sleep(1.0)  # By then it was polled for what may have been missed before it told.
    polls = cluster.calls["poll"]
    for job in cluster.jobs.values():
        job.finish()
    ends = await asyncio.wait_for(asyncio.gather(*watching), 30)
    assert [end.exit_code for end in ends] == [0] * 20
    assert (cluster.calls["poll"], cluster.calls["changes"]) == (polls, 1)
    await runner.aclose()
    assert cluster.told == {}


async def test_end_that_came_while_the_connection_was_broken_is_not_missed(tmp_path: Path) -> None:
    class Breaking(InMemoryTellingRunner):
        async def changes(self, part: str = "") -> AsyncIterator[JobChange]:
            await self._call("changes")
            yield JobChange()  # The connection ends as soon as it is there.

    cluster = InMemoryCluster(lambda plan: Script(seconds=0.2, exit_code=3))
    plan, runner = plan_in(tmp_path), Breaking(tmp_path, cluster)
    end = await asyncio.wait_for((await followed(runner, plan)), 30)
    assert end.exit_code == 3
    assert cluster.calls["changes"] >= 1


async def test_job_that_somebody_deletes_is_noticed_when_the_cluster_tells_of_it(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    plan, runner = plan_in(tmp_path), InMemoryTellingRunner(tmp_path, cluster)
    watching = await followed(runner, plan)
    await until(lambda: bool(cluster.told))
    cluster.lose(plan.name)
    assert "somebody else removed it" in (await asyncio.wait_for(watching, 30)).describe()


async def test_reads_of_many_jobs_at_once_are_made_in_few_calls(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plans = InMemoryRemoteRunner(tmp_path, cluster), [plan_in(tmp_path) for _ in range(50)]
    handles = [await runner.create(plan) for plan in plans]
    await asyncio.gather(*(runner.start(handle) for handle in handles))
    assert len(cluster.started) == 50
    assert cluster.calls["poll"] < 20


async def test_job_that_will_never_start_ends_the_wait_with_the_reason(tmp_path: Path) -> None:
    class Refusing(InMemoryRemoteRunner):
        async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
            status = RemoteStatus(
                state=RemoteState.PENDING, reason="ErrImagePull", refusal=ImagePullError("No image 'a'.")
            )
            jobs = await super().poll(handles)
            return {handle: job.model_copy(update={"status": status}) for handle, job in jobs.items()}

    async def note(reason: str) -> None:
        reasons.append(reason)

    reasons: list[str] = []
    runner = Refusing(tmp_path, InMemoryCluster(nodes=0))
    handle = await started(runner, plan_in(tmp_path))
    with pytest.raises(ImagePullError, match="No image 'a'"):
        await asyncio.wait_for(runner.wait_running(handle, note), 30)
    assert reasons == ["ErrImagePull"]


async def test_job_that_is_followed_while_the_connection_of_the_last_one_closes_is_polled(tmp_path: Path) -> None:
    class Slow(InMemoryTellingRunner):
        poll_seconds = 0.1
        is_closing: asyncio.Event

        async def changes(self, part: str = "") -> AsyncIterator[JobChange]:
            try:
                yield JobChange()
                await asyncio.sleep(60)
            finally:
                self.is_closing.set()
                await asyncio.sleep(0.2)

    cluster = InMemoryCluster(lambda plan: Script(seconds=0.5, exit_code=3))
    plan, runner = plan_in(tmp_path), Slow(tmp_path, cluster)
    runner.is_closing = asyncio.Event()
    handle = await started(runner, plan)
    await runner.watch(handle, plan)
    await asyncio.wait_for(runner.is_closing.wait(), 30)
    assert (await asyncio.wait_for(runner.watch(handle, plan), 30)).exit_code == 3


async def test_run_that_is_not_whole_is_found_so(tmp_path: Path) -> None:
    class Half(InMemoryRemoteRunner):
        async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
            return [job.model_copy(update={"is_complete": False}) for job in await super().list_jobs(labels)]

    runner, plan = Half(tmp_path), plan_in(tmp_path)
    await runner.create(plan)
    assert [found.is_complete for found in await runner.find({})] == [False]


@pytest.mark.parametrize(
    ("status", "wakes"),
    [
        (RemoteStatus(state=RemoteState.RUNNING), False),
        (RemoteStatus(state=RemoteState.RUNNING, reason="1 of 2 pods waits"), True),
        (RemoteStatus(state=RemoteState.PENDING, reason="no node is free"), True),
        (RemoteStatus(state=RemoteState.ENDED), True),
        (None, True),
    ],
)
async def test_poll_that_shows_a_job_running_as_before_wakes_nobody_who_follows_it(
    status: RemoteStatus | None, wakes: bool
) -> None:
    quiet, eager = StatusFeed(0.0), StatusFeed(0.0, tells_all=True)
    for feed, is_told in ((quiet, wakes), (eager, True)):
        for _ in range(2):  # The first poll that does not show a job is not yet believed.
            feed.put(status)
        assert await feed.next() == status
        feed.put(status)
        waiting = asyncio.create_task(feed.next())
        for _ in range(3):
            await asyncio.sleep(0)
        assert waiting.done() is is_told
        waiting.cancel()
