"""Status of custom jobs: from a job of the REST API to what a runner says of it, and how it ended.

Vertex AI has no field for a program's exit code: it is in a sentence of the error alone, which is passed on as it is.
The code of the error (of `google.rpc.Code`) tells the job's own failure from the service's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RemoteStatus
from prefect_launch.runners.remote.vertex.labels import from_google

_PENDING: Final = RemoteState.PENDING
_RUNNING: Final = RemoteState.RUNNING
_ENDED: Final = RemoteState.ENDED
#: Of a state with None, the job's start decides: it may have run, or not.
STATES: Final[Mapping[str, RemoteState | None]] = {
    "JOB_STATE_UNSPECIFIED": None,
    "JOB_STATE_QUEUED": _PENDING,
    "JOB_STATE_PENDING": _PENDING,
    "JOB_STATE_RUNNING": _RUNNING,
    "JOB_STATE_SUCCEEDED": _ENDED,
    "JOB_STATE_FAILED": _ENDED,
    "JOB_STATE_CANCELLING": None,
    "JOB_STATE_CANCELLED": _ENDED,
    "JOB_STATE_PAUSED": None,
    "JOB_STATE_EXPIRED": _ENDED,
    "JOB_STATE_UPDATING": _RUNNING,
    "JOB_STATE_PARTIALLY_SUCCEEDED": _ENDED,
}
ENDED_STATES: Final = tuple(name for name, state in STATES.items() if state is _ENDED)
#: Why a job is in a state, where Google says nothing more.
_REASONS: Final = {
    "JOB_STATE_QUEUED": "Vertex AI has queued it: the project's quota of machines or accelerators may be used up",
    "JOB_STATE_PENDING": "Vertex AI prepares its machines",
    "JOB_STATE_CANCELLING": "somebody has cancelled it",
    "JOB_STATE_PAUSED": "somebody has paused it",
    "JOB_STATE_UNSPECIFIED": "Vertex AI does not say its state",
}
# Codes of google.rpc.Code.
_CANCELLED: Final = 1
_INVALID_ARGUMENT: Final = 3
_DEADLINE_EXCEEDED: Final = 4
_NOT_FOUND: Final = 5
_PERMISSION_DENIED: Final = 7
_RESOURCE_EXHAUSTED: Final = 8
_FAILED_PRECONDITION: Final = 9
_ABORTED: Final = 10
_UNAVAILABLE: Final = 14
_NAMES: Final = {
    _CANCELLED: "CANCELLED",
    2: "UNKNOWN",
    _INVALID_ARGUMENT: "INVALID_ARGUMENT",
    _DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    _NOT_FOUND: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    _PERMISSION_DENIED: "PERMISSION_DENIED",
    _RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    _FAILED_PRECONDITION: "FAILED_PRECONDITION",
    _ABORTED: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    _UNAVAILABLE: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
}
#: Failures of the job, or of what it asks for: the same job would fail again.
_OWN: Final = frozenset({_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED, _FAILED_PRECONDITION})
#: All that Google says of a job that was cancelled.
_NO_REASON: Final = "CANCELED"
#: How a job with Spot machines ends that has run, and whose machines were taken away.
_TAKEN_AWAY: Final = frozenset({_RESOURCE_EXHAUSTED, _ABORTED, _UNAVAILABLE})
_SPOT: Final = "SPOT"
_MOST_CHARS: Final = 1_500
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|\+00:00)")


def parse_time(text: Any) -> datetime | None:
    """Return a moment as Google writes it, in microseconds; None for what is none."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    moment = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    return moment + timedelta(microseconds=int((match[2] or "0").ljust(6, "0")[:6]))


def id_of(job: Mapping[str, Any]) -> str:
    """Return a job's id, the number at the end of its name."""
    return str(job["name"]).rpartition("/")[2]


