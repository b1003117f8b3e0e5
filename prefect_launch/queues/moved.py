"""Items that were moved: another item has taken the place of each.

Prefect cannot give a flow run another work queue, so a move ends the item as `Moved` and makes one like it. Its
idempotency key names the old item. Whoever has the old id is led to the new item by it.
"""

from __future__ import annotations

from uuid import UUID

from prefect_launch.server.protocol import Server
from prefect_launch.server.values import MOVED, Item


def key_after(item_id: UUID) -> str:
    """Return the idempotency key of the item that takes the place of another one."""
    return f"moved-{item_id}"


def is_moved(item: Item) -> bool:
    """Whether another item has taken, or is to take, its place."""
    return item.state_name == MOVED


async def read_current(server: Server, item_id: UUID) -> Item | None:
    """Read an item, or the one that has taken its place.

    Returns:
        The item; the moved one itself when what takes its place was not made; `None` when it is gone.
    """
    item = await server.read_item(item_id)
    while item is not None and is_moved(item):
        found = await server.list_items(keys=[key_after(item.id)], limit=1, moved=True)
        following = await server.read_item(found[0].id) if found else None
        if following is None:
            break
        item = following
    return item
