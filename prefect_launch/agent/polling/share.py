"""An agent's share of a queue's waiting items, for as long as other agents take items of the queue too.

For each item, all agents work out the same order of each other, with no word between them: who comes first is its
owner. Agents that try for the same item cost the server a refused claim each, and polls that show what another has
taken. So an agent that has lost a claim, or an item that it would have tried for, takes those items first that are
its own. What is another's it takes when a poll shows nothing of its own. Half a minute after its last lost claim it
takes items first in, first out again, until it loses one: nothing waits for long for an owner that has no free slot.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable
from hashlib import blake2b
from itertools import groupby
from typing import Final
from uuid import UUID

from prefect_launch.queues.presence import Presence
from prefect_launch.server.values import Item

#: For how long after a lost claim or item the agent takes it that it is not alone.
CONTENDED_SECONDS: Final = 30.0


class Fleet:
    """The agents that live, this one among them.

    Args:
        instance: of this life of the agent.
    """

    def __init__(self, instance: str = "") -> None:
        self._instance = instance
        self._others: dict[str, set[str]] = {}

    def note(self, others: Iterable[Presence]) -> None:
        """Note the other lives that are online, as they were last seen."""
        self._others = {}
        for life in others:
            for queue in life.queues if life.holder.instance != self._instance else ():
                self._others.setdefault(queue, set()).add(life.holder.instance)

    def size(self, queue: str) -> int:
        """Return how many agents take items of a queue."""
        return 1 + len(self._of(queue))

    def is_first(self, queue: str) -> bool:
        """Whether this agent does what one agent of a queue does for all."""
        return all(self._instance < other for other in self._of(queue))

    def turn(self, queue: str, item_id: str) -> int:
        """Return how many agents come before this one for an item of a queue: none, when it is its owner."""
        rank = _rank(self._instance, item_id)
        return sum(_rank(life, item_id) > rank for life in self._of(queue))

    def _of(self, queue: str) -> Collection[str]:
        return self._others.get(queue, ())


class Share:
    """Which of a queue's items an agent tries for first.

    Args:
        fleet: the agents.
        queue: the queue's name.
    """

    def __init__(self, fleet: Fleet, queue: str) -> None:
        self._fleet = fleet
        self._queue = queue
        self._own: set[UUID] = set()
        self._lost_at = float("-inf")

    @property
    def agents(self) -> int:
        """How many agents share the items; one while nothing is lost to another."""
        return self._fleet.size(self._queue) if self._is_contended else 1

    @property
    def is_alone(self) -> bool:
        """Whether no other agent was seen to take items."""
        return self._fleet.size(self._queue) == 1 and not self._is_contended

    @property
    def _is_contended(self) -> bool:
        return time.monotonic() - self._lost_at < CONTENDED_SECONDS

    def note_lost_claim(self) -> None:
        """Note that another agent was faster with an item."""
        self._lost_at = time.monotonic()

    def note_lost_item(self) -> None:
        """Note that another agent has taken an item that this one would have tried for.

        While the agent shares already, that is what it expects, and does not make it share for longer.
        """
        if not self._is_contended and self._fleet.size(self._queue) > 1:
            self._lost_at = time.monotonic()

    def holds(self, item: Item) -> bool:
        """Whether an item of those last put in order is this agent's, of several agents."""
        return self._is_contended and item.id in self._own

    def in_order(self, items: Iterable[Item]) -> list[Item]:
        """Return items by the server's order of priorities; inside each its own, then the rest, shuffled."""
        found = list(items)
        self._own = set()
        if not self._is_contended:
            return found
        if self.agents > 1:
            self._own = {item.id for item in found if self._fleet.turn(self._queue, str(item.id)) == 0}
        ordered: list[Item] = []
        for _, group in groupby(found, key=lambda item: item.work_queue_id):
            own, rest = list[Item](), list[Item]()
            for item in group:
                (own if item.id in self._own else rest).append(item)
            random.shuffle(rest)
            ordered += own + rest
        return ordered


def _rank(life: str, item_id: str) -> bytes:
    return blake2b(f"{life} {item_id}".encode(), digest_size=8).digest()
