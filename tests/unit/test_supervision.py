"""Background tasks have an owner: what fails is told and started again, and a vital one that cannot work ends all."""

from __future__ import annotations

import asyncio
import logging

import pytest

from prefect_launch.core import supervision
from prefect_launch.core.supervision import BackgroundTask, BackgroundTaskError, restarted, supervised
from prefect_launch.errors import NotFoundError


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(supervision, "LEAVE_SECONDS", 0.05)


class Flaky:
    """A task that fails some times, and works then."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.starts = 0
        self.works = asyncio.Event()

    async def run(self) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise ValueError("not foreseen")
        self.works.set()
        await asyncio.Event().wait()


async def test_task_that_fails_is_reported_with_its_traceback_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flaky = Flaky(2)
    async with supervised(lambda: None) as supervisor:
        supervisor.supervise(BackgroundTask("heartbeat", flaky.run))
        await asyncio.wait_for(flaky.works.wait(), 60)
    assert flaky.starts == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"task-failed heartbeat ({count} within 300 s): ValueError('not foreseen')" for count in (1, 2)
    ]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


async def test_vital_task_that_fails_again_and_again_lets_the_block_end_in_order_and_raises() -> None:
    flaky, told, ends = Flaky(99), asyncio.Event(), []

    async def work() -> None:
        async with supervised(told.set) as supervisor:
            supervisor.supervise(BackgroundTask("heartbeat", flaky.run))
            await told.wait()
            ends.append("in order")

    with pytest.raises(BackgroundTaskError, match=r"'heartbeat' failed 5 times within 300 s.*ValueError: not foreseen"):
        await asyncio.wait_for(work(), 60)
    assert (ends, flaky.starts) == (["in order"], supervision.MOST_FAILURES)


async def test_work_of_the_block_itself_that_fails_is_reported_and_done_again(caplog: pytest.LogCaptureFixture) -> None:
    starts = 0

    async def poll() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ValueError("not foreseen")

    async with supervised(lambda: None) as supervisor:
        await asyncio.wait_for(supervisor.work("poll", poll), 60)
    assert starts == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"task-failed poll ({count} within 300 s): ValueError('not foreseen')" for count in (1, 2)
    ]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


async def test_work_of_the_block_itself_that_fails_again_and_again_raises() -> None:
    flaky = Flaky(99)
    with pytest.raises(BackgroundTaskError, match=r"'poll' failed 5 times within 300 s.*ValueError: not foreseen"):
        async with supervised(lambda: None) as supervisor:
            await asyncio.wait_for(supervisor.work("poll", flaky.run), 60)
    assert flaky.starts == supervision.MOST_FAILURES


async def test_failure_of_the_work_that_was_foreseen_ends_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def poll() -> None:
        raise NotFoundError("There is no queue 'gpu'.")

    with pytest.raises(NotFoundError):
        async with supervised(lambda: None) as supervisor:
            await supervisor.work("poll", poll)
    assert not caplog.records


async def test_block_that_does_not_end_when_it_should_is_cancelled() -> None:
    async def work() -> None:
        async with supervised(lambda: None) as supervisor:
            supervisor.supervise(BackgroundTask("heartbeat", Flaky(99).run))
            await asyncio.Event().wait()

    with pytest.raises(BackgroundTaskError):
        await asyncio.wait_for(work(), 60)


async def test_task_that_is_not_vital_is_started_again_for_ever() -> None:
    flaky = Flaky(supervision.MOST_FAILURES + 2)
    async with supervised(lambda: None) as supervisor:
        supervisor.supervise(BackgroundTask("notice", flaky.run, vital=False))
        await asyncio.wait_for(flaky.works.wait(), 60)


async def test_task_that_ends_by_itself_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    starts: list[int] = []
    again = asyncio.Event()

    async def ends() -> None:
        starts.append(1)
        if len(starts) > 1:
            again.set()
            await asyncio.Event().wait()

    async with supervised(lambda: None) as supervisor:
        supervisor.supervise(BackgroundTask("limits", ends))
        await asyncio.wait_for(again.wait(), 60)
    assert "The background task 'limits' ended, though it must never return" in caplog.text


async def test_failure_of_the_block_itself_comes_out_as_it_was_raised() -> None:
    async def work() -> None:
        async with supervised(lambda: None) as supervisor:
            supervisor.supervise(BackgroundTask("heartbeat", Flaky(0).run))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await work()


async def test_work_of_its_own_is_run_again_until_it_is_done_or_over() -> None:
    starts, over = 0, asyncio.Event()

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise OSError("not yet")

    await asyncio.wait_for(restarted("log", work), 60)
    assert starts == 3
    starts = -99
    over.set()
    await asyncio.wait_for(restarted("log", work, over=over), 60)
    assert starts == -98
