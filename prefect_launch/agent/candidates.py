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
from typing import Final
from uuid import UUID

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


class Candidates:
    """The items of one queue that this agent may try for.

    Args:
        server: the door.
        queue: the queue's name.
    """

    def __init__(self, server: Server, queue: str) -> None:
        self._server = server
        self._queue = queue
        self._items: deque[Item] = deque()
        self._polled_at = float("-inf")
        self._lost_at = float("-inf")

    def lost(self) -> None:
        """Note that another agent was faster with an item."""
        self._lost_at = time.monotonic()

    def forget(self) -> None:
        """Poll anew at the next use: something has come in that may be more urgent."""
        self._items.clear()

    async def next(self, *, slots: int, skip: Collection[UUID]) -> Item | None:
        """Return the next item to try for; `None` when the queue has none.

        Args:
            slots: how many the agent could start now.
            skip: items that it holds already.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        if not self._items or time.monotonic() - self._polled_at > WINDOW_SECONDS:
            limit = min(POLL_LIMIT, POLL_FACTOR * max(slots, 1))
            self._polled_at = time.monotonic()
            found = await self._server.poll(self._queue, limit=limit, before=datetime.now(timezone.utc))
            contended = time.monotonic() - self._lost_at < CONTENDED_SECONDS
            self._items = deque(shuffled(found) if contended else found)
        while self._items:
            item = self._items.popleft()
            if item.id not in skip:
                return item
        return None


def shuffled(items: Iterable[Item]) -> list[Item]:
    """Return items in the server's order of priorities, shuffled inside each."""
    mixed: list[Item] = []
    for _, group in groupby(items, key=lambda item: item.work_queue_id):
        equals = list(group)
        random.shuffle(equals)
        mixed.extend(equals)
    return mixed
