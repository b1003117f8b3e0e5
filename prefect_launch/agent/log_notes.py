"""Log notes: the agent's own lines in an item's log, among those of its job."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.errors import LaunchError
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.server.values import LogRecord

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

#: The logger name under which they are shown.
LOGGER: Final = "prefect_launch.agent"
#: Records of an item's log that are looked through for one.
_LOOKED_AT: Final = 200


def log_note(
    message: str, *, level: int = logging.WARNING, at: datetime | None = None, logger: str = LOGGER
) -> LogRecord:
    """Make a line of the agent's own.

    Args:
        message: its text.
        level: as of `logging`.
        at: its time; by default now.
        logger: the name that it is shown under.
    """
    return LogRecord(name=logger, level=level, message=message, timestamp=at or datetime.now(timezone.utc))


async def write_log_note(server: Server, item_id: UUID, message: str) -> None:
    """Write a line of the agent's own to an item's log, as a warning.

    Raises:
        LaunchError: when the server does not take it.
    """
    await server.write_logs(item_id, [log_note(message)])


async def note_for_people(server: Server, item_id: UUID, message: str, *, since: datetime | None = None) -> None:
    """Write a line that no run depends on: a server that is away is waited for, a refusal goes to the agent's log.

    Args:
        server: an open connection.
        item_id: of the item.
        message: its secrets are masked.
        since: when an agent before this one may first have written the same line; None: none has.
    """
    try:
        await retry_until_available(f"take the log of {item_id}", lambda: _note_once(server, item_id, message, since))
    except LaunchError as error:
        log.warning("%s note-not-written %s: %s", item_id, message, error)


async def _note_once(server: Server, item_id: UUID, message: str, since: datetime | None) -> None:
    """Write a line to an item's log, unless the agent before this one has."""
    found = await server.read_logs(item_id, limit=_LOOKED_AT, since=since) if since is not None else []
    note = log_note(message)
    if not any((record.name, record.message) == (note.name, note.message) for record in found):
        await server.write_logs(item_id, [note])
