"""Outputs of an item that another one names as an input: whether they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from prefect_launch.core.states import StateType
from prefect_launch.errors import InputError, unknown_name

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.spec.item_outputs import ItemOutput


class FoundOutputs(NamedTuple):
    """Stored files of an item.

    Attributes:
        attempt: that left them.
        names: their relative paths.
    """

    attempt: int
    names: list[str]


async def find_outputs(session: Session, wanted: ItemOutput) -> FoundOutputs:
    """Find what an input names: one file, or all files of a folder.

    Raises:
        InputError: when there is no such item, or it has not completed.
        NotFoundError: when it has left no such file.
        InfrastructureError: when the job store fails.
    """
    item = await session.server.read_item(UUID(wanted.item))
    if item is None:
        raise InputError(f"An input names {wanted.path!r} of the item {wanted.item}, which is not on the server.")
    where = f"of the item {item.name} ({item.id})"
    if item.state_type is not StateType.COMPLETED:
        raise InputError(
            f"An input names {wanted.path!r} {where}, which is {item.state_name}: only what has completed has outputs"
            " for others. Wait for it (wait_until_finished), or name another item."
        )
    files = await session.jobs.list_outputs(str(item.id), item.last_attempt)
    names = [name for name in files if name == wanted.path or name.startswith(f"{wanted.path}/")]
    if not names:
        raise unknown_name("file", wanted.path, files, where=f" {where}, which an input names")
    return FoundOutputs(item.last_attempt, names)
