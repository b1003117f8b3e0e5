"""Cancellation of an item: its states record who cancelled it, and whether anything was running.

The server cancels what waits by itself and without a word. The words come after it, as a second state of the same kind:
to propose `Cancelled` at once could pass over an agent that claims the item in the same moment.
"""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Answer, Item, State

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session


async def request_cancel(session: Session, item: Item) -> State | None:
    """Cancel an item: a waiting item is cancelled at once; the agent of an active item stops it.

    Args:
        session: an open connection.
        item: as it was when it was read.

    Returns:
        The state that it is in after that; `None` when it stays in the one it was in.
    """
    who = _who()
    verdict = await session.server.propose(item.id, State.of(ItemState.CANCELLING, f"Stop was asked for by {who}."))
    state = verdict.state
    if verdict.status is Answer.REJECT and state is not None and state.type is StateType.CANCELLED:
        nothing = "nothing of it was running" if item.run_count else "nothing was started"
        cancelled = State.of(ItemState.CANCELLED, f"Cancelled by {who} while it waited: {nothing}.")
        await session.server.propose(item.id, cancelled)
    return state


def _who() -> str:
    """Return the user and the machine; a container may have no name for its user."""
    try:
        return f"{getpass.getuser()} on {socket.gethostname()}"
    except (KeyError, OSError):
        return f"somebody on {socket.gethostname()}"
