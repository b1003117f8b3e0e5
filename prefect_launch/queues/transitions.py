"""State transitions of an item: one function, against the table of allowed transitions."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4, uuid5

from prefect_launch.core.backoff import Backoff
from prefect_launch.core.states import ItemState, StateType, is_allowed
from prefect_launch.core.validation import clean_json
from prefect_launch.errors import InternalError, LaunchError, ServerFailedError, ServerUnavailableError
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item, State, Verdict

T = TypeVar("T")

log = logging.getLogger(__name__)

_RETRY_FIRST_SECONDS: Final = 0.2
_RETRY_MAX_SECONDS: Final = 5.0
#: A request that makes the server fail each time is given up then.
_FAILURES_MAX: Final = 5


class NotOursError(LaunchError):
    """An item is another agent's by now: this one has nothing more to write about it."""


async def retry_until_available(
    what: str, call: Callable[[], Awaitable[T]], *, pause_seconds: float = _RETRY_FIRST_SECONDS
) -> T:
    """Make a call until the server answers: what a job did must reach it, however long it is away.

    Args:
        what: what the server is to do, for the log.
        call: the call; it may be made several times.
        pause_seconds: between the first two tries; each further pause is twice as long, up to 5 s.

    Raises:
        ServerFailedError: when the server is there, and fails over the call again and again.
    """
    pauses = Backoff(pause_seconds, _RETRY_MAX_SECONDS)
    tries = failures = 0
    while True:
        try:
            return await call()
        except (ServerUnavailableError, ServerFailedError) as error:
            failures += isinstance(error, ServerFailedError)
            if failures >= _FAILURES_MAX:
                raise
            if not tries:
                log.warning("waiting for the server to %s: %s", what, error)
            tries += 1
            await pauses.sleep()


def transition_id_for(item: Item, step: str) -> UUID:
    """Return the transition id of a step out of the state that an item is in: the same whenever it is asked for."""
    return uuid5(item.id, f"{step} {item.state.transition_id if item.state else None}")


async def transition(
    server: Server,
    item_id: UUID,
    current: StateType,
    target: ItemState,
    message: str,
    *,
    data: Any = None,
    due: datetime | None = None,
    transition_id: UUID | None = None,
    still_ours: Callable[[], Awaitable[bool]] | None = None,
) -> State:
    """Move an item, and wait for a server that is away.

    Args:
        server: the Prefect server.
        item_id: the item.
        current: the type of the state that it is in.
        target: where it goes.
        message: why, in words.
        data: kept with the state, such as the exit code.
        due: when the item may run, for one that goes back into its queue; now, when left out.
        transition_id: of a move that several may make; the server makes it once.
        still_ours: is asked before each try of a move that must not be made late, over what another agent has done.

    Returns:
        The state that it is in now. It is another than `target` when the server refused: someone has asked it to stop,
        or has ended it, meanwhile.

    Raises:
        InternalError: when the move is not in the table.
        ItemGoneError: when the item was deleted.
        NotOursError: when it is another agent's by now.
    """
    if not is_allowed(current, target):
        raise InternalError(f"Item {item_id}: the move from {current.value} to {target.label} is not allowed.")
    wanted = State(
        type=target.type,
        name=target.label,
        message=message,
        data=clean_json(data),
        state_details={} if due is None else {"scheduled_time": due.isoformat()},
    )
    token = transition_id or uuid4()

    async def propose() -> Verdict:
        if still_ours is not None and not await still_ours():
            raise NotOursError(f"Item {item_id} is another agent's by now: it is not moved to {target.label}.")
        return await server.propose(item_id, wanted, transition_id=token)

    verdict = await retry_until_available(f"move {item_id} to {target.label}", propose)
    if verdict.accepted or verdict.state is None or verdict.state.transition_id == str(token):
        log.info("%s %s %s", item_id, target.label.lower(), message)
        return verdict.state or wanted
    log.warning("%s refused %s: %s", item_id, target.label.lower(), verdict.reason)
    return verdict.state
