"""What could be claimed: the items that one queue's last poll returned, most urgent first, for a short while.

Polls are shared out over claims: four times the free slots are asked for. An agent that is alone takes them first in,
first out. One that lost a claim lately has others beside it, and shuffles inside one priority, so that they do not all
run for the same item. What is older than the window is not used: the longer an item lies here, the likelier another
agent has had it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from itertools import groupby
from typing import Final, Protocol
from uuid import UUID

from prefect_launch.agent.tracker import is_scheduler
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

#: How many items are asked for, for each free slot.
POLL_FACTOR: Final = 4
#: The server refuses more.
POLL_LIMIT: Final = 200
#: For how long a poll's items may be claimed.
WINDOW_SECONDS: Final = 0.5
#: For how long after a lost claim the agent takes it that it is not alone.
CONTENDED_SECONDS: Final = 30.0


class Gate(Protocol):
    """Decides which of the items that a poll returned may be claimed now (the desk that gives out devices)."""

    async def admit(self, queue: str, item: Item) -> bool:
        """Whether an item may be claimed now; what it needs is kept for it from here on."""
        ...

    def saw(self, queue: str, items: Collection[Item]) -> None:
        """Note all that a queue has waiting."""
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
    """

    def __init__(self, server: Server, queue: str, gate: Gate | None = None) -> None:
        self._server = server
        self._queue = queue
        self._gate = gate
        self._items: deque[Item] = deque()
        self._polled_at = float("-inf")
        self._lost_at = float("-inf")
        self._was_all = False

    def lost(self) -> None:
        """Note that another agent was faster with an item."""
        self._lost_at = time.monotonic()

    def forget(self) -> None:
        """Poll anew at the next use: something has come in that may be more urgent."""
        self._items.clear()
        self._polled_at = float("-inf")

    def freed(self) -> None:
        """Note that an item in work has ended: a queue at its limit may have more to give now."""
        self._was_all = False

    async def next(self, *, slots: int, skip: Collection[UUID], schedulers: bool = True) -> Item | None:
        """Return the next item to try for; `None` when the queue has none.

        Args:
            slots: how many the agent could start now.
            skip: items that it holds already.
            schedulers: whether a sweep's scheduler could be started.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        stale = time.monotonic() - self._polled_at > WINDOW_SECONDS
        if stale or (not self._items and not self._was_all):
            await self._poll(min(POLL_LIMIT, POLL_FACTOR * max(slots, 1)))
        found = await self._take(skip, schedulers)
        if found is None and not self._was_all:
            # All that came is not for us; what is may lie behind it.
            await self._poll(POLL_LIMIT)
            found = await self._take(skip, schedulers)
        return found

    async def _take(self, skip: Collection[UUID], schedulers: bool) -> Item | None:
        while self._items:
            item = self._items.popleft()
            if item.id in skip or not (schedulers or not is_scheduler(item)):
                continue
            if self._gate is None or await self._gate.admit(self._queue, item):
                return item
        return None

    async def _poll(self, limit: int) -> None:
        self._polled_at = time.monotonic()
        found = await self._server.poll(self._queue, limit=limit, before=datetime.now(timezone.utc))
        contended = time.monotonic() - self._lost_at < CONTENDED_SECONDS
        self._items = deque(shuffled(found) if contended else found)
        self._was_all = len(found) < limit
        if self._gate is not None and (self._was_all or limit == POLL_LIMIT):
            self._gate.saw(self._queue, found)


def shuffled(items: Iterable[Item]) -> list[Item]:
    """Return items in the server's order of priorities, shuffled inside each."""
    mixed: list[Item] = []
    for _, group in groupby(items, key=lambda item: item.work_queue_id):
        equals = list(group)
        random.shuffle(equals)
        mixed.extend(equals)
    return mixed
