"""Claim protocol: how an item becomes this agent's, and nobody else's.

If two agents propose `Pending` for a *waiting* item, one wins. But the server also lets an item that has *ended* become
`Pending`, so an agent with an old poll result would run it again. Therefore: propose exactly `Pending`, with a
transition id, never by force. Then see what the claim was made from:

- Most items wait as they were made: they have never run, and were due at once. For those, propose no time. The server
  copies the time of the state that the claim is made from into the claim, in the same transaction, and none from an end
  (Prefect's rule `CopyScheduledTime`). So its answer says whether the item still waits as it was polled: what goes back
  to its place in line changed, or after a run, is due a moment later than before.
- For the others, propose a time: by its own clock, the server would hold up the start of an item that is due by the
  agent's. Then read the item, and check whether it has ended since the poll (it ran once more, or ended before it ran).

Restore the final state of an item that has ended, and drop it. The server applies a queue's limits at the poll, not at
the claim. So count the active items after a claim, and release the item when there are too many.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from prefect_launch.core.clock import now
from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.errors import ItemGoneError
from prefect_launch.queues.transitions import retry_until_available, transition_id_for
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Answer, Item, State, Verdict

log = logging.getLogger(__name__)

#: The states that the limits of queues count.
COUNTED: Final = (StateType.PENDING, StateType.RUNNING)
#: A claim that was asked for longer ago may have been taken back since.
_NEWS_SECONDS: Final = 10.0
#: An item that goes back to its place in line, changed or after a run, is due so much later than before: by that, a
#: claim from an older poll shows. It stays before its siblings, which the server makes 17 microseconds and more apart.
CHANGED_LATER: Final = timedelta(microseconds=1)
RAN_LATER: Final = timedelta(microseconds=10)
#: The server's name for a state `Scheduled` whose time has passed.
_LATE: Final = "Late"
#: In the data of a claim's state: who holds an item that waits for a moment, to change it.
CHANGE: Final = "launch_change"


class Claimant(Protocol):
    """Who claims items: an agent, or a user who changes one that waits."""

    def claimed_state(self) -> State:
        """Return the state that claims an item, which is called exactly `Pending`."""


async def claim(server: Server, polled: Item, *, holder: Claimant) -> Item | None:
    """Claim an item that a poll returned.

    Args:
        server: the Prefect server.
        polled: the item as the poll returned it.
        holder: who claims; it stands in the data of the state.

    Returns:
        The item as it is now; `None` when it is not ours.
    """
    try:
        current = await _claimed(server, polled, holder)
    except ItemGoneError:
        log.debug("%s lost: it was deleted", polled.id)
        return None
    if current is not None:
        log.info("%s claimed %s", polled.id, polled.name)
    return current


async def _claimed(server: Server, polled: Item, holder: Claimant) -> Item | None:
    token, asked_at, as_made = uuid4(), now(), _waits_as_made(polled)
    wanted = holder.claimed_state()
    if not as_made and polled.created is not None:
        wanted = wanted.model_copy(update={"state_details": {"scheduled_time": polled.created.isoformat()}})
    # A claim whose answer was lost may have been made: it is asked for until it is known, under the same token.
    verdict = await retry_until_available(
        f"claim {polled.id}", lambda: server.propose(polled.id, wanted, transition_id=token)
    )
    if not (verdict.accepted or _is_own_repeat(verdict, token)):
        log.debug("%s lost %s", polled.id, verdict.reason)
        return None
    is_news = verdict.accepted and not verdict.is_repeated and now() - asked_at < _NEWS_SECONDS
    if as_made and is_news and verdict.state is not None:
        return await _judge_by_time(server, polled, _as_claimed(polled, verdict.state))
    current = await retry_until_available(f"read {polled.id}", lambda: server.read_item(polled.id))
    if current is None:
        return None
    if not as_made and await retry_until_available(
        f"judge {polled.id}", lambda: _has_ended_since(server, polled, current)
    ):
        await retry_until_available(f"restore {polled.id}", lambda: restore_final_state(server, current))
        return None
    if current.state is None or current.state.transition_id != str(token):
        await finish_cancelling(server, current)
        return None
    return await _judge_by_time(server, polled, current) if as_made else current


def _waits_as_made(polled: Item) -> bool:
    """Whether an item has never run or ended, and was due when it was made: so it is due by the server's clock too."""
    due = polled.next_scheduled_start_time
    is_new = polled.run_count == 0 and polled.start_time is None
    return is_new and due is not None and polled.created is not None and due <= polled.created


def _as_claimed(polled: Item, claimed: State) -> Item:
    changes = {"state": claimed, "state_type": claimed.type, "state_name": claimed.name}
    return polled.model_copy(update={**changes, "next_scheduled_start_time": None})


async def _judge_by_time(server: Server, polled: Item, current: Item) -> Item | None:
    """Return a claimed item if its claim was made from the state in which it was polled."""
    made_from = current.state.scheduled_time if current.state else None
    if made_from == polled.next_scheduled_start_time:
        return current
    if made_from is None:
        await retry_until_available(f"restore {polled.id}", lambda: restore_final_state(server, current))
    else:  # It was changed or put back: the next poll shows it as it is.
        await retry_until_available(f"take {polled.id} back", lambda: _take_back(server, current, made_from))
    return None


