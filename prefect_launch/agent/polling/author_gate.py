"""Gate for queues that share their slots among authors: who is at the limit is passed over, the others take turns.

A poll shows the first items of the line, which may all be of one author. So the gate also looks through what waits
behind them, a thousand items at a time, and remembers the oldest of each author. It reads these again before it lets
one of them start.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import datetime, timezone
from itertools import zip_longest
from typing import Final
from uuid import UUID

from prefect_launch.agent.polling.candidates import SCAN_SECONDS, Startable
from prefect_launch.core.states import StateType
from prefect_launch.errors import LaunchError
from prefect_launch.queues.author_shares import in_turn, read_in_work
from prefect_launch.server.paging import all_items
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import JOB_FLOW, PAGE, Item
from prefect_launch.spec.item_parameters import author_of, is_scheduler

#: Items that are looked through at a time.
_SCAN_ITEMS: Final = 5 * PAGE
#: Items of one author and priority that are remembered.
_REMEMBERED: Final = 20
_NOT_DUE: Final = datetime.max.replace(tzinfo=timezone.utc)


class AuthorGate:
    """Lets the items of authors start that have less in work than the queue allows, in turn.

    Args:
        server: the Prefect server.
        queue: the queue's name.
        per_author: returns how many jobs of one author may be in work; `None`: there is no limit, and nothing to ask.
        may_start: drops the items that may not start for another reason.
    """

    def __init__(self, server: Server, queue: str, per_author: Callable[[], int | None], may_start: Startable) -> None:
        self._server = server
        self._queue = queue
        self._per_author = per_author
        self._may_start = may_start
        self._lines = _Lines(server, queue)

    async def startable(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that may start, in the order in which authors take turns: at most as many as were polled.

        The server polls no more than the limits of the queue leave room for.

        Raises:
            LaunchError: when the server does not answer.
        """
        most = self._per_author()
        if most is None or not items:
            return await self._may_start(items)
        in_work = await read_in_work(self._server, self._queue)
        ready = await self._may_start(await self._with_hidden(items, in_work))
        counts = Counter(map(author_of, in_work))
        return in_turn(_oldest(ready, counts, most), counts, most)[: len(items)]

    async def _with_hidden(self, items: Sequence[Item], in_work: Sequence[Item]) -> list[Item]:
        """Return a poll's items and the first of each author behind them, the most urgent first."""
        ids = await self._lines.first({item.id for item in items})
        if not ids:
            return list(items)
        waiting = [StateType.SCHEDULED]
        hidden = await self._server.list_items(ids=ids, state_types=waiting, due_before=datetime.now(timezone.utc))
        active = Counter(item.work_queue_name for item in in_work)
        queues = await self._server.list_queues(self._queue)
        ranks = {queue.name: rank for rank, queue in enumerate(queues)}
        taking = {
            queue.name
            for queue in queues
            if not queue.is_paused and active[queue.name] < (queue.concurrency_limit or float("inf"))
        }
        hidden.sort(key=lambda item: ids.index(item.id))
        every = [*items, *(item for item in hidden if item.work_queue_name in taking)]
        return sorted(every, key=lambda item: ranks.get(item.work_queue_name or "", len(ranks)))


def _oldest(items: Sequence[Item], in_work: Counter[str], most: int) -> list[Item]:
    """Return the items without those that are not among an author's next: a poll's items may have been shuffled."""
    lines, younger = Counter[tuple[UUID | None, str]](), set[UUID]()
    for item in sorted(items, key=lambda item: item.next_scheduled_start_time or _NOT_DUE):
        line = (item.work_queue_id, author_of(item))
        if not is_scheduler(item):
            lines[line] += 1
            if lines[line] > most - in_work[line[1]]:
                younger.add(item.id)
    return [item for item in items if item.id not in younger]


class _Lines:
    """The oldest waiting items of each author and priority, as the last look through the queue has shown them.

    Args:
        server: the Prefect server.
        queue: the queue's name.
    """

    def __init__(self, server: Server, queue: str) -> None:
        self._server = server
        self._queue = queue
        self._known: dict[tuple[str | None, str], deque[UUID]] = {}
        self._found: dict[tuple[str | None, str], deque[UUID]] = {}
        self._rest: AsyncIterator[Item] | None = None
        self._looked_at = float("-inf")

    async def first(self, shown: Collection[UUID]) -> list[UUID]:
        """Return ids of the first items of each line but for those that are shown, as many as one request lists."""
        if time.monotonic() - self._looked_at > SCAN_SECONDS:
            await self._look()
            self._looked_at = time.monotonic()
        lines = [*self._known.values(), *(line for key, line in self._found.items() if key not in self._known)]
        each = zip_longest(*(reversed(line) for line in lines))
        return [one for turn in each for one in turn if one is not None and one not in shown][:PAGE]

    async def _look(self) -> None:
        """Look through some more of what waits, newest first; from the newest again once all was seen."""
        waiting = [StateType.SCHEDULED]
        if self._rest is None:
            self._found = {}
            self._rest = all_items(self._server, pool=self._queue, flow=JOB_FLOW, state_types=waiting)
        try:
            for _ in range(_SCAN_ITEMS):
                item = await anext(self._rest, None)
                if item is None:
                    self._known, self._rest = self._found, None
                    return
                line = self._found.setdefault((item.work_queue_name, author_of(item)), deque(maxlen=_REMEMBERED))
                line.append(item.id)
        except LaunchError:
            self._rest = None
            raise
