"""A line on the page of an item that waits: why, at which place, and when it will about start. A hook beside the loop.

Of the agents that are online for a queue, the first by name writes it. A line is written when an item has waited for
some seconds and nobody has told why, and again only when what keeps it waiting has changed and stays so: not a stream.
All lines of a look go to the server in one request. Nothing depends on them, so a fault leaves them out.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.log_notes import LOGGER, log_note
from prefect_launch.core.states import StateType
from prefect_launch.errors import LaunchError
from prefect_launch.queues.wait_reason import (
    Past,
    QueueFacts,
    WaitCause,
    WaitFacts,
    explain_wait,
    read_past,
    read_queue_facts,
)
from prefect_launch.server.values import PAGE, Item, LogRecord

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 15.0
#: What waits for less will start by itself, most of the time.
WAITED_SECONDS: Final = 10.0
#: How many of a queue are told, from the front of its line.
MOST_ITEMS: Final = 20
#: The logger of a line: this name, and the cause that the line tells.
_LOGGER: Final = f"{LOGGER}.waits"


class WaitReasonLogger:
    """Tells items why they wait, for one agent.

    Args:
        session: an open connection.
        name: of the agent.
        queues: its queues.
    """

    def __init__(self, session: Session, name: str, queues: Collection[str]) -> None:
        self._session = session
        self._server = session.server
        self._name = name
        self._queues = tuple(queues)
        self._told: dict[str, dict[UUID, WaitCause]] = {queue: {} for queue in queues}
        self._seen: dict[str, dict[UUID, WaitCause]] = {queue: {} for queue in queues}

    async def watch(self) -> None:
        """Look every 15 s, for ever; a server that is away is no fault."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            for queue in self._queues:
                try:
                    await self.look(queue)
                except LaunchError as error:
                    log.debug("not told why items wait: %s", error)

    async def look(self, queue: str) -> None:
        """Look at what waits on one queue, and tell what is new.

        Raises:
            LaunchError: when the server does not answer.
        """
        in_all = await self._server.count_items(pool=queue, state_types=[StateType.SCHEDULED])
        facts = await read_queue_facts(self._server, queue) if in_all else None
        if facts is None or not self._is_first(facts):
            self._told[queue], self._seen[queue] = {}, {}
            return
        told: dict[UUID, WaitCause] = {}
        seen: dict[UUID, WaitCause] = {}
        new = []
        for one in await self._line(facts, in_all):
            if not _has_waited(one.item, facts.now):
                continue
            cause = seen[one.item.id] = explain_wait(one).cause
            before = self._told[queue].get(one.item.id) or await self._told_before(one.item)
            # A change must last: in a busy queue, slots and limits are free for a moment again and again.
            lasts = before is None or self._seen[queue].get(one.item.id) is cause
            if cause is not before and cause is not WaitCause.NOT_DUE and lasts:
                new.append(one)
                before = cause
            if before is not None:
                told[one.item.id] = before
        self._told[queue], self._seen[queue] = told, seen
        await self._write(new)

    def _is_first(self, queue: QueueFacts) -> bool:
        """Whether this agent is the first by name of those that tell how they are."""
        return next((agent.name for agent in queue.agents if agent.host), None) == self._name

    async def _line(self, queue: QueueFacts, in_all: int) -> list[WaitFacts]:
        """Return the first of those who wait, each with its place."""
        found: list[WaitFacts] = []
        for priority in queue.priorities:
            left = MOST_ITEMS - len(found)
            line = await self._server.list_line(queue.queue, priority.name, limit=left) if left > 0 else []
            urgent = len(found)
            found += [
                WaitFacts(queue=queue, item=item, ahead_by_priority=urgent, ahead_by_time=earlier, waiting=in_all)
                for earlier, item in enumerate(line)
            ]
        return found

    async def _told_before(self, item: Item) -> WaitCause | None:
        """Read what an earlier life of this agent, or another agent, has told of this wait."""
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
    """Return the cause that a line of an item's log tells; `None` when it is another line."""
    return next((cause for cause in WaitCause if record.name == _logger_of(cause)), None)


def _logger_of(cause: WaitCause) -> str:
    return f"{_LOGGER}.{cause.name.lower()}"
