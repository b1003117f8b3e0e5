"""Preemption: a critical item that waits for a place sends one low item that can resume back into its queue.

Off unless the queue's owner turns it on. Each agent looks after what it runs. At its first look at an urgent item, only
the agent of the youngest candidate acts; at the next one, any that has a candidate. An agent that dies after any step
loses nothing: before the order, the low item continues; after it, the next agent of the name carries the order out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.item.running_items import RunningItem, RunningItems
from prefect_launch.core.states import StateType
from prefect_launch.errors import LaunchError
from prefect_launch.queues.sent_back import (
    is_resumable,
    may_be_sent_back,
    order_back,
    sent_back_for,
    take_turn,
    turn_of,
)
from prefect_launch.queues.wait_reason import QueueFacts, read_queue_if_full
from prefect_launch.server.values import Item
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

#: A critical item that waits for less may be about to start.
WAITED: Final = timedelta(seconds=5)
#: Critical items of a queue that are looked at, first in line first.
_MOST: Final = 20


class Preemption:
    """Sends items of one agent back into their queues.

    Args:
        session: an open connection.
        queues: of the agent.
        running_items: what it runs.
        is_draining: says whether a place that is made here would be nobody's.
        poll_seconds: between two looks.
    """

    def __init__(
        self,
        session: Session,
        queues: Sequence[str],
        running_items: RunningItems,
        is_draining: Callable[[], bool],
        poll_seconds: float,
    ) -> None:
        self._session = session
        self._server = session.server
        self._queues = tuple(queues)
        self._running_items = running_items
        self._is_draining = is_draining
        self._poll_seconds = poll_seconds
        self._seen: set[UUID] = set()
        self._taken: set[tuple[UUID, int]] = set()

    async def watch(self) -> None:
        """Look again and again; never returns. A server that is away is no error."""
        while True:
            await anyio.sleep(self._poll_seconds)
            for queue in self._queues:
                try:
                    if (await self._session.queue(queue)).config.preempt and not self._is_draining():
                        await self.check(queue)
                except LaunchError as error:
                    log.debug("preemption not checked: %s", error)

    async def check(self, queue: str) -> None:
        """Send back one item of this agent for each critical item that waits for a place, if there is one to send.

        Raises:
            LaunchError: when the server fails.
        """
        now = datetime.now(timezone.utc)
        waiting = await self._server.list_waiting(queue, Priority.CRITICAL.work_queue, limit=_MOST)
        self._seen &= {item.id for item in waiting}
        if not waiting:
            self._taken.clear()
        may_have_turn = True
        for urgent in waiting:
            if not _has_waited(urgent, now) or not any(self._own()):
                continue
            if not may_have_turn and turn_of(urgent) in self._taken:
                continue
            facts = await read_queue_if_full(self._session, urgent)
            if facts is not None:
                await self._make_place(urgent, facts)
                self._seen.add(urgent.id)
                may_have_turn = any(turn_of(item) not in self._taken for item in _critical(facts))

    def _own(self) -> list[RunningItem]:
        """Return what runs here, can resume, and is not about to end."""
        return [
            one
            for one in self._running_items.entries
            if is_resumable(one.item)
            and one.handle is not None
            and not (one.stop.is_set() or one.preempt.is_set() or one.has_run or one.is_ending)
        ]

    async def _make_place(self, urgent: Item, facts: QueueFacts) -> None:
        own = {one.id: one for one in self._own()}
        running = [item for item in facts.in_work if item.state_type is StateType.RUNNING]
        if any(sent_back_for(item, item.run_count) for item in running):
            return  # A place is being made.
        for item in sorted(filter(is_resumable, running), key=_started, reverse=True):
            if not may_be_sent_back(await self._server.read_states(item.id), facts.now):
                continue
            if item.id in own:
                if await self._takes_turn([urgent, *_critical(facts)], item):
                    await self._send_back(own[item.id], item, urgent)
                return
            if urgent.id not in self._seen:
                return  # Another agent runs the youngest.

    async def _takes_turn(self, items: Sequence[Item], victim: Item) -> bool:
        """Whether one of these had its turn left."""
        for one in items:
            if turn_of(one) not in self._taken:
                self._taken.add(turn_of(one))
                if await take_turn(self._server, one, victim):
                    return True
        return False

    async def _send_back(self, victim: RunningItem, item: Item, urgent: Item) -> None:
        current = await self._server.read_item(urgent.id)
        if current is None or current.state_type is not StateType.SCHEDULED:
            return
        labels = {**victim.item.labels, **await order_back(self._server, item, urgent)}
        victim.item = victim.item.model_copy(update={"labels": labels})
        log.info("%s sent-back for %s", victim.id, urgent.id)
        victim.preempt.set()


def _critical(facts: QueueFacts) -> list[Item]:
    """Return the critical items that run: the place of one may have been made for another."""
    critical = Priority.CRITICAL.work_queue
    return [item for item in facts.in_work if item.state_type is StateType.RUNNING and item.work_queue_name == critical]


def _has_waited(item: Item, now: datetime) -> bool:
    times = (item.next_scheduled_start_time, item.state.timestamp if item.state else None)
    return now - max(filter(None, times), default=now) >= WAITED


def _started(item: Item) -> tuple[str, str]:
    return (item.state.timestamp.isoformat() if item.state and item.state.timestamp else "", str(item.id))
