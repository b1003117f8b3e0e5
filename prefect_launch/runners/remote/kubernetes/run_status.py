"""Status of a run from its object and pods as they were last seen, also while the object is deleted, and afterwards.

A deleted job has ended once none of its containers runs any more. How they ended comes from its pods while these exist,
and afterwards from how they were last seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prefect_launch.errors import RunLostError
from prefect_launch.runners.base import NEVER_STARTED, ExitStatus, Labels
from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.kubernetes.client import Object
from prefect_launch.runners.remote.kubernetes.kinds import CUSTOM_KINDS, JOB, ObjectKind, kind_of
from prefect_launch.runners.remote.kubernetes.objects import labels_of
from prefect_launch.runners.remote.kubernetes.pods import failure_of, has_ended, has_started, success_of
from prefect_launch.runners.remote.kubernetes.status import run_status
from prefect_launch.runners.remote.kubernetes.watch import SeenRun

#: Where an object of a kind that its queue's owner describes has the description.
KIND_NOTE: Final = "prefect-launch.kind"


def note_kind(made: Object, kind: ObjectKind) -> None:
    """Write the description of a kind that is not known by itself into an object's annotations."""
    if kind != JOB and kind not in CUSTOM_KINDS:
        described = kind.model_dump_json(exclude={"kind", "group"}, exclude_defaults=True)
        made["metadata"].setdefault("annotations", {})[KIND_NOTE] = described


def kind_in(made: Mapping[str, Any]) -> ObjectKind:
    """Return the kind of an object that an agent has made."""
    note = (made["metadata"].get("annotations") or {}).get(KIND_NOTE)
    return kind_of(made["apiVersion"], made["kind"], json.loads(note) if note else None)


def pods_of_claim(job: Mapping[str, Any], pods: Sequence[Object]) -> list[Object]:
    """Return those pods that are of the same claim as a job: an older one's may still be on their way out."""
    claim = labels_of(job).get(Labels.CLAIM)
    return [pod for pod in pods if labels_of(pod).get(Labels.CLAIM) == claim]


def active_pods(run: SeenRun) -> list[Object]:
    """Return the pods of a run that have not ended, without those of a cluster that was made for it."""
    if run.job is None or not any(template.runs_job for template in kind_in(run.job.object).pods):
        return []
    return [pod for pod in pods_of_claim(run.job.object, run.live_pods) if not has_ended(_with_end(pod))]


def has_object_ended(run: SeenRun) -> bool:
    """Whether a run's object says that it has ended, whatever its pods do."""
    if run.job is None:
        return False
    job = run.job.object
    return run_status(job, kind_in(job)).state is RemoteState.ENDED


def is_leaving(job: Mapping[str, Any]) -> bool:
    """Whether an object is being deleted."""
    return bool(job["metadata"].get("deletionTimestamp"))


def status_of_run(
    run: SeenRun, *, is_stopped: bool = False, events: Sequence[Mapping[str, Any]] = ()
) -> RemoteStatus | None:
    """Return the status of a run; None when nothing of it was ever seen.

    Args:
        run: as it is seen.
        is_stopped: whether the runner itself has deleted it.
        events: of its job, oldest first.
    """
    if run.job is None:
        return None
    job, is_gone = run.job.object, run.job.is_gone
    there = [_with_end(pod) for pod in pods_of_claim(job, run.live_pods)]
    known = [_with_end(pod, run.pods[pod["metadata"]["name"]].is_gone) for pod in pods_of_claim(job, run.all_pods)]
    ended = [pod for pod in known if has_ended(pod)]
    kind = kind_in(job)
    pods = [*ended, *(pod for pod in there if not has_ended(pod))]
    status = run_status(job, kind, pods, events=events)
    if status.state is RemoteState.ENDED and (others := active_pods(run)):
        # Whoever is told of the end may start the next attempt.
        state = RemoteState.RUNNING if any(has_started(pod) for pod in pods) else RemoteState.PENDING
        return RemoteStatus(state=state, reason=f"the {kind.kind} has ended, and {len(others)} of its pods have not")
    if status.exit is not None and is_stopped:
        return status.model_copy(update={"exit": _stopped(status.exit)})
    if status.state is RemoteState.ENDED or not (is_gone or is_leaving(job)):
        return status
    if any(not has_ended(pod) for pod in there) or not (is_gone or there):
        # Its pods, or its object, are still on their way out.
        state = RemoteState.RUNNING if status.state is RemoteState.RUNNING else RemoteState.PENDING
        return RemoteStatus(state=state, reason=f"the {kind.kind} is being deleted")
    end = _end_of_deleted(job, kind, ended, is_stopped)
    never_ran = not is_stopped and not any(has_started(pod) for pod in known)
    return RemoteStatus(state=RemoteState.ENDED, exit=end, refusal=RunLostError(end.describe()) if never_ran else None)


def _end_of_deleted(job: Object, kind: ObjectKind, pods: Sequence[Object], is_stopped: bool) -> ExitStatus:
    at = job["metadata"].get("deletionTimestamp")
    when = f" at {at}" if at else ""
    why = (
        f"somebody else deleted the {kind.kind} {job['metadata']['name']!r} from the cluster{when}, not this agent; who"
        " it was, only the cluster's audit log says"
    )
    all_well = bool(pods) and all((pod["status"] or {}).get("phase") == "Succeeded" for pod in pods)
    end = success_of(pods) if all_well else failure_of(pods, default=why)
    return _stopped(end) if is_stopped else end.model_copy(update={"error": why})


def _stopped(end: ExitStatus) -> ExitStatus:
    """Return an end that the runner itself has brought about: nobody else is its cause."""
    why = NEVER_STARTED if end.started_at is None else "its exit code is not known"
    return end.model_copy(update={"stopped": True, "error": None if end.exit_code is not None else why})


def _with_end(pod: Object, is_gone: bool = False) -> Object:
    """Return a pod that says that it has ended once all its containers have: its own phase lags behind a deletion."""
    if has_ended(pod) or not (is_gone or pod["metadata"].get("deletionTimestamp")):
        return pod
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    ends = [(one.get("state") or {}).get("terminated") for one in statuses]
    if not is_gone and not (ends and all(ends)) and _may_run(pod):
        return pod
    is_success = bool(ends) and all(end is not None and end.get("exitCode") == 0 for end in ends)
    return {**pod, "status": {**(pod.get("status") or {}), "phase": "Succeeded" if is_success else "Failed"}}


def _may_run(pod: Object) -> bool:
    """Whether a pod that is being deleted may still run something: one without a node never does."""
    return bool((pod.get("spec") or {}).get("nodeName"))
