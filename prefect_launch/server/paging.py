"""Paging of items: a list of any length, of a server that lists 200 in one request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_launch.server.values import PAGE, Item, ItemFilter

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prefect_launch.server.protocol import Server


async def all_items(
    server: Server, *, page: int = PAGE, by_id: bool = True, **wanted: Unpack[ItemFilter]
) -> AsyncIterator[Item]:
    """Yield every item that fits, each once, also while others are queued, or come to fit no more.

    Args:
        server: the Prefect server.
        page: items of one request, at most 200.
        by_id: in the order of their ids. Else those that start last come first, and one that starts meanwhile moves in
            that order: it may be left out.
        wanted: which items.

    Raises:
        ServerUnavailableError: when the server does not answer.
    """
    seen: set[UUID] = set()
    # By ids, a page begins with the last item of the one before: it shows whether what came before is still there.
    overlap = int(by_id and page > 1)
    lowest: UUID | None = None
    offset = 0
    while True:
        found = await server.list_items(limit=page, offset=offset, by_id=by_id, **wanted)
        if overlap and offset and lowest is not None and (not found or found[0].id < lowest):
            offset = max(0, offset - page // 2 - 1)  # What follows has moved up meanwhile.
            continue
        for item in found:
            if item.id not in seen:
                seen.add(item.id)
                yield item
        if len(found) < page:
            return
        lowest = found[-1].id
        offset += len(found) - overlap
