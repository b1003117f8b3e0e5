"""What waits behind the front of a queue: a poll shows 200 items at most, and none of those may be for this agent now.

Then it looks behind them, page after page, in the server's own order and inside its limits: the next page begins when
the last item of the one before is due, in the same work queue, then come those of less priority. That is dear to the
server, so a look is a few pages, the next look goes on from there, and between looks there is a pause: a long one when
all was seen and nothing has changed since. What a look shows may be claimed at once; it is polled like the front.

The front is always asked first. Among items that are further behind, the order is kept inside each look only.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Final
from uuid import UUID

from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

#: Items of a page; the server refuses more.
PAGE: Final = 200
#: Pages of one look, and after which time it reads no more of them.
PAGES: Final = 5
LONGEST_SECONDS: Final = 2.0
#: From one look to the next, when that one did not see all, or something has changed since.
LOOK_SECONDS: Final = 5.0
#: When all was seen, and nothing has changed that this agent could know of.
REST_SECONDS: Final = 30.0
_NEXT: Final = timedelta(microseconds=1)


@dataclass(frozen=True)
class Place:
    """Where to read on.

    Attributes:
        queues: names of the work queues that are not read to their end, the most urgent first.
        after: what is due earlier in the first of them was read; `None`: all of them are to be read whole.
        read: ids of what was read and is due at that very time.
    """

    queues: tuple[str, ...]
    after: datetime | None = None
    read: frozenset[UUID] = frozenset()


class Behind:
    """The items of one queue behind its front.

    Args:
        server: the door.
        queue: the queue's name.
        now: the clock, s.
    """

    def __init__(self, server: Server, queue: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._queue = queue
        self._now = now
        self._place: Place | None = None
        self._looked_at = float("-inf")
        self._next_at = float("-inf")
        self._has_changed = False
        #: What the round that goes on has shown, and what the one before it has.
        self._shown: set[UUID] = set()
        self._shown_before: set[UUID] = set()

    @property
    def due_at(self) -> float:
        """When the next look is due, on the monotonic clock; infinite: the next poll is soon enough."""
        return self._next_at if self._place is not None or self._has_changed else float("inf")

    @property
    def shown(self) -> set[UUID]:
        """Ids of what waits behind the front, as it was last seen."""
        return self._shown | self._shown_before

    def is_empty(self) -> None:
        """Note that a poll has shown all that is due: nothing waits behind it."""
        self._place, self._has_changed = None, False
        self._shown, self._shown_before = set(), set()

    def changed(self) -> None:
        """Note that there may be more for this agent than at the last look."""
        self._has_changed = True
        self._next_at = min(self._next_at, self._looked_at + LOOK_SECONDS)

    async def find(self, front: Sequence[Item], take: Callable[[list[Item]], Awaitable[Item | None]]) -> Item | None:
        """Return the first item that is for this agent; `None` when there is none, or the last look was just now.

        Args:
            front: what the poll has shown, in the server's order.
            take: returns the item of a page that is for this agent. The next look, which may be at once when there was
                one, begins with its page.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        began = self._now()
        if began < self._next_at:
            return None
        self._looked_at, self._has_changed = began, False
        place = self._place or await self._end_of(front)
        for _ in range(PAGES):
            if place is None or self._now() - began > LONGEST_SECONDS:
                break
            self._place = place
            page, place = await self._read(place)
            self._shown.update(item.id for item in page)
            found = await take(page)
            if found is not None:
                return found
        self._rest(place)
        return None

    def _rest(self, place: Place | None) -> None:
        """Note how far a look has come that found nothing."""
        self._place = place
        if place is None:
            self._shown, self._shown_before = set(), self._shown
        self._next_at = self._looked_at + (REST_SECONDS if place is None else LOOK_SECONDS)
        if self._has_changed:
            self.changed()

    async def _end_of(self, front: Sequence[Item]) -> Place | None:
        names = tuple(queue.name for queue in await self._server.list_queues(self._queue))
        return _after(names, front)

    async def _read(self, place: Place) -> tuple[list[Item], Place | None]:
        """Return the items of a place that were not read, and the place behind them."""
        within = place.queues if place.after is None else place.queues[:1]
        found = await self._server.poll(
            self._queue, limit=PAGE, before=datetime.now(timezone.utc), after=place.after, queues=within
        )
        page = [item for item in found if item.id not in place.read]
        if len(found) < PAGE:
            rest = place.queues[len(within) :]
            return page, Place(rest) if rest else None
        if not page and place.after is not None:
            # More are due at one and the same time than a page holds: those that are not shown wait for the front.
            return page, Place(place.queues, place.after + _NEXT)
        behind = _after(place.queues, found)
        if behind is not None and behind.after == place.after:
            behind = replace(behind, read=behind.read | place.read)
        return page, behind


def _after(queues: tuple[str, ...], page: Sequence[Item]) -> Place | None:
    """Return the place behind a full page."""
    last = page[-1]
    due, name = last.next_scheduled_start_time, last.work_queue_name
    if due is None or name not in queues:
        return None
    read = frozenset(item.id for item in page if item.work_queue_name == name and item.next_scheduled_start_time == due)
    return Place(queues[queues.index(name) :], due, read)
