"""Log of a child flow run, read back as the bytes that its job wrote.

The wrapper gives each record a time of its own, later than that of the one before, and sends them in order: so the time
of the last record that was read is the position, and records that others write at any time change nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_launch.runners.remote.jobs import LogPart
from prefect_launch.runners.remote.prefect.wrapper import BINARY, PART, STREAMS
from prefect_launch.server.logs import read_log
from prefect_launch.server.values import LogRecord

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server


async def read_job_log(server: Server, child: UUID, after: str | None) -> AsyncIterator[LogPart]:
    """Read what a job has written from a position on.

    Args:
        server: the Prefect server.
        child: id of the flow run.
        after: the position; None for the whole log.
    """
    since = datetime.fromisoformat(after) if after else None
    for record in await read_log(server, child, since):
        stream = next((one for one in STREAMS if record.name == one or record.name.startswith(f"{one}.")), None)
        if stream is None or (since is not None and record.timestamp <= since):
            continue
        since = record.timestamp  # A record whose answer was lost may be there twice.
        yield LogPart(_content(record, stream), since.isoformat(), is_error=stream == STREAMS[1])


async def read_workers_log(server: Server, child: UUID, after: str | None) -> AsyncIterator[LogPart]:
    """Read what a worker has said about a flow run that it could not start, as its job's standard error."""
    since = datetime.fromisoformat(after) if after else None
    for record in await read_log(server, child, since):
        if since is None or record.timestamp > since:
            since = record.timestamp
            yield LogPart(f"[{record.name}] {record.message}\n".encode(), since.isoformat(), is_error=True)


def _content(record: LogRecord, stream: str) -> bytes:
    kind = record.name[len(stream) :]
    if kind == BINARY:
        try:
            return base64.b64decode(record.message, validate=True)
        except binascii.Error:
            return record.message.encode()
    return record.message.encode() + (b"" if kind == PART else b"\n")
