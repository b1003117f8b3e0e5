"""Status of a run on Kubernetes, derived from its object and its pods: of a batch Job, from the Job's own conditions.

Pure functions over objects as the API server returns them (dictionaries): the watch of the cluster calls them
at each change. `custom_status` does the same for custom resources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.kubernetes.custom_status import custom_status
from prefect_launch.runners.remote.kubernetes.holding import is_held
from prefect_launch.runners.remote.kubernetes.kinds import JOB, ObjectKind, find, pod_count
from prefect_launch.runners.remote.kubernetes.objects import PULL_TIMEOUT
from prefect_launch.runners.remote.kubernetes.pods import (
    PULL_SECONDS,
    Pod,
    Waiting,
    condition,
    failure_of,
    has_ended,
    has_started,
    in_words,
    read_time,
    success_of,
    waiting_of,
)


def run_status(
    made: Mapping[str, Any],
    kind: ObjectKind,
    pods: Sequence[Pod] = (),
    *,
    events: Sequence[Mapping[str, Any]] = (),
    now: datetime | None = None,
) -> RemoteStatus:
    """Return the status of a run.

    Args:
        made: the run's object.
        kind: of it.
        pods: that it has now.
        events: of the object and its pods, oldest first. They report a quota that is used up.
        now: the time; by default, now.
    """
    moment = now or datetime.now(timezone.utc)
    if is_held(made, kind):
        return RemoteStatus(state=RemoteState.HELD)
    waiting = waiting_of(pods, moment, _pull_seconds(made))
    judged = job_status(made, pods, waiting) if kind == JOB else custom_status(made, kind, pods, waiting)
    if judged.reason or judged.state not in (RemoteState.PENDING, RemoteState.RUNNING):
        return judged
    warning = _warning(events)
    # Of one that runs, an operator may warn of other things than of a pod that cannot be made or started.
    is_of_wait = judged.state is RemoteState.PENDING or warning.startswith("Failed")
    return judged.model_copy(update={"reason": warning if is_of_wait else ""})


def is_short_of_pods(made: Mapping[str, Any], kind: ObjectKind, pods: Sequence[Pod]) -> bool:
    """Whether an object that is not held has fewer pods than it is to have: a quota may be used up, say."""
    at_work = sum(not has_ended(pod) for pod in pods)
    if kind != JOB:
        templates = [(one, keys) for one in kind.pods if not one.is_helper for keys, _ in find(made, one.template)]
        return at_work < sum(pod_count(made, one, keys) for one, keys in templates)
    spec, status = made.get("spec") or {}, made.get("status") or {}
    completions, parallelism = spec.get("completions"), spec.get("parallelism")
    wanted = 1 if parallelism is None else int(parallelism)
    return at_work < (wanted if completions is None else min(wanted, completions - (status.get("succeeded") or 0)))


def _pull_seconds(made: Mapping[str, Any]) -> float:
    written = ((made.get("metadata") or {}).get("annotations") or {}).get(PULL_TIMEOUT)
    return PULL_SECONDS if written is None else float(written)


def job_status(job: Mapping[str, Any], pods: Sequence[Pod], waiting: Waiting) -> RemoteStatus:
    """Return the status of a batch Job that is not held.

    Args:
        job: the Job.
        pods: that it has now.
        waiting: why those of them wait that do.
    """
    if failed := condition(job, "Failed"):
        return RemoteStatus(state=RemoteState.ENDED, exit=_job_failure(job, failed, pods))
    if condition(job, "Complete"):
        end = success_of([pod for pod in pods if (pod.get("status") or {}).get("phase") == "Succeeded"])
        done = read_time((job.get("status") or {}).get("completionTime"))
        return RemoteStatus(state=RemoteState.ENDED, exit=end.model_copy(update={"ended_at": end.ended_at or done}))
    if any(has_started(pod) for pod in pods):
        return RemoteStatus(state=RemoteState.RUNNING, reason=waiting.reason, refusal=waiting.refusal)
    if suspended := condition(job, "Suspended"):
        return RemoteStatus(
            state=RemoteState.PENDING, reason=in_words(suspended.get("reason"), suspended.get("message"))
        )
    return RemoteStatus(state=RemoteState.PENDING, reason=waiting.reason, refusal=waiting.refusal)


def _job_failure(job: Mapping[str, Any], failed: Mapping[str, Any], pods: Sequence[Pod]) -> ExitStatus:
    words = in_words(failed.get("reason"), failed.get("message"))
    end = failure_of(_last_try(job, pods), default=words)
    if failed.get("reason") == "DeadlineExceeded":
        end = end.model_copy(update={"timed_out": True, "error": words, "preempted": False})
    ended = end.ended_at or read_time(failed.get("lastTransitionTime"))
    return end.model_copy(update={"ended_at": ended})


def _last_try(job: Mapping[str, Any], pods: Sequence[Pod]) -> Sequence[Pod]:
    """Return the pods of the last try: of a Job that runs one at a time, the newest that failed."""
    is_one = ((job.get("spec") or {}).get("parallelism") or 1) == 1
    failed = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Failed"]
    return (
        [max(failed, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))] if is_one and failed else pods
    )


def _warning(events: Sequence[Mapping[str, Any]]) -> str:
    """Return the last of some events, if it is a warning: what came before it has passed."""
    last: Mapping[str, Any] = events[-1] if events else {}
    return in_words(last.get("reason"), last.get("message")) if last.get("type") == "Warning" else ""
