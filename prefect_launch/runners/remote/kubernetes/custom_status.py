"""Status of a custom resource, read from the phases, conditions and counts that its kind has.

The words are those that operators use: PyTorchJob's conditions, RayJob's and Volcano's phases, JobSet's counts. Of
several conditions that are true, one of the end counts before one on the way: finished, failed, stopping, running,
starting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.kubernetes.kinds import ObjectKind, first
from prefect_launch.runners.remote.kubernetes.pods import (
    Pod,
    Waiting,
    failure_of,
    has_started,
    in_words,
    success_of,
)


class CustomState(str, Enum):
    """Where a custom resource is; in the order in which one counts before another."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPING = "stopping"
    RUNNING = "running"
    STARTING = "starting"


#: What the words of phases and conditions mean, in small letters.
_MEANINGS: Final[Mapping[str, CustomState]] = {
    **dict.fromkeys(("succeeded", "success", "complete", "completed", "finished"), CustomState.FINISHED),
    **dict.fromkeys(
        ("failed", "failure", "error", "aborted", "timeout", "timedout", "terminated", "stopped", "cancelled"),
        CustomState.FAILED,
    ),
    **dict.fromkeys(("terminating", "aborting", "stopping", "deleting"), CustomState.STOPPING),
    **dict.fromkeys(("running", "active", "completing", "ready"), CustomState.RUNNING),
    **dict.fromkeys(
        ("created", "pending", "starting", "restarting", "queued", "suspended", "waiting"), CustomState.STARTING
    ),
}
_ORDER: Final = tuple(CustomState)
_TIMEOUT: Final = ("deadlineexceeded", "timeout", "timedout")


class _Seen(NamedTuple):
    state: CustomState
    word: str
    reason: str


def state_of(made: Mapping[str, Any], kind: ObjectKind) -> CustomState | None:
    """Return where a custom resource is; None while nothing says so."""
    seen = _seen(made, kind)
    return None if seen is None else seen.state


def custom_status(made: Mapping[str, Any], kind: ObjectKind, pods: Sequence[Pod], waiting: Waiting) -> RemoteStatus:
    """Return the status of a custom resource that is not held.

    Args:
        made: the object.
        kind: of it.
        pods: that it has now.
        waiting: why those of them wait that do.
    """
    seen = _seen(made, kind)
    if seen is not None and seen.state is CustomState.FINISHED:
        return RemoteStatus(state=RemoteState.ENDED, exit=success_of(pods))
    if seen is not None and seen.state is CustomState.FAILED:
        words = in_words(f"{kind.kind} {seen.word}", seen.reason)
        end = failure_of(pods, default=words)
        if _is_timeout(seen):
            end = end.model_copy(update={"timed_out": True, "error": words, "preempted": False})
        elif end.exit_code is None and not (end.preempted or end.is_own_doing or end.timed_out):
            end = end.model_copy(update={"error": words})
        return RemoteStatus(state=RemoteState.ENDED, exit=end)
    # Its operator's word lags behind: a pod that has started is running work.
    if any(has_started(pod) for pod in pods) or (
        seen is not None and seen.state in (CustomState.RUNNING, CustomState.STOPPING)
    ):
        return RemoteStatus(state=RemoteState.RUNNING, reason=waiting.reason, refusal=waiting.refusal)
    reason = waiting.reason or (in_words(seen.word, seen.reason) if seen is not None and seen.reason else "")
    return RemoteStatus(state=RemoteState.PENDING, reason=reason, refusal=waiting.refusal)


def _seen(made: Mapping[str, Any], kind: ObjectKind) -> _Seen | None:
    found = [*_of_phases(made, kind), *_of_conditions(made, kind), *_of_counts(made, kind)]
    return min(found, key=lambda one: _ORDER.index(one.state), default=None)


def _of_phases(made: Mapping[str, Any], kind: ObjectKind) -> Iterator[_Seen]:
    """Yield what the phases of a kind say together: a RayJob whose job FAILED is `Complete` as well."""
    message = str(first(made, kind.message) or "")
    words = [str(word) for path in kind.phases if (word := first(made, path))]
    seen = [_Seen(state, word, message) for word in words if (state := _meaning(word, kind)) is not None]
    yield from sorted(seen, key=lambda one: (one.state is not CustomState.FAILED, _ORDER.index(one.state)))[:1]


def _of_conditions(made: Mapping[str, Any], kind: ObjectKind) -> Iterator[_Seen]:
    for one in first(made, kind.conditions) or ():
        state = _meaning(str(one.get("type", "")), kind) if isinstance(one, Mapping) else None
        if state is not None and str(one.get("status")) == "True":
            yield _Seen(state, str(one["type"]), in_words(one.get("reason"), one.get("message")))


def _of_counts(made: Mapping[str, Any], kind: ObjectKind) -> Iterator[_Seen]:
    for one in first(made, kind.counts) or ():
        if (one.get("ready") or 0) >= 1:
            yield _Seen(CustomState.RUNNING, "ready", "")
        elif (one.get("active") or 0) >= 1:
            yield _Seen(CustomState.STARTING, "active", "")


def _meaning(word: str, kind: ObjectKind) -> CustomState | None:
    own = {name.lower(): meaning for name, meaning in kind.states.items()}.get(word.lower())
    return CustomState(own) if own is not None else _MEANINGS.get(word.lower())


def _is_timeout(seen: _Seen) -> bool:
    text = f"{seen.word} {seen.reason}".replace(" ", "").lower()
    return any(word in text for word in _TIMEOUT)
