"""The front of one queue: its most urgent items, at a cost that does not grow with what waits behind them.

The server's poll sorts all that is due. So when a poll was slow, the next one shows a whole page, and the due time of
its last item is a bound: for as long as enough items are due up to there, only these are asked for. What is due later
comes first only in a work queue that is more urgent than the last item shown, and a count tells whether such an item
waits. If one does, or too few are due up to the bound, all that is due is polled.

On SQLite the poll of an empty queue is as slow, since it sorts what is due in all queues. So after a slow one that
showed nothing, a count tells whether there is something to poll for. It is polled all the same twice a minute: by its
polls the server knows that a work queue is served.

An item that is put back under an earlier due time is inside the bound. What the server may show changes with limits and
pauses: it applies them at each poll, and an item that they hide counts as one that waits. The order of the work queues
is that of the last full poll, at most half a minute old.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

#: Items of a page; the server refuses more.
PAGE: Final = 200
#: A poll that takes longer is worth a bound.
SLOW_SECONDS: Final = 0.1
#: For how long a bound is used, and no page is asked for after one that was not full: the server was slow otherwise.
BOUND_SECONDS: Final = 30.0


@dataclass(frozen=True)
class _Bound:
    """A due time up to which enough items are due.

    Attributes:
        due: the due time.
        polled_at: when the poll that showed it began, on the monotonic clock.
        order: names of the work queues then, the most urgent first.
    """

    due: datetime
    polled_at: float
    order: tuple[str, ...]


class Front:
    """The first items of one queue.

    Args:
        server: the Prefect server.
        queue: the queue's name.
    """

    def __init__(self, server: Server, queue: str) -> None:
        self._server = server
        self._queue = queue
        self._is_deep = False
        self._not_full_at = float("-inf")
        self._empty_at = float("-inf")
        self._bound: _Bound | None = None

    async def poll(self, limit: int, before: datetime) -> list[Item]:
        """Return the first items that are due by then.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        asked, begun = PAGE if self._is_deep else limit, time.monotonic()
        if begun - self._empty_at < BOUND_SECONDS and not await self._server.count_due(self._queue, before=before):
            return []
        found = await self._server.poll(self._queue, limit=asked, before=before)
        if len(found) < asked == PAGE:
            self._not_full_at = begun
        is_slow = time.monotonic() - begun > SLOW_SECONDS
        self._empty_at = begun if is_slow and not found else float("-inf")
        self._is_deep = is_slow and len(found) == asked and begun - self._not_full_at > BOUND_SECONDS
        self._bound = await self._bound_of(found, begun) if self._is_deep and asked == PAGE else None
        return found[:limit]

    async def _bound_of(self, page: Sequence[Item], polled_at: float) -> _Bound | None:
        now = datetime.now(timezone.utc)
        due = [each for item in page if (each := item.next_scheduled_start_time) is not None and each <= now]
        if not due:
            return None
        order = tuple(queue.name for queue in await self._server.list_queues(self._queue))
        return _Bound(due[-1], polled_at, order)

    async def within_bound(self, limit: int) -> list[Item] | None:
        """Return the first items that are due; `None` when only a poll of all that is due tells.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        bound = self._bound
        if bound is None or 2 * limit > PAGE or time.monotonic() - bound.polled_at > BOUND_SECONDS:
            return None
        found = await self._server.poll(self._queue, limit=limit, before=bound.due)
        if len(found) < limit or await self._may_hide_more_urgent(found, bound.order):
            return None
        return found

    async def _may_hide_more_urgent(self, found: Sequence[Item], order: tuple[str, ...]) -> bool:
        last = found[-1].work_queue_name
        if last not in order:
            return True
        above = order[: order.index(last)]
        if not above:
            return False
        waiting = await self._server.count_due(self._queue, before=datetime.now(timezone.utc), queues=above)
        return waiting > sum(item.work_queue_name in above for item in found)
