"""Log of an item on the server, read whole, page by page.

Records of different writers come in any order of their times: Prefect sends those of a flow seconds late. So a page
begins at the time of the last record that was read, and never at a count of records, which moves meanwhile.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_launch.server.values import PAGE, LogRecord

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server


async def read_log(server: Server, item_id: UUID, since: datetime | None = None) -> list[LogRecord]:
    """Read the records of an item's log from a time on, oldest first; each once, also while others are written.

    Args:
        server: the Prefect server.
        item_id: the item.
        since: records of that time or later; all by default.
    """
    found: dict[LogRecord, None] = {}
    offset = 0
    while True:
        page = await server.read_logs(item_id, limit=PAGE, since=since, offset=offset)
        found.update(dict.fromkeys(page))
        if len(page) < PAGE:
            return list(found)
        last = page[-1].timestamp
        offset = offset + PAGE if last == since else 0  # A whole page of one time.
        since = last
