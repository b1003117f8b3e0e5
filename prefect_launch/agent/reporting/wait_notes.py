"""Wait notes: a line in the log of an item that waits, with the cause, its place and about when it will start.

One of a queue's agents writes it (`Fleet.is_first`); the others ask for nothing. An item gets a line when it has waited
for some seconds, and another one only when the cause has changed and the change lasts. All lines of one check go to the
server in one request. Nothing depends on them, so a server error leaves them out.

A line's logger is named after the cause. So a later life of this agent, or another agent, reads the last
cause from the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.log_notes import LOGGER, log_note
from prefect_launch.core.supervision import unless_away
from prefect_launch.queues.predecessors import read_predecessors
from prefect_launch.queues.sweep_status import SweepStatuses, sweep_of
from prefect_launch.queues.wait_reason import (
    Past,
    QueueFacts,
    WaitCause,
    WaitFacts,
    explain_wait,
    read_past,
    read_queue_facts,
)
from prefect_launch.server.values import END_OF_TIME, PAGE, Item, LogRecord

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 15.0
#: What waits for less will start by itself, most of the time.
WAITED_SECONDS: Final = 10.0
#: How many items of a queue get a line, from its front.
MOST_ITEMS: Final = 20
#: The logger of a line: this name and the cause.
_LOGGER: Final = f"{LOGGER}.waits"


class WaitReasonLogger:
    """Writes wait notes for one agent.

    Args:
        session: an open connection.
        queues: the agent's.
        is_first: whether this agent writes the notes of a queue.
    """

    def __init__(
        self, session: Session, queues: Collection[str], is_first: Callable[[str], bool] = lambda queue: True
    ) -> None:
        self._session = session
        self._server = session.server
        self._queues = tuple(queues)
        self._is_first = is_first
        self._sweeps = SweepStatuses(session.server)
        self._noted: dict[str, dict[UUID, WaitCause]] = {queue: {} for queue in queues}
        self._seen: dict[str, dict[UUID, WaitCause]] = {queue: {} for queue in queues}

    async def watch(self) -> None:
        """Check every 15 s; never returns. A server that is away is no error."""
        while True:
            await anyio.sleep(CHECK_SECONDS)
            for queue in self._queues:
                with unless_away(log, "wait notes not written"):
                    await self.check(queue)

    async def check(self, queue: str) -> None:
        """Check what waits on one queue, and note what is new.

        Raises:
            LaunchError: when the server does not answer.
        """
        in_all = await self._server.count_due(queue, before=END_OF_TIME) if self._is_first(queue) else 0
        facts = await read_queue_facts(self._server, queue) if in_all else None
        if facts is None:
            self._noted[queue], self._seen[queue] = {}, {}
            return
        noted: dict[UUID, WaitCause] = {}
        seen: dict[UUID, WaitCause] = {}
        new = []
        for one in await self._list_waiting(facts, in_all):
            if not _has_waited(one.item, facts.now):
                continue
            cause = seen[one.item.id] = explain_wait(one).cause
            before = self._noted[queue].get(one.item.id)
            if before is None and cause is not WaitCause.NOT_DUE:  # which gets no line, so nothing is to be looked up
                before = await self._noted_before(one.item)
            # A change must last: in a busy queue, slots and limits are free for a moment again and again.
            lasts = before is None or self._seen[queue].get(one.item.id) is cause
            if cause is not before and cause is not WaitCause.NOT_DUE and lasts:
                new.append(one)
                before = cause
            if before is not None:
                noted[one.item.id] = before
        self._noted[queue], self._seen[queue] = noted, seen
        await self._write(new)

    async def _list_waiting(self, queue: QueueFacts, in_all: int) -> list[WaitFacts]:
        """Return the first items that wait, each with its place."""
        found: list[WaitFacts] = []
        for priority in queue.priorities:
            left = MOST_ITEMS - len(found)
            waiting = await self._server.list_waiting(queue.queue, priority.name, limit=left) if left > 0 else []
            urgent = len(found)
            predecessors = await read_predecessors(self._server, waiting)
            found += [
                WaitFacts(
                    queue=queue,
                    item=item,
                    ahead_by_priority=urgent,
                    ahead_by_time=earlier,
                    waiting=in_all,
                    held_by_sweep=await self._held_by_sweep(item),
                    waits_for=predecessors[item.id].waits_for if item.id in predecessors else "",
                )
                for earlier, item in enumerate(waiting)
            ]
        return found

    async def _held_by_sweep(self, item: Item) -> str:
        sweep = sweep_of(item)
        return "" if sweep is None else (await self._sweeps.of(sweep, item.id)).held

    async def _noted_before(self, item: Item) -> WaitCause | None:
        """Read the cause that an earlier life of this agent, or another agent, has noted for this wait."""
        since = item.state.timestamp if item.state else None
        records = await self._server.read_logs(item.id, limit=PAGE, since=since)
        return next(filter(None, map(_cause_in, reversed(records))), None)

    async def _write(self, waits: Iterable[WaitFacts]) -> None:
        known: dict[tuple[str, ...], Past | None] = {}
        lines = []
        for one in waits:
            if one.item.tags not in known:
                known[one.item.tags] = await read_past(self._server, one.queue.queue, one.item.tags)
            waiting = explain_wait(one.model_copy(update={"past": known[one.item.tags]}))
            message = f"Waits ({waiting.cause.value}): {waiting}"
            note = log_note(message, level=logging.INFO, at=one.queue.now, logger=_logger_of(waiting.cause))
            lines.append((one.item.id, note))
        if lines:
            await self._server.write_lines(lines)


def _has_waited(item: Item, now: datetime) -> bool:
    since = (item.state.timestamp if item.state else None) or item.created
    return since is None or now - since >= timedelta(seconds=WAITED_SECONDS)


def _cause_in(record: LogRecord) -> WaitCause | None:
    """Return the cause that a wait note in an item's log gives; `None` when it is another line."""
    return next((cause for cause in WaitCause if record.name == _logger_of(cause)), None)


def _logger_of(cause: WaitCause) -> str:
    return f"{_LOGGER}.{cause.name.lower()}"
