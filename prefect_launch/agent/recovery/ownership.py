"""Whose an item is: the data of its last claim says it.

An agent that was cut off from the server, and taken for lost, comes back with work in hand that may be another's by
now. So before it starts a run, and before it writes its end, it asks: is the last claim of this item mine, and is the
item still in work? When not, it writes nothing, and what it has of the item is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.item.tracker import now
from prefect_launch.agent.item.transitions import log, until_server_is_back
from prefect_launch.core.states import ACTIVE, ItemState, StateType
from prefect_launch.errors import LaunchError
from prefect_launch.queues.holder import Holder
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item, State

if TYPE_CHECKING:
    from prefect_launch.agent.item.tracker import JobTracker

#: An agent is called lost after three times as long; one read for each item in work.
LOOK_SECONDS: Final = 30.0
#: An item that was seen to be held is taken to be for this long: until after the next look, and half the time after
#: which an agent is called lost.
TRUSTED_SECONDS: Final = 45.0
_PAGE: Final = 200
#: An agent that stops an item may find that the server has called it cancelled meanwhile; it says then what it saw.
_OURS: Final = ACTIVE | {StateType.CANCELLED}


def claims_of(states: Sequence[State]) -> list[State]:
    """Return the claims among an item's states."""
    return [state for state in states if state.type is StateType.PENDING and state.name == ItemState.CLAIMED.label]


def last_claim(states: Sequence[State]) -> State | None:
    """Return the last claim among an item's states, oldest first."""
    claims = claims_of(states)
    return claims[-1] if claims else None


def token_of_claim(claim: State) -> str:
    """Return a claim's token."""
    return claim.transition_id or ""


def holder_of(states: Sequence[State]) -> Holder | None:
    """Return who has claimed an item, as its last claim says; `None` when no agent of ours has."""
    claim = last_claim(states)
    return Holder.of(claim) if claim else None


def token_of(item: Item) -> str:
    """Return the token of the claim that an item is under; empty when its state does not say."""
    if item.state is None or item.state.name != ItemState.CLAIMED.label:
        return ""
    return token_of_claim(item.state)


async def items_in_work(server: Server, pool: str) -> list[Item]:
    """Return all items of a queue that an agent has in work."""
    found: list[Item] = []
    while page := await server.list_items(pool=pool, state_types=sorted(ACTIVE), limit=_PAGE, offset=len(found)):
        found.extend(page)
    return found


async def stop_what_is_not_held(server: Server, trackers: Callable[[], Sequence[JobTracker]]) -> None:
    """Stop, again and again, what runs here for items that are another's by now, or have ended; for ever."""
    while True:
        await anyio.sleep(LOOK_SECONDS)
        try:
            await stop_once(server, trackers())
        except LaunchError as error:
            log.debug("not looked whose the items are: %s", error)


async def stop_once(server: Server, trackers: Sequence[JobTracker]) -> None:
    """Stop what runs here for items that are not held any more.

    Raises:
        LaunchError: when the server fails.
    """
    for tracker in trackers:
        if tracker.stop.is_set():
            continue
        looked_at = now()
        if await is_held(server, tracker.id, tracker.claim):
            tracker.held_at = looked_at
            continue
        if tracker.ended.is_set():
            continue
        tracker.held_at = float("-inf")
        log.warning("%s not-ours-any-more: stopping what runs of it here", tracker.id)
        tracker.stop.set()


async def is_held(server: Server, item_id: UUID, token: str, *, among: Collection[StateType] = _OURS) -> bool:
    """Whether an item is in work under this claim; waits for a server that is away.

    Args:
        server: the door.
        item_id: the item.
        token: of the claim; when it is not known (empty), the item's state alone decides.
        among: the states that count as being in work.
    """
    states = await until_server_is_back(f"show the states of {item_id}", lambda: server.read_states(item_id))
    if not states or states[-1].type not in among:
        return False
    claim = last_claim(states)
    return not token or claim is None or token_of_claim(claim) == token
