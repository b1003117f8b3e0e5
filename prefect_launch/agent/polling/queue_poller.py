"""Queue poller: polls an agent's queues in turn, claims items, and checks the queues' limits."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.polling.author_gate import AuthorGate
from prefect_launch.agent.polling.candidates import AdmissionCheck, Candidates, Startable
from prefect_launch.agent.polling.events import WakeEvent
from prefect_launch.agent.polling.predecessor_gate import PredecessorGate
from prefect_launch.agent.polling.share import Fleet, Share
from prefect_launch.errors import LaunchError, unknown_name
from prefect_launch.queues.author_shares import has, is_over_share, per_author_of
from prefect_launch.queues.claim import COUNTED, claim, is_over_limit, release_claim
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.server.values import PAGE, SCHEDULER_FLOW, SWEEPS_WORK_QUEUE, Item, ItemChange
from prefect_launch.spec.item_parameters import author_of, is_scheduler

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

#: How often the limits of queues are read; between, a claim costs no request for them. The server's poll knows a new
#: limit at once: these only keep several agents that claim together from going over it.
LIMITS_SECONDS: Final = 25.0
#: The longest pause after an item was given back.
GIVEN_BACK_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Limits:
    """The concurrency limits of one queue: of the whole, of each priority by its work queue's name, of each author."""

    pool: int | None
    queues: dict[str, int]
    per_author: int | None = None

    def of(self, item: Item) -> tuple[int | None, int | None]:
        """Return the limits that apply to an item: of its queue, of its priority."""
        return self.pool, self.queues.get(item.work_queue_name or "")


_UNREAD: Final = Limits(pool=None, queues={})


