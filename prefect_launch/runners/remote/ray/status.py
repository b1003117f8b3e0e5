"""Status of Ray jobs: from what the Jobs API says of a job to what a runner says of it, and why a job waits.

Ray tells no reason for a job that waits: what the job asks for is compared with what the nodes have free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from prefect_launch.core.masking import without_users
from prefect_launch.errors import InfrastructureError, LaunchError, SpecError
from prefect_launch.runners.base import NEVER_STARTED, ExitStatus, Labels, signal_of
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RemoteStatus, RunHandle
from prefect_launch.runners.remote.marked_log import MarkedLog
from prefect_launch.runners.remote.ray.options import ASKS_LABEL, PLACEHOLDER_LABEL, describe

_STATES: Final = {
    "PENDING": RemoteState.PENDING,
    "RUNNING": RemoteState.RUNNING,
    "STOPPED": RemoteState.ENDED,
    "SUCCEEDED": RemoteState.ENDED,
    "FAILED": RemoteState.ENDED,
}
#: Error types of a job that has had no process.
_NEVER_RAN: Final = frozenset(
    {
        "RUNTIME_ENV_SETUP_FAILURE",
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        "JOB_SUPERVISOR_ACTOR_START_FAILURE",
        "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
        "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    }
)
_COMMAND_FAILED: Final = "JOB_ENTRYPOINT_COMMAND_ERROR"
_SHOWN_CHARS: Final = 1_500
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
#: A frame of a traceback: where, its line of code, and carets below that.
_FRAME: Final = re.compile(r"^ *File \"[^\n]*\", line \d+[^\n]*\n(?: {4,}[^\n]*\n)?(?:[ ^~]+\n)?", re.MULTILINE)
_SIGKILL: Final = 137


class Nodes(BaseModel):
    """The nodes of a cluster.

    Attributes:
        total: what each node that is alive has, by the names of resources.
        free: what each has free; empty where the cluster does not say.
        may_grow: whether the cluster may start nodes that it does not have yet.
    """

    model_config = ConfigDict(frozen=True)

    total: tuple[dict[str, float], ...] = ()
    free: tuple[dict[str, float], ...] = ()
    may_grow: bool = False

    def can_ever_give(self, asked: Mapping[str, float]) -> bool:
        """Whether a node could give what is asked for, if nothing else ran there."""
        return self.may_grow or not self.total or any(_fits(asked, one) for one in self.total)

    def refusal(self, asked: Mapping[str, float]) -> str:
        """Say that no node can give what is asked for, and what there is."""
        most = {name: max((one.get(name, 0.0) for one in self.total), default=0.0) for name in asked}
        short = {name: value for name, value in asked.items() if most[name] < value}
        seen = describe({name: most[name] for name in short}) if short else "no node has all of it together"
        return (
            f"No node of the Ray cluster can give {describe(asked)}"
            f" ({f'the most that one has is {seen}' if short else seen}). Ask for less, or add a node that has it."
        )

    def reason(self, asked: Mapping[str, float]) -> str:
        """Say what a job waits for; empty when a node has it free, so that the job is about to start."""
        if not asked or not self.free or any(_fits(asked, one) for one in self.free):
            return ""
        most = {name: max(one.get(name, 0.0) for one in self.free) for name in asked}
        return f"PENDING: waits for {describe(asked)}; a node has at most {describe(most)} free"


def _fits(asked: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(there.get(name, 0.0) >= value for name, value in asked.items())


def read_nodes(nodes: Sequence[Mapping[str, Any]], cluster: Mapping[str, Any] | None) -> Nodes:
    """Read the State API's nodes, and the cluster's status, which not every cluster has.

    Args:
        nodes: with `resources_total` and `state` each.
        cluster: `data.clusterStatus` of the answer.
    """
    alive = tuple(dict(one.get("resources_total") or {}) for one in nodes if one.get("state") == "ALIVE")
    cluster = cluster or {}
    used = (cluster.get("loadMetricsReport") or {}).get("usageByNode") or {}
    free = tuple({name: float(total) - float(taken) for name, (taken, total) in node.items()} for node in used.values())
    types = ((cluster.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}).values()
    # Without an autoscaler, Ray makes up a type for each node.
    may_grow = any(not str(one).startswith("node_") for one in types)
    return Nodes(total=alive, free=free, may_grow=may_grow)


def asked_of(details: Mapping[str, Any]) -> dict[str, float]:
    """Return what a job of ours asks for, from its metadata: the API does not tell."""
    try:
        found = json.loads((details.get("metadata") or {}).get(ASKS_LABEL) or "{}")
        return {str(name): float(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def labels_of(details: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a job."""
    return {str(name): str(value) for name, value in (details.get("metadata") or {}).items()}


