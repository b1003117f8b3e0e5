"""What could be claimed: the items that one queue's last poll returned, most urgent first, for a short while.

Polls are shared out over claims: four times the free slots are asked for. An agent that is alone takes them first in,
first out. One that lost a claim lately has others beside it, and shuffles inside one priority, so that they do not all
run for the same item. What is older than the window is not used: the longer an item lies here, the likelier another
agent has had it.

A poll also looks a little ahead: what it shows for later (a retry, a run of a schedule) is never claimed before its
time, but says when to ask again (`due_at`). As it may stand in front of what is due, no answer with it in is taken for
all that is due. When it is due, and for another agent, what is behind it is looked at
(`prefect_launch.agent.polling.next_pages`).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta, timezone
from itertools import groupby
from typing import Final, Protocol
from uuid import UUID

from prefect_launch.agent.item.tracker import is_scheduler
from prefect_launch.agent.polling.next_pages import PAGE, Behind
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

#: How many items are asked for, for each free slot.
POLL_FACTOR: Final = 4
#: For how long a poll's items may be claimed.
WINDOW_SECONDS: Final = 0.5
#: For how long after a lost claim the agent takes it that it is not alone.
CONTENDED_SECONDS: Final = 30.0
#: How far a poll may look ahead at most, and how much further than to the next poll, which may come a little late.
_MOST_AHEAD_SECONDS: Final = 24 * 3600.0
_MARGIN_SECONDS: Final = 1.0
#: Between two polls for items that were not due yet: the clock that says what is due may run unlike the one that waits.
_SHORTEST_WAIT_SECONDS: Final = 0.1


class Gate(Protocol):
    """Decides which of the items that a poll returned may be claimed now (the device allocator)."""

    async def try_reserve(self, queue: str, item: Item) -> bool:
        """Whether an item may be claimed now; what it needs is kept for it from here on."""
        ...

    def sync_waiting(self, queue: str, shown: Collection[UUID]) -> None:
        """Note the ids of all that a queue has waiting."""
        ...

    def release(self, item_id: UUID | str) -> None:
        """Take back what was kept for an item: it was not claimed, or has ended."""
        ...


class Candidates:
    """The items of one queue that this agent may try for.

    Args:
        server: the door.
        queue: the queue's name.
        gate: decides which of them; by default all.
        ahead_seconds: how long it may be to the next poll, which is how far each looks ahead.
    """

    def __init__(self, server: Server, queue: str, gate: Gate | None = None, *, ahead_seconds: float = 0.0) -> None:
        self._server = server
        self._queue = queue
        self._gate = gate
        self._ahead = timedelta(seconds=min(ahead_seconds + _MARGIN_SECONDS, _MOST_AHEAD_SECONDS))
        self._due_at = float("inf")
        self._behind = Behind(server, queue)
        self._items: deque[Item] = deque()
        self._polled_at = float("-inf")
        self._lost_at = float("-inf")
        self._was_all = False

    @property
    def due_at(self) -> float:
        """When to ask again, on the monotonic clock; infinite: the next poll is soon enough.

        That is when the first of what the last poll showed for later is due, or what is behind it is to be looked at.
        """
        return min(self._due_at, self._behind.due_at)

    def lost(self) -> None:
        """Note that another agent was faster with an item."""
        self._lost_at = time.monotonic()

    def forget(self) -> None:
        """Poll anew at the next use: something has come in that may be more urgent."""
        self._items.clear()
        self._polled_at = float("-inf")
        self._behind.changed()

    def freed(self) -> None:
        """Note that an item in work has ended: a queue at its limit may have more to give now."""
        self._was_all = False
        self._behind.changed()

    async def next(self, *, slots: int, skip: Collection[UUID], schedulers: bool = True) -> Item | None:
        """Return the next item to try for; `None` when the queue has none.

        Args:
            slots: how many the agent could start now.
            skip: items that it holds already.
            schedulers: whether a sweep's scheduler could be started.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        if self._is_stale or (not self._items and not self._was_all):
            await self._look_ahead(min(PAGE, POLL_FACTOR * max(slots, 1)))
        found = await self._take(skip, schedulers)
        if found is None and not self._was_all:
            # All that came is not for us, or not yet; what is may lie behind it.
            front = await self._poll(PAGE, datetime.now(timezone.utc))
            self._keep(front, PAGE)
            found = await self._take(skip, schedulers)
            if found is None and len(front) == PAGE:
                found = await self._behind.find(front, lambda page: self._take_of(page, skip, schedulers))
        return found

    @property
    def _is_stale(self) -> bool:
        now = time.monotonic()
        return now - self._polled_at > WINDOW_SECONDS or now >= self._due_at

    async def _take(self, skip: Collection[UUID], schedulers: bool) -> Item | None:
        while self._items:
            item = self._items.popleft()
            if item.id in skip or not (schedulers or not is_scheduler(item)):
                continue
            if self._gate is None or await self._gate.try_reserve(self._queue, item):
                return item
        return None

    async def _take_of(self, page: list[Item], skip: Collection[UUID], schedulers: bool) -> Item | None:
        """Take an item of a page from behind the front; what is left of it may be claimed for as long as of a poll."""
        self._polled_at = time.monotonic()
        self._items = self._in_turn(page)
        return await self._take(skip, schedulers)

    async def _look_ahead(self, limit: int) -> None:
        """Poll for what is due, and note when the next is that will be."""
        now = datetime.now(timezone.utc)
        found = await self._poll(limit, now + self._ahead)
        later = [due for item in found if (due := item.next_scheduled_start_time) is not None and due > now]
        wait = (min(later) - now).total_seconds() if later else float("inf")
        self._due_at = self._polled_at + max(wait, _SHORTEST_WAIT_SECONDS)
        self._keep([item for item in found if (item.next_scheduled_start_time or now) <= now], limit, more=bool(later))

    async def _poll(self, limit: int, before: datetime) -> list[Item]:
        self._polled_at = time.monotonic()
        return await self._server.poll(self._queue, limit=limit, before=before)

    def _keep(self, due: list[Item], limit: int, *, more: bool = False) -> None:
        """Keep what a poll showed as due.

        Args:
            due: in the server's order.
            limit: how many were asked for.
            more: what is not due yet was shown too, perhaps in the place of what is.
        """
        self._items = self._in_turn(due)
        self._was_all = len(due) < limit and not more
        if self._was_all:
            self._behind.is_empty()
        if self._gate is not None and (self._was_all or (limit == PAGE and not more)):
            self._gate.sync_waiting(self._queue, {item.id for item in due} | self._behind.shown)

    def _in_turn(self, due: list[Item]) -> deque[Item]:
        contended = time.monotonic() - self._lost_at < CONTENDED_SECONDS
        return deque(shuffled(due) if contended else due)


def shuffled(items: Iterable[Item]) -> list[Item]:
    """Return items in the server's order of priorities, shuffled inside each."""
    mixed: list[Item] = []
    for _, group in groupby(items, key=lambda item: item.work_queue_id):
        equals = list(group)
        random.shuffle(equals)
        mixed.extend(equals)
    return mixed
