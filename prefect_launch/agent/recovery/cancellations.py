"""Cancellation requests: for active items, and for items that no agent has.

An event reports a request, and a read confirms it: the server sends an event before it commits, and may not commit. A
regular check finds requests that no event has reported. An event that says that somebody else has put an active item
back into its queue is confirmed likewise, and the run here stopped (`prefect_launch.agent.item.ownership`).

The server itself ends an item that is cancelled while it waits, unless the item has infrastructure on record from an
earlier run, such as an item that was put back in the UI. Any agent of the queue ends such an orphaned item.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final
from uuid import UUID, uuid5

import anyio

from prefect_launch.agent.item.ownership import check_ownership
from prefect_launch.agent.item.running_items import RunningItem, RunningItems
from prefect_launch.agent.polling.events import WakeEvent
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.supervision import OwnedTasks, unless_away
from prefect_launch.errors import ItemGoneError, LaunchError
from prefect_launch.queues.sweep_status import sweep_of
from prefect_launch.queues.transitions import transition
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import SCHEDULER_FLOW, Item, State

log = logging.getLogger(__name__)

#: After an event: a quiet server has committed after the first pause, a loaded one was seen to take a second and more.
CONFIRM_PAUSES_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 1.0, 2.0)
_STOPPING: Final = (StateType.CANCELLING, StateType.CANCELLED)


class CancellationWatcher:
    """Finds the items of one agent that somebody has asked to stop, and sets their stop event.

    Args:
        server: the Prefect server.
        running_items: the active items.
        poll_seconds: between two checks of all of it, when no event comes.
    """

    def __init__(self, server: Server, running_items: RunningItems, poll_seconds: float) -> None:
        self._server = server
        self._running_items = running_items
        self._poll_seconds = poll_seconds
        self._wake = WakeEvent()
        self._confirming = OwnedTasks()

    def on_event(self, running_item: RunningItem) -> None:
        """Note an event that says that an active item is asked to stop; returns at once."""
        self._confirm("a stop", running_item, partial(self._stop_if_asked, running_item))

    def on_put_back(self, running_item: RunningItem) -> None:
        """Note an event that says that somebody else has put an active item back; returns at once."""
        self._confirm("a put-back", running_item, partial(check_ownership, self._server, [running_item]))

    def _confirm(self, what: str, running_item: RunningItem, check: Callable[[], Awaitable[None]]) -> None:
        confirm = partial(_check_until_it_stops, running_item, check)
        self._confirming.start(f"confirming {what} of {running_item.id}", confirm)

    def check_soon(self) -> None:
        """Check all active items soon: events may have been missed."""
        self._wake.set()

    async def watch(self) -> None:
        """Check all active items again and again; never returns. A server that is away is no error."""
        try:
            while True:
                with unless_away(log, "cancellations not checked"):
                    await self._check()
                await self._wake.wait(self._poll_seconds)
        finally:
            await self._confirming.end()

    async def _check(self) -> None:
        ids = self._running_items.held
        if not ids:
            return
        for item in await self._server.list_items(ids=ids, state_types=_STOPPING):
            running_item = self._running_items.find(str(item.id))
            if running_item is not None:
                _stop(running_item)
        await self._stop_trials_of_cancelled_sweeps()

    async def _stop_trials_of_cancelled_sweeps(self) -> None:
        """Stop the trials here of sweeps that are cancelled: a sweep that nobody schedules then has no one else."""
        trials = [(sweep, one) for one in self._running_items.entries if (sweep := sweep_of(one.item)) is not None]
        sweeps = {sweep for sweep, _ in trials}
        if not sweeps:
            return
        found = await self._server.list_items(ids=sweeps, flow=SCHEDULER_FLOW, state_types=[StateType.CANCELLED])
        cancelled = {sweep.id for sweep in found}
        for sweep, running_item in trials:
            if sweep in cancelled:
                _stop(running_item)

    async def _stop_if_asked(self, running_item: RunningItem) -> None:
        item = await self._server.read_item(running_item.id)
        if item is not None and item.state_type in _STOPPING:
            _stop(running_item)


async def _check_until_it_stops(running_item: RunningItem, check: Callable[[], Awaitable[None]]) -> None:
    try:
        for pause in CONFIRM_PAUSES_SECONDS:
            await anyio.sleep(pause)
            if running_item.stop.is_set() or running_item.ended.is_set():
                return
            await check()
    except LaunchError as error:
        log.debug("%s event not confirmed: %s", running_item.id, error)


def _stop(running_item: RunningItem) -> None:
    if not running_item.stop.is_set():
        log.info("%s stop-requested", running_item.id)
        running_item.stop.set()


#: How long the items of events are gathered for one request; an event also comes before its commit.
GATHER_SECONDS: Final = 1.5
CHECK_SECONDS: Final = 60.0
_MOST_IDS: Final = 200
_MESSAGE: Final = "Stopped while it waited: nothing of it was running."


class OrphanedCancellations:
    """Ends items that were asked to stop and that no agent has.

    Args:
        server: the Prefect server.
        queues: of the agent.
        held: gives the ids of its active items.
    """

    def __init__(self, server: Server, queues: Collection[str], held: Callable[[], Collection[UUID]]) -> None:
        self._server = server
        self._queues = tuple(queues)
        self._held = held
        self._changed = asyncio.Event()
        self._ids: set[UUID] = set()

    def on_event(self, item_id: str) -> None:
        """Note an item that an event says is asked to stop."""
        self._ids.add(UUID(item_id))
        self._changed.set()

    async def watch(self) -> None:
        """Check after events, and now and then without one; never returns."""
        while True:
            with anyio.move_on_after(CHECK_SECONDS):
                await self._changed.wait()
                await anyio.sleep(GATHER_SECONDS)
            ids, self._ids = self._ids, set()
            self._changed.clear()
            with unless_away(log, "orphaned cancellations not checked"):
                await self.check(ids)

    async def check(self, ids: Collection[UUID] = ()) -> None:
        """End those of these items that are asked to stop and are nobody's.

        Args:
            ids: of the items; none: all of the queues.

        Raises:
            LaunchError: when the server fails.
        """
        stopping = [StateType.CANCELLING]
        found: list[Item] = []
        if 0 < len(ids) <= _MOST_IDS:
            found = await self._server.list_items(ids=ids, state_types=stopping)
        else:
            for queue in self._queues:
                found += await self._server.list_items(pool=queue, state_types=stopping)
        for item in found:
            if item.id not in self._held():
                await self._end(item)

    async def _end(self, item: Item) -> None:
        history = await self._server.read_states(item.id)
        if not is_orphaned(history):
            return
        once = uuid5(item.id, f"stray stop {history[-1].timestamp}")  # Another agent may end it too.
        try:
            await transition(
                self._server, item.id, StateType.CANCELLING, ItemState.CANCELLED, _MESSAGE, transition_id=once
            )
        except ItemGoneError:
            log.debug("%s is gone", item.id)


def is_orphaned(history: Sequence[State]) -> bool:
    """Whether an item with these states, oldest first, was asked to stop while it waited."""
    before = [state for state in history if state.type is not StateType.CANCELLING]
    is_stopping = bool(history) and history[-1].type is StateType.CANCELLING
    return is_stopping and bool(before) and before[-1].type is StateType.SCHEDULED