def read_job(details: Mapping[str, Any], reason: str = "") -> RemoteJob:
    """Return a job of the Jobs API.

    Args:
        details: the API's.
        reason: why it waits, if it does.
    """
    state = _STATES.get(str(details.get("status")), RemoteState.RUNNING)
    handle = str(details["submission_id"])
    is_ended, is_pending = state is RemoteState.ENDED, state is RemoteState.PENDING
    return RemoteJob(
        handle=handle,
        name=handle,
        labels=labels_of(details),
        status=RemoteStatus(
            state=state,
            reason=reason if is_pending else "",
            exit=_exit_of(details) if is_ended else None,
            refusal=_refusal(details) if is_ended else None,
        ),
    )


def _refusal(details: Mapping[str, Any]) -> LaunchError | None:
    kind, message = str(details.get("error_type") or ""), _message(details)
    if kind not in _NEVER_RAN:
        return None
    if kind == "RUNTIME_ENV_SETUP_FAILURE":
        image = (details.get("runtime_env") or {}).get("image_uri")
        needs = f" The image {image!r} needs podman on the nodes, and the cluster's Ray in it." if image else ""
        return SpecError(f"Ray could not make the job's runtime environment.{needs} {message}")
    return InfrastructureError(f"Ray could not start the job ({kind}). {message}")


def _message(details: Mapping[str, Any]) -> str:
    # What pip could not fetch is named with the password of its index.
    text = without_users(_COLOUR.sub("", str(details.get("message") or "")))
    # Of a traceback, only its error: the frames are Ray's own.
    text = _FRAME.sub("", text).replace("Traceback (most recent call last):\n", "").strip()
    if len(text) > _SHOWN_CHARS:
        text = f"… {text[-_SHOWN_CHARS:]}"
    return text if not text or text.endswith(".") else f"{text}."


def _exit_of(details: Mapping[str, Any]) -> ExitStatus:
    """Say how an ended job ended. Ray gives a signal as a negative exit code."""
    status, code = details["status"], details.get("driver_exit_code")
    kind = details.get("error_type")
    if PLACEHOLDER_LABEL in labels_of(details):
        return ExitStatus(exit_code=None, stopped=True, error=NEVER_STARTED)
    times = {name: _moment(details.get(key)) for name, key in (("started_at", "start_time"), ("ended_at", "end_time"))}
    if code is not None and code < 0:
        code = 128 - code
    if status == "SUCCEEDED":
        return ExitStatus(exit_code=0, **times)
    if status == "FAILED" and (kind == _COMMAND_FAILED or (kind is None and code is not None)):
        return _failed(details, code, times)
    if status == "STOPPED":
        return ExitStatus(exit_code=None, error="STOPPED", ended_by_others=True, **times)
    error = f"Ray lost the job ({kind}): {_message(details) or 'it gives no reason.'}".rstrip(".")
    return ExitStatus(exit_code=code, error=error, **times)


def _failed(details: Mapping[str, Any], code: int | None, times: Mapping[str, Any]) -> ExitStatus:
    claim = labels_of(details).get(Labels.CLAIM, "")
    marks = MarkedLog(str(RunHandle(str(details["submission_id"]), claim)))
    for _ in marks.feed(str(details.get("message") or "").encode()):
        pass
    error, warnings = None, tuple[str, ...]()
    if marks.exit_code == code and not marks.has_program:
        program = re.match(r"set -- (\S+)", str(details.get("entrypoint") or ""))
        named = program[1] if program else "the job's program"
        error = f"{named} is not there, or is no program: Ray found it neither in the code nor on the node's PATH"
    elif code == _SIGKILL:
        warnings = ("it was killed, perhaps because its node was out of memory; Ray does not say",)
    return ExitStatus(
        exit_code=code, signal=None if error else signal_of(code), error=error, warnings=warnings, **times
    )


def stopped_exit(end: ExitStatus, marks: MarkedLog, *, has_run: bool) -> ExitStatus:
    """Return the end of a job that was stopped with its exit code, which Ray does not tell and its log does.

    Args:
        end: as Ray tells it, and whether this agent has stopped it.
        marks: of the end of its log.
        has_run: whether it has had a process.
    """
    if not has_run:
        return end.model_copy(update={"error": NEVER_STARTED}) if end.stopped else end
    # A job that ended in its grace has a mark of its end. One that was killed after it has none.
    code = marks.exit_code if marks.exit_code is not None else _SIGKILL
    error = None if end.stopped else end.error
    return end.model_copy(update={"exit_code": code, "signal": signal_of(code), "error": error})


def _moment(milliseconds: Any) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc) if milliseconds else None
