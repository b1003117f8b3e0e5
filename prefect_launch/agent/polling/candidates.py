"""Claim candidates: the items of one queue that the last poll returned, most urgent first, for a short while.

A poll asks for four times the free slots. An agent that is alone takes items first in, first out. On a queue without
limits it asks for at least sixteen, and may claim them for two seconds, so that a busy agent polls once for many items:
a poll costs the server 22 ms, and each item of it 0.15 ms. Whatever changes the order meanwhile (a new item of another
priority, one that is put back or due, a pause of the queue) is an event, or known by its time, and ends that. A new
item of the least urgent priority among those left waits behind them; one that was moved and keeps its place in line may
come as late as the window is long. An item that has left the queue, which no event tells, is refused at the claim, or
found to have ended there (`prefect_launch.queues.claim`).

Several agents share what waits (`prefect_launch.agent.polling.share`): each asks for as many times more, and takes its
own items first. The older a candidate is, the likelier another agent has it: one older than the window is not used. The
window of its own items is longer by as many times, up to eight seconds, so an agent polls about as often for an item as
one that is alone.

A poll also looks a little ahead. An item that is due later (a retry, a scheduled run) is never claimed before its time,
but says when to poll again (`due_at`). It can take the place of a due item, so an answer that holds one is never
treated as all due items.

A poll shows at most 200 items, and this agent may be unable to take any of them. Then it reads further pages, in the
server's own order and inside its limits. The next page begins at the due time of the last item of the page before, in
the same work queue; work queues of lower priority follow. That is expensive for the server, so one scan is a few pages,
and the next scan, after a pause, continues from there. The front is always polled first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Final, Protocol
from uuid import UUID

from prefect_launch.agent.polling.front import PAGE, Front
from prefect_launch.agent.polling.share import Fleet, Share
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item
from prefect_launch.spec.item_parameters import is_scheduler

#: Pages of one scan, and after which time it reads no more of them.
PAGES: Final = 5
LONGEST_SECONDS: Final = 2.0
#: From one scan to the next, when that one did not see all, or something has changed since.
SCAN_SECONDS: Final = 5.0
#: A scan that takes long is followed by a rest so many times as long: at most a tenth of the time.
REST_FACTOR: Final = 10.0
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


class QueuePager:
    """The items of one queue behind its front.

    Args:
        server: the Prefect server.
        queue: the queue's name.
        now: the clock, s.
    """

    def __init__(self, server: Server, queue: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._queue = queue
        self._now = now
        self._place: Place | None = None
        self._scanned_at = float("-inf")
        self._next_at = float("-inf")
        self._has_changed = False
        self._pause = SCAN_SECONDS
        #: What the current round has shown, and what the one before it has.
        self._shown: set[UUID] = set()
        self._shown_before: set[UUID] = set()

    @property
    def due_at(self) -> float:
        """When the next scan is due, on the monotonic clock; infinite: the next poll is soon enough."""
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
        """Note that there may be more for this agent than at the last scan."""
        self._has_changed = True
        self._next_at = min(self._next_at, self._scanned_at + self._pause)

    async def find(self, front: Sequence[Item], take: Callable[[list[Item]], Awaitable[Item | None]]) -> Item | None:
        """Return the first item that is for this agent; `None` when there is none, or the last scan was just now.

        Args:
            front: what the poll has shown, in the server's order.
            take: returns the item of a page that is for this agent. The next scan, which may be at once when there was
                one, begins with its page.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        began = self._now()
        if began < self._next_at:
            return None
        self._scanned_at, self._has_changed = began, False
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
        """Note how far a scan has come that found nothing."""
        self._place = place
        if place is None:
            self._shown, self._shown_before = set(), self._shown
        self._pause = max(SCAN_SECONDS, REST_FACTOR * (self._now() - self._scanned_at))
        self._next_at = self._scanned_at + (max(REST_SECONDS, self._pause) if place is None else self._pause)
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


