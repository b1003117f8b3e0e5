"""Request to cancel an item: its states record who cancelled it, and whether anything was running."""

from __future__ import annotations

from prefect_launch.core.caller import caller
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Answer, Item, State


async def request_cancel(server: Server, item: Item, reason: str | None = None) -> State | None:
    """Cancel an item: a waiting item is cancelled at once; the agent of an active item stops it.

    The server cancels what waits by itself and without a word. The words come after it, as a second state of the same
    kind: to propose `Cancelled` at once could pass over an agent that claims the item in the same moment.

    Args:
        server: the Prefect server.
        item: the item.
        reason: why, as a sentence; by default, who asked for it.

    Returns:
        The state that it is in after that; `None` when it stays in the one it was in.
    """
    who = caller()
    stopping = State.of(ItemState.CANCELLING, reason or f"Stop was asked for by {who}.")
    verdict = await server.propose(item.id, stopping)
    state = verdict.state
    if verdict.status is Answer.REJECT and state is not None and state.type is StateType.CANCELLED:
        nothing = "nothing of it was running" if item.run_count else "nothing was started"
        said = f"{reason} It waited" if reason else f"Cancelled by {who} while it waited"
        await server.propose(item.id, State.of(ItemState.CANCELLED, f"{said}: {nothing}."))
    return state
