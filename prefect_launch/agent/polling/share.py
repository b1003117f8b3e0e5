"""An agent's share of a queue's waiting items, for as long as other agents take items of the queue too.

Agents that try for the same item cost the server a refused claim each, and polls that show what another has taken. So
an agent that has lost a claim reads which agents live, and takes those items first that are its own: for each item, all
agents work out the same owner, with no word between them. What is another's it takes when a poll shows nothing of its
own. Half a minute after its last lost claim it takes items first in, first out again: nothing waits for long for an
owner that has no free slot.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from hashlib import blake2b
from itertools import groupby
from typing import Final
from uuid import UUID

from prefect_launch.queues.presence import read_presences
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

#: For how long after a lost claim the agent takes it that it is not alone.
CONTENDED_SECONDS: Final = 30.0


class Share:
    """Which of a queue's items an agent tries for first.

    Args:
        server: the Prefect server.
        queue: the queue's name.
        instance: of this life of the agent.
    """

    def __init__(self, server: Server, queue: str, instance: str) -> None:
        self._server = server
        self._queue = queue
        self._instance = instance
        self._lives = {instance}
        self._lost_at = float("-inf")
        self._read_at = float("-inf")

    @property
    def agents(self) -> int:
        """How many agents share the items; one while no claim is lost."""
        return len(self._lives) if self._is_contended else 1

    @property
    def _is_contended(self) -> bool:
        return time.monotonic() - self._lost_at < CONTENDED_SECONDS

    async def note_lost_claim(self) -> None:
        """Note that another agent was faster with an item; see who they are, unless it was seen within the time."""
        self._lost_at = time.monotonic()
        if self._lost_at - self._read_at >= CONTENDED_SECONDS:
            self._read_at = self._lost_at
            lives = await read_presences(self._server)
            others = {life.holder.instance for life in lives if self._queue in life.queues and not life.has_left}
            self._lives = {self._instance, *others}

    def holds(self, item: Item) -> bool:
        """Whether an item is this agent's, of several agents."""
        return self.agents > 1 and self._instance == max(self._lives, key=lambda life: _rank(life, item.id))

    def in_order(self, items: Iterable[Item]) -> list[Item]:
        """Return items by the server's order of priorities; inside each its own, then the rest, shuffled."""
        if not self._is_contended:
            return list(items)
        ordered: list[Item] = []
        for _, group in groupby(items, key=lambda item: item.work_queue_id):
            own: list[Item] = []
            rest: list[Item] = []
            for item in group:
                (own if self.holds(item) else rest).append(item)
            random.shuffle(rest)
            ordered += own + rest
        return ordered


def _rank(life: str, item_id: UUID) -> bytes:
    return blake2b(life.encode() + item_id.bytes, digest_size=8).digest()