#: How many items are asked for, for each free slot.
POLL_FACTOR: Final = 4
#: For how long a poll's items may be claimed.
WINDOW_SECONDS: Final = 0.5
#: The same on a queue without limits, for items that no other agent tries for.
SURE_SECONDS: Final = 2.0
#: The longest window of the own items of an agent that shares, whose window is as many times longer as agents share.
MOST_SECONDS: Final = 8.0
#: How many items are asked for at least on a queue without limits, for each agent that shares.
LEAST_ITEMS: Final = 16
#: How many the agents' number makes of that at most.
_MOST_ITEMS: Final = 64
#: How far a poll may look ahead at most, and how much further than to the next poll, which may come a little late.
_MOST_AHEAD_SECONDS: Final = 24 * 3600.0
_MARGIN_SECONDS: Final = 1.0
#: Between two polls for items that were not due yet: the clock that says what is due may run unlike the one that waits.
_SHORTEST_WAIT_SECONDS: Final = 0.1


class AdmissionCheck(Protocol):
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


#: Returns those of a poll's items, and of what waits behind them, that may start now, in the order of the tries.
Startable = Callable[[Sequence[Item]], Awaitable[list[Item]]]


class Candidates:
    """The items of one queue that this agent may try for.

    Args:
        server: the Prefect server.
        queue: the queue's name.
        admission: decides which of them; by default all.
        ahead_seconds: how long it may be to the next poll, which is how far each looks ahead.
        startable: drops those that may not start yet, once a poll; by default none.
        share: what it takes first, of several agents; by default it is alone.
        is_limited: whether the queue has a limit, at which it gives less than it has; by default not.
    """

    def __init__(
        self,
        server: Server,
        queue: str,
        admission: AdmissionCheck | None = None,
        *,
        ahead_seconds: float = 0.0,
        startable: Startable | None = None,
        share: Share | None = None,
        is_limited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._server = server
        self._queue = queue
        self._share = share or Share(Fleet(), queue)
        self._admission = admission
        self._startable = startable
        self._is_limited = is_limited
        self._ahead = timedelta(seconds=min(ahead_seconds + _MARGIN_SECONDS, _MOST_AHEAD_SECONDS))
        self._due_at = float("inf")
        self._front = Front(server, queue)
        self._pager = QueuePager(server, queue)
        self._items: deque[Item] = deque()
        self._polled_at = float("-inf")
        self._was_all = False
        #: Whether the last poll has shown something that did not fit then.
        self._has_passed_over = False

    @property
    def due_at(self) -> float:
        """When to ask again, on the monotonic clock; infinite: the next poll is soon enough.

        That is when the first of what the last poll showed for later is due, or what is behind it is to be looked at.
        """
        return min(self._due_at, self._pager.due_at)

    def note_lost_claim(self) -> None:
        """Note that another agent was faster with an item."""
        self._share.note_lost_claim()

    def drop(self, item_id: str) -> None:
        """Try no more for an item that another agent has claimed."""
        left = deque(item for item in self._items if str(item.id) != item_id)
        if len(left) < len(self._items):
            self._share.note_lost_item()
        self._items = left

    def forget(self) -> None:
        """Poll anew at the next use: something has come in that may be more urgent."""
        self._items.clear()
        self._polled_at = float("-inf")
        self._pager.changed()

    def note_new(self, work_queue: str) -> None:
        """Note an item that was made just now; poll for it at once if it may come before what is left of the last poll.

        Args:
            work_queue: its work queue; empty: not known.
        """
        if self._is_limited() or not self._items or self._items[-1].work_queue_name != work_queue:
            self.forget()
            return
        self._was_all = False
        self._pager.changed()

    def note_freed_slot(self) -> None:
        """Note that an active item has ended: items that were passed over may fit now."""
        if self._is_limited() or self._has_passed_over:
            self._was_all = False
            self._pager.changed()

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
            await self._look_ahead(min(PAGE, self._wanted(slots)))
        found = await self._take(skip, schedulers)
        if found is None and not self._was_all:
            # All that came is not for us, or not yet; what is may lie behind it.
            front = await self._poll(PAGE, datetime.now(timezone.utc))
            await self._keep(front, PAGE)
            found = await self._take(skip, schedulers)
            if found is None and len(front) == PAGE:
                found = await self._pager.find(front, lambda page: self._take_of(page, skip, schedulers))
        return found

    def _wanted(self, slots: int) -> int:
        """Return how many items to ask for: of each agent's own, as many as it may claim before the next poll."""
        wanted = POLL_FACTOR * max(slots, 1) * self._share.agents
        return wanted if self._is_limited() else max(wanted, min(LEAST_ITEMS * self._share.agents, _MOST_ITEMS))

    @property
    def _is_stale(self) -> bool:
        now = time.monotonic()
        return now - self._polled_at > self._window or now >= self._due_at

    @property
    def _window(self) -> float:
        """For how long what is left of the last poll may be claimed, in seconds."""
        is_own = bool(self._items) and self._share.holds(self._items[0])
        window = SURE_SECONDS if (is_own or self._share.is_alone) and not self._is_limited() else WINDOW_SECONDS
        return min(window * self._share.agents, MOST_SECONDS) if is_own else window

    async def _take(self, skip: Collection[UUID], schedulers: bool) -> Item | None:
        while self._items:
            item = self._items.popleft()
            if item.id in skip:
                continue
            if (schedulers or not is_scheduler(item)) and (
                self._admission is None or await self._admission.try_reserve(self._queue, item)
            ):
                return item
            self._has_passed_over = True
        return None

    async def _take_of(self, page: list[Item], skip: Collection[UUID], schedulers: bool) -> Item | None:
        """Take an item of a page from behind the front; what is left of it may be claimed for as long as of a poll."""
        self._polled_at = time.monotonic()
        await self._set_items(page)
        return await self._take(skip, schedulers)

    async def _look_ahead(self, limit: int) -> None:
        """Poll for what is due, and note when the next is that will be."""
        if time.monotonic() < self._due_at:
            self._note_poll()
            first = await self._front.within_bound(limit)
            if first is not None:
                await self._keep(first, limit)
                return
        now = datetime.now(timezone.utc)
        found = await self._poll(limit, now + self._ahead)
        later = [due for item in found if (due := item.next_scheduled_start_time) is not None and due > now]
        wait = (min(later) - now).total_seconds() if later else float("inf")
        self._due_at = self._polled_at + max(wait, _SHORTEST_WAIT_SECONDS)
        ready = [item for item in found if (item.next_scheduled_start_time or now) <= now]
        await self._keep(ready, limit, more=bool(later))

    async def _poll(self, limit: int, before: datetime) -> list[Item]:
        self._note_poll()
        return await self._front.poll(limit, before)

    def _note_poll(self) -> None:
        self._polled_at, self._has_passed_over = time.monotonic(), False

    async def _keep(self, due: list[Item], limit: int, *, more: bool = False) -> None:
        """Keep what a poll showed as due.

        Args:
            due: in the server's order.
            limit: how many were asked for.
            more: what is not due yet was shown too, perhaps in the place of what is.
        """
        await self._set_items(due)
        self._was_all = len(due) < limit and not more
        if self._was_all:
            self._pager.is_empty()
        if self._admission is not None and (self._was_all or (limit == PAGE and not more)):
            offered = {item.id for item in (*due, *self._items)}
            self._admission.sync_waiting(self._queue, offered | self._pager.shown)

    async def _set_items(self, due: list[Item]) -> None:
        """Be about these items, but for those that may not start yet."""
        items = self._share.in_order(due)
        startable = items if self._startable is None else await self._startable(items)
        self._has_passed_over |= not {item.id for item in due} <= {item.id for item in startable}
        self._items = deque(startable)