async def _take_back(server: Server, item: Item, made_from: datetime) -> None:
    """Let an item wait again as it did when it was claimed: for its time, under its name, with its reason."""
    states = await server.read_states(item.id)
    was = [one for one in states if one.type is StateType.SCHEDULED and one.scheduled_time == made_from]
    if not was:
        await release_claim(server, item, "Claimed from an old poll result.", due=made_from)
        return
    waiting = waiting_state(was[-1].name, was[-1].message, due=made_from, data=was[-1].data)
    verdict = await server.propose(item.id, waiting, transition_id=transition_id_for(item, "release"))
    log.info("%s taken-back %s %s", item.id, waiting.name, verdict.reason)


def waiting_state(name: str | None, message: str | None, *, due: datetime | None, data: Any = None) -> State:
    """Return a state in which an item waits as before. The server lets nobody put an item into its own state `Late`."""
    details = {} if due is None else {"scheduled_time": due.isoformat()}
    name = "Scheduled" if name == _LATE else name or ItemState.QUEUED.label
    return State(type=StateType.SCHEDULED, name=name, message=message or None, data=data, state_details=details)


async def undo_claim(server: Server, item: Item, why: str) -> None:
    """Undo a claim of which nothing came: a waiting item goes back into its queue, one that had ended gets its end."""
    before = [state for state in await server.read_states(item.id) if state.type is not StateType.PENDING]
    if before and before[-1].type in TERMINAL:
        await _restore(server, item, before[-1])
    else:
        await release_claim(server, item, why)


async def release_claim(server: Server, item: Item, why: str, *, due: datetime | None = None) -> None:
    """Put a claimed item that was not started back into its queue; at its place in line, when it is due as it was."""
    # Under one id: once it is back in its queue another agent may have it, and it must not be taken from that one.
    queued = State.of(ItemState.QUEUED, why)
    if due is not None:
        queued = queued.model_copy(update={"state_details": {"scheduled_time": due.isoformat()}})
    verdict = await server.propose(item.id, queued, transition_id=transition_id_for(item, "release"))
    log.info("%s released %s %s", item.id, why, verdict.reason)


async def is_over_limit(server: Server, item: Item, *, pool_limit: int | None, queue_limit: int | None) -> bool:
    """Whether more items are active than the queue, or its priority, allows, with the claimed one."""
    pool = item.work_pool_name or ""
    if pool_limit is not None and await server.count_items(pool=pool, state_types=COUNTED) > pool_limit:
        return True
    if queue_limit is None:
        return False
    active = await server.count_items(pool=pool, queue=item.work_queue_name, state_types=COUNTED)
    return active > queue_limit


async def _has_ended_since(server: Server, polled: Item, current: Item) -> bool:
    """Whether the item has ended between the poll and the claim.

    `run_count` grows when an item runs; one that ended before it ran has got a start time, as the server gives one to
    every item that ends. For one that had ended before the poll too (it was put back), only its states show it.
    """
    if current.run_count != polled.run_count:
        return True
    if polled.start_time is None:
        return current.start_time is not None
    queued_at = polled.next_scheduled_start_time
    ends = [state.timestamp for state in await server.read_states(polled.id) if state.type in TERMINAL]
    return queued_at is not None and any(ended_at is not None and ended_at > queued_at for ended_at in ends)


async def finish_cancelling(server: Server, item: Item) -> None:
    """End an item that was asked to stop right after the claim: nothing of it runs, and nobody else would end it."""
    if item.state_type is StateType.CANCELLING:
        stopped = State.of(ItemState.CANCELLED, "Stopped before it was started.")
        await server.propose(item.id, stopped, transition_id=transition_id_for(item, "stop"))
        log.info("%s cancelled before it was started", item.id)


def _is_own_repeat(verdict: Verdict, token: UUID) -> bool:
    """Whether the server says that it made this very transition already: the first answer was lost."""
    made = verdict.state.transition_id if verdict.state else None
    return verdict.status is Answer.REJECT and made == str(token)


async def restore_final_state(server: Server, item: Item) -> None:
    """Restore the end of an item that had run already when the claim of an old poll result came through."""
    ends = [state for state in await server.read_states(item.id) if state.type in TERMINAL]
    if ends:
        await _restore(server, item, ends[-1])
    else:
        await release_claim(server, item, "Claimed from an old poll result.")


async def _restore(server: Server, item: Item, end: State) -> None:
    await server.propose(item.id, end, transition_id=transition_id_for(item, "restore"), force=True)
    log.info("%s restored %s", item.id, end.name)


def is_held_for_change(item: Item) -> bool:
    """Whether somebody holds an item that waits to change it, and no agent does."""
    state = item.state
    if state is None or state.name != ItemState.CLAIMED.label:
        return False
    return isinstance(state.data, dict) and CHANGE in state.data
