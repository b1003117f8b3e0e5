"""Running items: what an agent remembers of each active item, and the tasks that work on them.

The labels of the runs are the truth; this is only the agent's memory, and ends with the agent. Inside a flow, each item
is also a task run of that flow: a bar on the time line of its page in the UI.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.core.clock import now
from prefect_launch.core.racing import racing
from prefect_launch.core.states import ItemState
from prefect_launch.runners.base import Phase, Runner, RunPlan
from prefect_launch.server.values import Item, State

log = logging.getLogger(__name__)


@dataclass
class RunningItem:
    """One active item.

    Attributes:
        item: as it was claimed.
        queue: its queue's name.
        is_scheduler: a sweep's scheduler, which does not count as a job.
        phase: where it is, for the message should it fail.
        handle: what was created for it, once it was.
        file_saver: folder that gets an `error.log` when the agent itself fails over the item.
        stop: is set when it was asked to stop.
        preempt: is set when the agent stops it of its own accord, as when its machine is taken away.
        claim: the token of the claim that it is held under; empty: not known.
        held_at: when it was seen last that the claim is the item's last one, by `now()`; at first, when it was made.
        held_in: the state that it was in then; an item that is still in it is still held.
        waits_in: the runner of the cluster that its run waits in to be started; None: it does not.
        has_run: whether its run has ended: what is left is to keep its outputs, which needs no slot.
        is_ending: whether its end is written, or about to be: nothing runs for it here any more.
        goes_back: whether it has gone back into its queue, for another attempt.
        plan: of its attempt, once it is known; it masks the attempt's secrets in what is reported of the item.
        ended: is set when its work here is over, whatever came of it.
        usage: what its run uses now, by name; empty while that is not known.
    """

    item: Item
    queue: str
    is_scheduler: bool = False
    phase: Phase = Phase.AGENT
    handle: str | None = None
    file_saver: Path | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    preempt: asyncio.Event = field(default_factory=asyncio.Event)
    claim: str = ""
    held_at: float = field(default_factory=now)
    held_in: State | None = None
    waits_in: Runner | None = None
    has_run: bool = False
    is_ending: bool = False
    goes_back: bool = False
    plan: RunPlan | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    usage: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        """The item's id."""
        return self.item.id

    def masked(self, text: str) -> str:
        """Return a text without the secrets of the attempt."""
        return text if self.plan is None else self.plan.mask.text(text)

    def note_usage(self, usage: Mapping[str, float]) -> None:
        """Remember what its run uses now."""
        self.usage = usage

    @property
    def thread_id(self) -> str:
        """The item's id as text, which the reference calls a thread id."""
        return str(self.item.id)


T = TypeVar("T")

#: What the ends of jobs that were stopped take beyond their grace.
STOP_MARGIN_SECONDS: Final = 20.0

#: Runs that have ended and wait for their outputs to be kept without a slot; more keep theirs, or a slow store would
#: fill the machine's disk.
MOST_COPYING: Final = 10

#: Works on one item until its end.
Work = Callable[[], Awaitable[Outcome]]
#: Is called when the work on an item is over here, with the agent's own error, if there was one.
Finished = Callable[[str, "BaseException | None"], Awaitable[None]]


