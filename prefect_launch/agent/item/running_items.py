"""The items that an agent has in work: begun, reported as task runs in a flow, let go of when the agent leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from uuid import UUID

from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.task_run import in_flow, run_as_task
from prefect_launch.agent.item.tracker import JobTracker
from prefect_launch.core.states import ItemState
from prefect_launch.server.values import Item

T = TypeVar("T")

#: What the ends of jobs that were stopped take beyond their grace.
STOP_MARGIN_SECONDS: Final = 20.0

#: Runs that have ended and wait for their outputs to be kept without a slot; more keep theirs, or a slow store would
#: fill the machine's disk.
MOST_COPYING: Final = 10

#: Works on one item until its end.
Work = Callable[[], Awaitable[Outcome]]
#: Is told when the work on an item is over here, with what the agent failed over, if it did.
Finished = Callable[[str, "BaseException | None"], Awaitable[None]]


class Crew:
    """The work of one agent.

    Args:
        finished: is told of each item when its work is over.
    """

    def __init__(self, finished: Finished) -> None:
        self._finished = finished
        self._trackers: dict[str, JobTracker] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._leaving = asyncio.Event()

    @property
    def thread_ids(self) -> list[str]:
        """Ids of the items in work."""
        return list(self._trackers)

    @property
    def trackers(self) -> list[JobTracker]:
        """What is remembered of each item in work."""
        return list(self._trackers.values())

    @property
    def items(self) -> list[Item]:
        """The items in work."""
        return [tracker.item for tracker in self._trackers.values()]

    @property
    def held(self) -> set[UUID]:
        """Ids of the items in work, as UUIDs."""
        return {tracker.id for tracker in self._trackers.values()}

    def count(self, *, schedulers: bool) -> int:
        """Count the schedulers, or the jobs, that take a slot: a few whose outputs are being kept do not."""
        kind = [tracker for tracker in self._trackers.values() if tracker.is_scheduler is schedulers]
        copying = sum(tracker.has_run for tracker in kind)
        return len(kind) - min(copying, MOST_COPYING)

    def find(self, thread_id: str) -> JobTracker | None:
        """Return what is known of an item in work."""
        return self._trackers.get(thread_id)

    def begin(self, tracker: JobTracker, start: Callable[[], Awaitable[None]]) -> None:
        """Start to work on an item; returns at once."""
        self._trackers[tracker.thread_id] = tracker
        task = asyncio.ensure_future(start())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, thread_id: str) -> None:
        """Free the slot of an item whose work is over."""
        tracker = self._trackers.pop(thread_id, None)
        if tracker is not None:
            tracker.ended.set()

    async def do(self, tracker: JobTracker, work: Work) -> None:
        """Work on one item, as a task run when in a flow, until it ends or the agent leaves."""

        failure: BaseException | None = None

        async def let_go_when_leaving() -> Outcome | None:
            nonlocal failure
            try:
                return await self._unless_leaving(work())
            except Exception as error:  # noqa: BLE001 - one item never ends the agent
                failure = error
                # To Prefect, which would keep the error to the task run, and show its secrets there.
                told = tracker.masked(f"{type(error).__name__}: {error}")
                return Outcome(state=ItemState.FAILED, message=f"The agent failed over it: {told}")

        try:
            if in_flow():
                await run_as_task(tracker.item.name, let_go_when_leaving)
            else:
                await let_go_when_leaving()
        except Exception as error:  # noqa: BLE001 - Prefect's, over the task run
            failure = error
        finally:
            # An agent that leaves does not wait for a server that is away: the next one settles the item.
            await self._unless_leaving(self._finished(tracker.thread_id, failure))

    async def stop_jobs(self, grace_seconds: float) -> None:
        """Stop what runs, and wait until it has ended; what has not come to run by then is left as it is."""
        running = [tracker for tracker in self._trackers.values() if tracker.handle is not None]
        for tracker in running:
            tracker.preempt.set()
        if running:
            ends = [asyncio.ensure_future(tracker.ended.wait()) for tracker in running]
            _, late = await asyncio.wait(ends, timeout=grace_seconds + STOP_MARGIN_SECONDS)
            for one in late:
                one.cancel()

    async def leave(self) -> None:
        """Let go of everything: what runs goes on, and the next agent of this name takes it up."""
        self._leaving.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._leaving.clear()

    async def _unless_leaving(self, work: Awaitable[T]) -> T | None:
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            leaving.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