class QueuePoller:
    """Takes items in for one agent.

    Args:
        session: an open connection.
        queues: names of the agent's queues.
        holder: who claims.
        admission: decides which items it may claim now; by default all.
        opens: says whether items of a queue may be claimed now; by default always.
        poll_seconds: when the next poll comes at the latest: `seconds_until_due` gives what is due before.

    Attributes:
        fleet: the agents that it shares items with.
    """

    def __init__(
        self,
        session: Session,
        queues: Sequence[str],
        holder: Holder,
        admission: AdmissionCheck | None = None,
        opens: Callable[[str], Awaitable[bool]] | None = None,
        poll_seconds: float = 0.0,
    ) -> None:
        self.fleet = Fleet(holder.instance)
        self._session = session
        self._server = session.server
        self._holder = holder
        self._admission = admission
        self._opens = opens
        self._turn = deque(queues)
        self._limits: dict[str, Limits] = {}
        self._changed = WakeEvent()
        self._candidates = {
            queue: Candidates(
                session.server,
                queue,
                admission,
                ahead_seconds=poll_seconds,
                startable=self._gates_of(queue),
                share=Share(self.fleet, queue),
                is_limited=partial(self._is_limited, queue),
            )
            for queue in queues
        }

    def _gates_of(self, queue: str) -> Startable:
        predecessors = PredecessorGate(self._session)
        return AuthorGate(
            self._server, queue, lambda: self._limits.get(queue, _UNREAD).per_author, predecessors.startable
        ).startable

    async def next(self, *, slots: int, skip: Collection[UUID], schedulers: bool = True) -> tuple[Item, str] | None:
        """Return a claimed item of the first queue in turn that has one; that queue's next turn comes last.

        Args:
            slots: how many the agent could start now.
            skip: items that it holds already.
            schedulers: whether a sweep's scheduler could be started.
        """
        for queue in tuple(self._turn):
            item = await self.pop(queue, slots=slots, skip=skip, schedulers=schedulers)
            if item is not None:
                self._turn.remove(queue)
                self._turn.append(queue)
                return item, queue
        return None

    async def pop(
        self, queue: str, *, slots: int = 1, skip: Collection[UUID] = (), schedulers: bool = True
    ) -> Item | None:
        """Return a claimed item of one queue; `None` when none can be had now.

        Raises:
            NotFoundError: when the agent has no such queue.
            ServerUnavailableError: when the server does not answer.
        """
        candidates = self._candidates.get(queue)
        if candidates is None:
            raise unknown_name("queue", queue, self._candidates, where=" of this agent")
        if self._opens is not None and not await self._opens(queue):
            return None
        schedulers = schedulers and await self._leaves_place(queue)
        while True:
            polled = await candidates.next(slots=slots, skip=skip, schedulers=schedulers)
            if polled is None:
                return None
            item = await self._claim(queue, polled)
            if item is not None:
                return item

    async def pop_scheduler(self, skip: Collection[UUID] = ()) -> tuple[Item, str] | None:
        """Return a claimed scheduler of a sweep, and its queue; `None` when none can be had now.

        Sweeps wait in a work queue of their own, so that many jobs before them hide none, and they hide no job.

        Args:
            skip: items that the agent holds already.
        """
        for queue in self._candidates:
            now = datetime.now(timezone.utc)
            waiting = await self._server.count_due(queue, before=now, queues=[SWEEPS_WORK_QUEUE])
            if not waiting or not await self._leaves_place(queue):
                continue
            if self._opens is not None and not await self._opens(queue):
                continue
            for polled in await self._server.poll(queue, limit=PAGE, before=now, queues=[SWEEPS_WORK_QUEUE]):
                if polled.id not in skip and is_scheduler(polled) and (item := await self._claim(queue, polled)):
                    return item, queue
        return None

    async def _claim(self, queue: str, polled: Item) -> Item | None:
        item = await claim(self._server, polled, holder=self._holder)
        if item is None:
            self._release(polled.id)
            self._candidates[queue].note_lost_claim()
            return None
        if await self._fits(queue, item, polled.next_scheduled_start_time):
            return item
        self._release(item.id)
        # Several agents that went over the limit together must not try again together.
        await anyio.sleep(random.uniform(0, GIVEN_BACK_SECONDS))
        return None

    async def _leaves_place(self, queue: str) -> bool:
        """Whether the queue's limit leaves a place for a trial if one more scheduler starts."""
        limits = self._limits.get(queue)
        if limits is None or limits.pool is None:
            return True
        active = await self._server.count_items(pool=queue, flow=SCHEDULER_FLOW, state_types=COUNTED)
        return active + 1 < limits.pool

    async def _fits(self, queue: str, item: Item, due: datetime | None) -> bool:
        limits = self._limits.get(queue)
        if limits is None:
            return True
        pool_limit, queue_limit = limits.of(item)

        async def exceeded() -> str:
            if await is_over_limit(self._server, item, pool_limit=pool_limit, queue_limit=queue_limit):
                return "The queue's limit of active items was reached meanwhile."
            if await is_over_share(self._server, item, limits.per_author):
                return f"{has(author_of(item))} {limits.per_author} of {limits.per_author} in work on this queue."
            return ""

        why = await retry_until_available(f"count the active items other than {item.id}", exceeded)
        if not why:
            return True
        await retry_until_available(f"take {item.id} back", lambda: release_claim(self._server, item, why, due=due))
        return False

    def seconds_until_due(self) -> float:
        """In how many seconds a queue is to be asked again, for an item that is due then, or for what is far behind.

        Infinite when the next poll is soon enough. One whose time has come is due already: it was asked for, or there
        was no use in asking.
        """
        now = time.monotonic()
        return min((one.due_at for one in self._candidates.values() if one.due_at > now), default=float("inf")) - now

    def poll_again(self) -> None:
        """Forget what was polled: something new has come in."""
        for candidates in self._candidates.values():
            candidates.forget()

    def note_queued(self, queued: ItemChange) -> None:
        """Note that an item waits: forget what was polled, unless the item comes behind all of that."""
        if queued.is_new and queued.queue in self._candidates:
            self._candidates[queued.queue].note_new(queued.work_queue)
        else:
            self.poll_again()

    def note_claim(self, claimed: ItemChange) -> None:
        """Note that this agent or another has claimed an item."""
        if claimed.queue in self._candidates:
            self._candidates[claimed.queue].drop(claimed.item_id)

    def note_freed_slot(self, item_id: UUID | str) -> None:
        """Note that an active item has ended: items that waited for its devices or its queue's limit may run now."""
        self._release(item_id)
        for candidates in self._candidates.values():
            candidates.note_freed_slot()

    def _is_limited(self, queue: str) -> bool:
        limits = self._limits.get(queue)
        return limits is None or limits.pool is not None or limits.per_author is not None or bool(limits.queues)

    def _release(self, item_id: UUID | str) -> None:
        if self._admission is not None:
            self._admission.release(item_id)

    async def read_limits(self) -> None:
        """Read the limits of the queues."""
        for queue in self._candidates:
            pool = await self._server.read_pool(queue)
            if pool:
                self._session.note_pool(pool)  # No item waits for the queue to be read then.
            priorities = await self._server.list_queues(queue) if pool else []
            self._limits[queue] = Limits(
                pool=pool.concurrency_limit if pool else None,
                queues={one.name: one.concurrency_limit for one in priorities if one.concurrency_limit is not None},
                per_author=per_author_of(pool) if pool else None,
            )

    def check_limits(self) -> None:
        """Forget what was polled, read the limits, and poll: a queue was paused, resumed, or given another limit."""
        self.poll_again()
        self._changed.set_twice()

    async def watch_limits(self, poll: Callable[[], None]) -> None:
        """Read the limits again and again; never returns.

        Args:
            poll: is called once they are read after an event.
        """
        while True:
            is_told = await self._changed.wait(LIMITS_SECONDS)
            try:
                await self.read_limits()
            except LaunchError as error:
                log.debug("limits not read: %s", error)
            if is_told:
                poll()
