"""Predecessors of an item: the items that must complete before it starts (`after` in its launch spec).

One that its retry rule queues again has not ended. One that was moved is the item that has taken its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from prefect_launch.core.names import name_and_id
from prefect_launch.core.states import StateType
from prefect_launch.queues.moved import is_moved, read_current
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import PAGE, Item
from prefect_launch.spec.item_parameters import options_of


@dataclass(frozen=True)
class Predecessors:
    """What its predecessors mean for an item.

    Attributes:
        waits_for: why it does not start yet, as a sentence; empty when all have completed.
        failure: why it never starts, as a sentence; empty when it may.
    """

    waits_for: str = ""
    failure: str = ""


def after_of(item: Item) -> tuple[UUID, ...]:
    """Return the ids of an item's predecessors; what is no id is left to the check of its spec."""
    given = options_of(item).get("after")
    found = []
    for one in given if isinstance(given, (list, tuple)) else ():
        try:
            found.append(UUID(str(one)))
        except ValueError:
            continue
    return tuple(found)


async def read_predecessors(server: Server, items: Iterable[Item]) -> dict[UUID, Predecessors]:
    """Read what their predecessors mean for items, with one request for all; items without any are left out."""
    wanted = {item.id: ids for item in items if (ids := after_of(item))}
    found = await read_items(server, {one for ids in wanted.values() for one in ids})
    return {item_id: judge_predecessors(ids, found) for item_id, ids in wanted.items()}


async def read_items(server: Server, ids: Collection[UUID]) -> dict[UUID, Item]:
    """Read items by their ids; those that are gone are left out."""
    asked = list(ids)
    pages = [asked[start : start + PAGE] for start in range(0, len(asked), PAGE)]
    found = {item.id: item for page in pages for item in await server.list_items(ids=page, moved=True)}
    for one in asked:
        if one not in found or is_moved(found[one]):  # Not every item can be listed.
            current = await read_current(server, one)
            if current is not None:
                found[one] = current
    return found


def judge_predecessors(ids: Collection[UUID], found: Mapping[UUID, Item]) -> Predecessors:
    """Return what predecessors mean for their item.

    Args:
        ids: theirs.
        found: the items that there are, by these ids.
    """
    waits = []
    for one in ids:
        item = found.get(one)
        if item is None:
            return Predecessors(failure=f"Its predecessor {one} was deleted.")
        name = name_and_id(item)
        state = (item.state_name or "unknown").lower()
        if item.is_terminal and item.state_type is not StateType.COMPLETED:
            why = f": {item.message}" if item.message else "."
            return Predecessors(failure=f"Its predecessor {name} has ended as {item.state_name}{why}")
        if not item.is_terminal:
            waits.append(f"{name}, which is {state}")
    return Predecessors(waits_for=f"It waits for {'; '.join(waits)}." if waits else "")
