"""Paging of items: a list of any length, of a server that lists 200 in one request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_launch.server.values import PAGE, Item, ItemFilter

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prefect_launch.server.protocol import Server


async def all_items(server: Server, *, page: int = PAGE, **wanted: Unpack[ItemFilter]) -> AsyncIterator[Item]:
    """Yield every item that fits, newest first, each once: one that is queued meanwhile shifts the later pages.

    Args:
        server: the Prefect server.
        page: items of one request, at most 200.
        wanted: which items.

    Raises:
        ServerUnavailableError: when the server does not answer.
    """
    seen: set[UUID] = set()
    offset = 0
    while True:
        found = await server.list_items(limit=page, offset=offset, **wanted)
        for item in found:
            if item.id not in seen:
                seen.add(item.id)
                yield item
        offset += len(found)
        if len(found) < page:
            return
