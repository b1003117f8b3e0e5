"""Requests to stop what is in work: heard of by an event and confirmed by a read, or found by a look now and then.

A hook beside the loop, so that a request never waits until the loop has polled and claimed. An event is sent before the
server has committed what it tells, and what it tells may come to nothing: only the item's own state counts.
"""

from __future__ import annotations

import asyncio
from typing import Final

import anyio

from prefect_launch.agent.item.running_items import Crew
from prefect_launch.agent.item.tracker import JobTracker
from prefect_launch.agent.item.transitions import log
from prefect_launch.agent.polling.events import Wake
from prefect_launch.core.states import StateType
from prefect_launch.core.supervision import restarted
from prefect_launch.errors import LaunchError
from prefect_launch.server.protocol import Server

#: After an event: a quiet server has committed after the first pause, a loaded one was seen to take a second and more.
CONFIRM_PAUSES_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 1.0, 2.0)
_STOPPING: Final = (StateType.CANCELLING, StateType.CANCELLED)


class StopRequests:
    """Finds the items of one agent that somebody has asked to stop, and says so to their trackers.

    Args:
        server: the door.
        crew: what is in work.
        poll_seconds: between two looks at all of it, when no event comes.
    """

    def __init__(self, server: Server, crew: Crew, poll_seconds: float) -> None:
        self._server = server
        self._crew = crew
        self._poll_seconds = poll_seconds
        self._wake = Wake()
        self._confirming: dict[str, asyncio.Task[None]] = {}

    def heard(self, tracker: JobTracker) -> None:
        """Note that an event told of an item in work; returns at once."""
        known = self._confirming.get(tracker.thread_id)
        if known is None or known.done():
            self._confirming[tracker.thread_id] = asyncio.create_task(self._confirm(tracker))

    def look_again(self) -> None:
        """Look at all that is in work soon: events may have been missed."""
        self._wake.ring()

    async def watch(self) -> None:
        """Look at all that is in work again and again, for ever; a server that is away is no fault."""
        try:
            while True:
                try:
                    await self._look()
                except LaunchError as error:
                    log.debug("not looked for requests to stop: %s", error)
                await self._wake.wait(self._poll_seconds)
        finally:
            for task in self._confirming.values():
                task.cancel()

    async def _look(self) -> None:
        ids = self._crew.held
        if not ids:
            return
        for item in await self._server.list_items(ids=ids, state_types=_STOPPING):
            tracker = self._crew.find(str(item.id))
            if tracker is not None:
                _stop(tracker)

    async def _confirm(self, tracker: JobTracker) -> None:
        try:
            await restarted("confirming a stop", lambda: self._read_until_it_stops(tracker))
        finally:
            self._confirming.pop(tracker.thread_id, None)

    async def _read_until_it_stops(self, tracker: JobTracker) -> None:
        try:
            for pause in CONFIRM_PAUSES_SECONDS:
                await anyio.sleep(pause)
                if tracker.stop.is_set() or tracker.ended.is_set():
                    return
                item = await self._server.read_item(tracker.id)
                if item is not None and item.state_type in _STOPPING:
                    _stop(tracker)
                    return
        except LaunchError as error:
            log.debug("%s request to stop not confirmed: %s", tracker.id, error)


def _stop(tracker: JobTracker) -> None:
    if not tracker.stop.is_set():
        log.info("%s stop-asked", tracker.id)
        tracker.stop.set()
