"""Status of a child flow run: where it is, why it waits, and how it has ended.

The wrapper reports an end with its details in the state's data. An end without them is a worker's, the server's or a
person's: its message is reported unchanged, since workers give exit codes only in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.errors import clause
from prefect_launch.runners.base import NEVER_STARTED, ExitStatus, signal_of
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RemoteStatus
from prefect_launch.runners.remote.prefect.wrapper import HEARTBEAT_LABEL
from prefect_launch.server.values import Item

#: The state of a child that no worker may take yet: Prefect's workers take scheduled runs alone.
HELD: Final = "Held"
#: Marks the data of a state as the wrapper's.
_MARK: Final = "prefect-launch"
#: What stands in the state of a child that was stopped before it was started, where no wrapper will speak.
END_OF_UNSTARTED: Final = {_MARK: 1, "exit_code": None, "stopped": True, "error": NEVER_STARTED}
_PREFECTS: Final = "prefect."


def job_of(child: Item, reason: str, *, is_complete: bool = True) -> RemoteJob:
    """Return a child flow run as the base knows jobs.

    Args:
        child: as the server shows it.
        reason: why it waits, if it does.
        is_complete: whether it has its plan.
    """
    labels = {
        key: str(value)
        for key, value in child.labels.items()
        if not key.startswith(_PREFECTS) and key != HEARTBEAT_LABEL
    }
    return RemoteJob(
        handle=str(child.id), name=child.name, labels=labels, status=_status(child, reason), is_complete=is_complete
    )


def _status(child: Item, reason: str) -> RemoteStatus:
    if child.state_type in TERMINAL:
        return RemoteStatus(state=RemoteState.ENDED, exit=exit_of(child))
    if is_held(child):
        return RemoteStatus(state=RemoteState.HELD)
    if child.start_time is None:
        return RemoteStatus(state=RemoteState.PENDING, reason=reason)
    return RemoteStatus(state=RemoteState.RUNNING)


def is_held(child: Item) -> bool:
    """Whether a child was not released yet."""
    return child.state_type is StateType.PAUSED and child.state_name == HELD and child.start_time is None


def end_of(child: Item) -> Mapping[str, Any]:
    """Return what the wrapper has said of the end; nothing when it has not spoken."""
    data = child.state.data if child.state is not None else None
    return data if isinstance(data, dict) and _MARK in data else {}


def exit_of(child: Item) -> ExitStatus:
    """Say how a child has ended."""
    end = end_of(child)
    if not end:
        return ExitStatus(
            exit_code=None, error=_without_wrapper(child), stopped=child.state_type is StateType.CANCELLED
        )
    error, lost = end.get("error"), end.get("log_lost_bytes")
    told = (f"{lost:,} bytes of its output are lost: {end.get('log_lost_why')}",) if lost else ()
    # Its worker may have ended it for the very request that it is stopped by.
    is_preempted = bool(end.get("terminated")) and not end.get("stopped")
    if is_preempted:
        error = f"the infrastructure of its worker was told to end, and it with it (exit code {end['exit_code']})"
    return ExitStatus(
        exit_code=end.get("exit_code"),
        signal=end.get("signal") or signal_of(end.get("exit_code")),
        oom_killed=bool(end.get("oom_killed")),
        stopped=bool(end.get("stopped")),
        preempted=is_preempted,
        error=error,
        started_at=_time(end.get("started_at")),
        ended_at=_time(end.get("ended_at")),
        peak_memory_bytes=end.get("peak_memory_bytes"),
        warnings=told,
    )


def _without_wrapper(child: Item) -> str:
    where = f"the work pool {child.work_pool_name!r}" if child.work_pool_name else "a work pool that is gone"
    if child.state_type is StateType.CANCELLED:
        return f"its flow run {child.id} in {where} was cancelled" + (
            f": {clause(child.message)}" if child.message else ""
        )
    told = f": {child.message}" if child.message else ", and nothing was said of the reason"
    return f"its flow run {child.id} in {where} is {child.state_name}{told}"


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None