class RunningItems:
    """The work of one agent.

    Args:
        finished: is called for each item when its work is over.
    """

    def __init__(self, finished: Finished) -> None:
        self._finished = finished
        self._entries: dict[str, RunningItem] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._leaving = asyncio.Event()

    @property
    def thread_ids(self) -> list[str]:
        """Ids of the active items."""
        return list(self._entries)

    @property
    def entries(self) -> list[RunningItem]:
        """What is remembered of each active item."""
        return list(self._entries.values())

    @property
    def items(self) -> list[Item]:
        """The active items."""
        return [running_item.item for running_item in self._entries.values()]

    @property
    def held(self) -> set[UUID]:
        """Ids of the active items, as UUIDs."""
        return {running_item.id for running_item in self._entries.values()}

    def count(self, *, schedulers: bool) -> int:
        """Count the schedulers, or the jobs, that take a slot.

        A few whose outputs are being kept take none, nor do those that wait in a cluster, up to its runner's maximum.
        """
        kind = [running_item for running_item in self._entries.values() if running_item.is_scheduler is schedulers]
        copying = sum(running_item.has_run for running_item in kind)
        submitted = Counter(one.waits_in for one in kind if one.waits_in is not None)
        waiting = sum(min(count, runner.max_submitted) for runner, count in submitted.items())
        return len(kind) - min(copying, MOST_COPYING) - waiting

    def find(self, thread_id: str) -> RunningItem | None:
        """Return what is known of an active item."""
        return self._entries.get(thread_id)

    def begin(self, running_item: RunningItem, start: Callable[[], Awaitable[None]]) -> None:
        """Start to work on an item; returns at once."""
        self._entries[running_item.thread_id] = running_item
        task = asyncio.ensure_future(start())
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, running_item))

    def _end(self, running_item: RunningItem, task: asyncio.Future[None]) -> None:
        """Log what nobody foresaw in the work on an item, and free its slot."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task-failed work on %s: %r", running_item.id, error, exc_info=error)
            self.forget(running_item.thread_id)

    def forget(self, thread_id: str) -> None:
        """Free the slot of an item whose work is over."""
        running_item = self._entries.pop(thread_id, None)
        if running_item is not None:
            running_item.ended.set()

    async def do(self, running_item: RunningItem, work: Work) -> None:
        """Work on one item, as a task run when in a flow, until it ends or the agent leaves."""

        failure: BaseException | None = None

        async def let_go_when_leaving() -> Outcome | None:
            nonlocal failure
            try:
                return await self._unless_leaving(work())
            except Exception as error:  # noqa: BLE001 - one item never ends the agent
                failure = error
                # To Prefect, which would keep the error to the task run, and show its secrets there.
                text = running_item.masked(f"{type(error).__name__}: {error}")
                return Outcome(state=ItemState.FAILED, message=f"The agent failed over it: {text}")

        try:
            if in_flow():
                await run_as_task(running_item.item.name, let_go_when_leaving)
            else:
                await let_go_when_leaving()
        except Exception as error:  # noqa: BLE001 - Prefect's, over the task run
            failure = error
        finally:
            # An agent that leaves does not wait for a server that is away: the next one settles the item.
            await self._unless_leaving(self._finished(running_item.thread_id, failure))

    def preempt_schedulers(self) -> None:
        """Let the schedulers of sweeps leave: their sweeps go back into their queue, for another agent."""
        for running_item in self._entries.values():
            if running_item.is_scheduler:
                running_item.preempt.set()

    async def stop_jobs(self, grace_seconds: float) -> None:
        """Stop what runs, and wait until it has ended; what has not come to run by then is left as it is."""
        running = [running_item for running_item in self._entries.values() if running_item.handle is not None]
        for running_item in running:
            running_item.preempt.set()
        if running:
            ends = [asyncio.ensure_future(running_item.ended.wait()) for running_item in running]
            _, late = await asyncio.wait(ends, timeout=grace_seconds + STOP_MARGIN_SECONDS)
            for one in late:
                one.cancel()

    async def leave(self) -> None:
        """Stop following everything: the runs continue, and the next agent of this name adopts them."""
        self._leaving.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._leaving.clear()

    async def _unless_leaving(self, work: Awaitable[T]) -> T | None:
        async with racing(work, self._leaving) as task:
            return task.result() if task.done() else None


#: Runs an item; `None` when the next agent of the name continues it.
TaskWork = Callable[[], Awaitable["Outcome | None"]]


def in_flow() -> bool:
    """Whether this is called from a flow's own code."""
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


async def run_as_task(name: str, work: TaskWork) -> None:
    """Do the work of one item as a task run `run_job` named after it."""
    await _run_job().with_options(task_run_name=_literal(name))(work, return_state=True)


def _literal(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


@lru_cache(maxsize=1)
def _run_job() -> Any:
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Cancelled, Completed, Crashed, Failed

    ends = {ItemState.FAILED: Failed, ItemState.CRASHED: Crashed, ItemState.CANCELLED: Cancelled}
    ends[ItemState.AWAITING_RETRY] = Crashed  # this attempt's bar; the next one has a bar of its own

    @task(name="run_job", cache_policy=NO_CACHE, persist_result=False)
    async def run_job(work: TaskWork) -> Any:
        outcome = await work()
        if outcome is None:
            return Completed(message="Continues under the next run of this agent.", name="HandedOver")
        return ends.get(outcome.state, Completed)(message=outcome.message)

    return run_job