def state_of(job: Mapping[str, Any]) -> RemoteState:
    """Return where a job is."""
    state = STATES.get(str(job.get("state")))
    if state is not None:
        return state
    if str(job.get("state")) not in STATES and job.get("endTime"):  # A state that is newer than this program.
        return _ENDED
    return _RUNNING if job.get("startTime") else _PENDING


def read_job(job: Mapping[str, Any]) -> RemoteJob:
    """Return a job of the REST API that a runner has made."""
    state = state_of(job)
    return RemoteJob(
        handle=str(job["displayName"]),
        name=str(job["displayName"]),
        labels=from_google(job.get("labels") or {}),
        status=RemoteStatus(
            state=state,
            reason="" if state is _ENDED else _reason(job),
            exit=_exit_of(job) if state is _ENDED else None,
        ),
    )


def _reason(job: Mapping[str, Any]) -> str:
    """Say why a job does not run, or not as it should; empty for one that runs."""
    name = str(job.get("state") or "JOB_STATE_UNSPECIFIED")
    if STATES.get(name) is _RUNNING:
        return ""
    words = _words(job) or _REASONS.get(name, "this version of prefect-launch does not know that state")
    return f"{name}: {words}"


def _words(job: Mapping[str, Any]) -> str:
    error = job.get("error") or {}
    message = str(error.get("message") or "").strip()
    if message in ("", _NO_REASON):
        return ""
    code = _NAMES.get(error.get("code") or 0, f"code {error.get('code')}")
    return f"{message[:_MOST_CHARS].rstrip('.')} ({code})"


def _exit_of(job: Mapping[str, Any]) -> ExitStatus:
    state, code = str(job.get("state")), int((job.get("error") or {}).get("code") or 0)
    times = {"started_at": parse_time(job.get("startTime")), "ended_at": parse_time(job.get("endTime"))}
    if state == "JOB_STATE_SUCCEEDED":
        return ExitStatus(exit_code=0, **times)
    words = _words(job)
    if state == "JOB_STATE_EXPIRED" or code == _DEADLINE_EXCEEDED or (state == "JOB_STATE_CANCELLED" and _is_over(job)):
        why = words or "it reached a time limit of Vertex AI's (run.timeout, run.max_wait_duration)"
        return ExitStatus(exit_code=None, timed_out=True, error=f"{state.removeprefix('JOB_STATE_')}: {why}", **times)
    if state == "JOB_STATE_CANCELLED":
        error = f"CANCELLED: {words}" if words else "CANCELLED"
        return ExitStatus(exit_code=None, error=error, ended_by_others=True, **times)
    if code in _TAKEN_AWAY and times["started_at"] is not None and _scheduling(job).get("strategy") == _SPOT:
        error = f"preempted: Vertex AI took its Spot machines away: {words}"
        return ExitStatus(exit_code=None, preempted=True, error=error, **times)
    if code == _RESOURCE_EXHAUSTED:
        return ExitStatus(exit_code=None, error=f"Vertex AI has no machine for it: {words}", **times)
    why = words or "Vertex AI gives no reason"
    is_own = code in _OWN or state == "JOB_STATE_PARTIALLY_SUCCEEDED"
    error = f"{state.removeprefix('JOB_STATE_')}: {why}"
    return ExitStatus(exit_code=None, error=error, is_own_doing=is_own, **times)


def _scheduling(job: Mapping[str, Any]) -> Mapping[str, Any]:
    return (job.get("jobSpec") or {}).get("scheduling") or {}


def _is_over(job: Mapping[str, Any]) -> bool:
    """Whether a job has run for as long as its time limit, so that Vertex AI itself has cancelled it."""
    limit = re.fullmatch(r"(\d+)(?:\.\d+)?s", str(_scheduling(job).get("timeout") or ""))
    began, over = parse_time(job.get("startTime")), parse_time(job.get("endTime"))
    return bool(limit and began and over and (over - began).total_seconds() >= int(limit[1]))
