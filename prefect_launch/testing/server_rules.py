"""The rules by which a Prefect server lets a flow run change its state: what it said when it was asked.

`judge` gives the ruling on a proposed state, `entered` the item that is in it. The order of the rules and their words
are the server's; the same contract tests check them on both. Left out is what prefect-launch never asks for: pausing,
retries by the server, limits of deployments, and states that the server sets by itself after a time (Late, a
cancellation that nobody finished).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.server.values import Answer, Item, State

_MICROSECOND: Final = timedelta(microseconds=1)
_NO_RETURN = frozenset({StateType.CANCELLING, StateType.PAUSED, StateType.CRASHED})
_UNCLAIMABLE = frozenset({StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.CANCELLED})
_NOTHING_TO_STOP = "Scheduled flow run has no infrastructure to terminate."
_STOPPING = "Cannot transition flows that are cancelling to a state other than Cancelled."


class Ruling(NamedTuple):
    """What the server says to a proposal.

    Attributes:
        answer: its word.
        state: the state that the item enters; `None` when it stays in the one it is in.
        reason: why it does not enter the proposed one.
        delay_seconds: after which time to ask again.
    """

    answer: Answer
    state: State | None = None
    reason: str = ""
    delay_seconds: int | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The details of the server's answer."""
        details: dict[str, Any] = {"type": f"{self.answer.value.lower()}_details"}
        if self.reason:
            details["reason"] = self.reason
        if self.delay_seconds is not None:
            details["delay_seconds"] = self.delay_seconds
        return details


_Rule = Callable[[Item, State, State, datetime], "Ruling | None"]


def judge(item: Item, proposed: State, *, force: bool, now: datetime) -> Ruling:
    """Return the server's ruling on a proposed state.

    Args:
        item: the item as it is.
        proposed: the state that is asked for.
        force: whether to pass over all rules but those that the server keeps even then.
        now: the server's clock.
    """
    current = item.state
    if current is None:
        return Ruling(Answer.ACCEPT, proposed)
    for rule in _FORCED if force else _RULES:
        ruling = rule(item, current, proposed, now)
        if ruling is not None:
            return ruling
    return Ruling(Answer.ACCEPT, proposed if force else _with_scheduled_time_of(current, proposed))


def entered(item: Item, state: State, history: Collection[State], now: datetime) -> Item:
    """Return the item in a new state, with all that the server keeps about it: times, run count, next start."""
    stamp = now
    taken = {past.timestamp for past in history}
    while stamp in taken:
        stamp += _MICROSECOND
    details = {**state.state_details, "flow_run_id": str(item.id)}
    if state.type is StateType.SCHEDULED and not details.get("scheduled_time"):
        details["scheduled_time"] = stamp.isoformat()
    state = state.model_copy(update={"timestamp": stamp, "state_details": details})
    changes: dict[str, Any] = {"state": state, "state_type": state.type, "state_name": state.name}
    changes.update(_times(item, state, stamp))
    if state.type is StateType.RUNNING:
        changes["run_count"] = item.run_count + 1
    return item.model_copy(update=changes)


def _times(item: Item, state: State, stamp: datetime) -> dict[str, Any]:
    due = _scheduled_time(state)
    waits = state.type is StateType.SCHEDULED
    changes: dict[str, Any] = {"next_scheduled_start_time": due if waits else None}
    if item.expected_start_time is None:
        changes["expected_start_time"] = due if waits else stamp
    ends = state.type in TERMINAL
    if item.start_time is None and (ends or state.type is StateType.RUNNING):
        changes["start_time"] = stamp
    if not ends:
        changes["end_time"] = None
    elif item.end_time is None:
        changes["end_time"] = stamp
    if item.state is not None and item.state.type is StateType.RUNNING and item.state.timestamp is not None:
        changes["total_run_time"] = item.total_run_time + (stamp - item.state.timestamp).total_seconds()
    return changes


def _scheduled_time(state: State) -> datetime | None:
    text = state.state_details.get("scheduled_time")
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None


def _with_scheduled_time_of(current: State, proposed: State) -> State:
    """A claim keeps the time that the item was scheduled for."""
    if proposed.type is not StateType.PENDING or current.type not in (StateType.SCHEDULED, StateType.PENDING):
        return proposed
    due = current.state_details.get("scheduled_time")
    if current.type is StateType.SCHEDULED:
        due = proposed.state_details.get("scheduled_time") or due
    return proposed.model_copy(update={"state_details": {**proposed.state_details, "scheduled_time": due}})


def _has_result(state: State) -> bool:
    return isinstance(state.data, dict) and bool(state.data) and state.data.get("type") != "unpersisted"


def _made_already(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    made, asked = current.state_details.get("transition_id"), proposed.state_details.get("transition_id")
    if made is None or asked is None or str(made) != str(asked):
        return None
    return Ruling(Answer.REJECT, reason="This run has already made this state transition.")


def _leaves_an_end(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type not in TERMINAL:
        return None
    if proposed.type in _NO_RETURN:
        return Ruling(Answer.ABORT, reason=f"Run is already in terminal state {current.type.value}.")
    if current.type is StateType.COMPLETED and _has_result(current) and proposed.type not in TERMINAL:
        return Ruling(Answer.REJECT, reason="Run is already COMPLETED.")
    return _loses_a_result(item, current, proposed, now)


def _loses_a_result(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type is not StateType.COMPLETED or proposed.type is not StateType.COMPLETED:
        return None
    if not _has_result(current) or _has_result(proposed):
        return None
    text = "Cannot overwrite a COMPLETED state that carries persisted result data with one that does not."
    return Ruling(Answer.REJECT, reason=text)


def _is_stopping(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type is not StateType.CANCELLING or proposed.type is StateType.CANCELLED:
        return None
    return Ruling(Answer.REJECT, reason=_STOPPING)


def _has_nothing_to_stop(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if proposed.type is not StateType.CANCELLING or current.type is not StateType.SCHEDULED or item.infrastructure_pid:
        return None
    return Ruling(Answer.REJECT, State.of(ItemState.CANCELLED), _NOTHING_TO_STOP)


def _is_claimed(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    """The trap is here: a run that completed, failed or crashed may be claimed again."""
    if proposed.type is not StateType.PENDING or current.type not in _UNCLAIMABLE:
        return None
    if current.type is StateType.PENDING and proposed.name not in ("Pending", current.name):
        return None
    text = f"This run is in a {current.type.value} state and cannot transition to a PENDING state."
    return Ruling(Answer.ABORT, reason=text)


def _is_too_early(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if proposed.type is not StateType.RUNNING or current.type not in (StateType.SCHEDULED, StateType.PENDING):
        return None
    due = _scheduled_time(current)
    delay = 0.0 if due is None else (due - now).total_seconds()
    if delay < 0.5:  # the server rounds to seconds
        return None
    return Ruling(Answer.WAIT, None, "Scheduled time is in the future", math.floor(delay + 0.5))


_RULES: Final[tuple[_Rule, ...]] = (
    _made_already,
    _leaves_an_end,
    _is_stopping,
    _has_nothing_to_stop,
    _is_claimed,
    _is_too_early,
)
_FORCED: Final[tuple[_Rule, ...]] = (_loses_a_result, _has_nothing_to_stop)
