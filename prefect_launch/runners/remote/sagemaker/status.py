"""Status of a training job: from what DescribeTrainingJob, or a list, says to what a runner says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.errors import LaunchError, SpecError, clause
from prefect_launch.runners.base import ExitStatus, signal_of
from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.sagemaker.request import ENTER_WORDS

_ENDED: Final = frozenset({"Completed", "Failed", "Stopped"})
#: Secondary statuses of a job that runs; in any other one of "InProgress" it waits.
_RUNNING: Final = frozenset({"Training", "Uploading", "Updating"})
_TIME_LIMITS: Final = {
    "MaxRuntimeExceeded": "StoppingCondition.MaxRuntimeInSeconds",
    "MaxWaitTimeExceeded": "StoppingCondition.MaxWaitTimeInSeconds",
}
_INTERRUPTED: Final = "Interrupted"
_EXIT_CODE: Final = re.compile(r"\bexit ?code:? *(\d{1,3})\b", re.IGNORECASE)
_NO_PROGRAM: Final = frozenset({126, 127})
_SIGKILL: Final = 137
_SHOWN_CHARS: Final = 1_100


def has_ended(job: Mapping[str, Any]) -> bool:
    """Whether a job, as described or listed, has ended."""
    return job.get("TrainingJobStatus") in _ENDED


def status_of(job: Mapping[str, Any]) -> RemoteStatus:
    """Return the status of a job.

    Args:
        job: as described; or as listed, which lacks how it ended.
    """
    if has_ended(job):
        return RemoteStatus(state=RemoteState.ENDED, exit=_exit_of(job), refusal=_refusal(job))
    secondary = str(job.get("SecondaryStatus") or "")
    has_run = job.get("TrainingStartTime") is not None
    if secondary in _RUNNING:
        return RemoteStatus(state=RemoteState.RUNNING)
    # A job that was interrupted, or is to be stopped, has run and may do so again.
    state = RemoteState.RUNNING if has_run else RemoteState.PENDING
    return RemoteStatus(state=state, reason=_reason(job, secondary))


def _reason(job: Mapping[str, Any], secondary: str) -> str:
    said = _last_message(job)
    if secondary == _INTERRUPTED:
        said = said or "its spot instance was taken away; SageMaker starts the job again when it gets another one"
    return f"{secondary}: {said}" if said else secondary


def _last_message(job: Mapping[str, Any]) -> str:
    steps = job.get("SecondaryStatusTransitions") or [{}]
    return clause(steps[-1].get("StatusMessage") or "")


def _times(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"started_at": job.get("TrainingStartTime"), "ended_at": job.get("TrainingEndTime")}


def _exit_of(job: Mapping[str, Any]) -> ExitStatus:
    status, secondary = job["TrainingJobStatus"], str(job.get("SecondaryStatus") or "")
    times = _times(job)
    if status == "Completed":
        said = clause(job.get("ExitMessage") or "")
        return ExitStatus(exit_code=0, warnings=(f"SageMaker says: {said}",) if said else (), **times)
    if secondary in _TIME_LIMITS:
        limit = f"its time limit is {_TIME_LIMITS[secondary]} ({secondary})"
        return ExitStatus(exit_code=None, timed_out=True, warnings=(limit,), **times)
    if secondary == _INTERRUPTED or (status != "Failed" and _was_interrupted(job)):
        return ExitStatus(exit_code=None, preempted=True, **times)
    if status == "Failed":
        return _failed(job, times)
    why = clause(job.get("FailureReason") or "")
    # Its quota of pending time, say, ends a job too; that is no time limit of its program.
    return ExitStatus(exit_code=None, error=f"Stopped: {why}" if why else "Stopped", ended_by_others=not why, **times)


def _was_interrupted(job: Mapping[str, Any]) -> bool:
    """Whether a job that was stopped had its spot instance taken away last, and never got another one."""
    steps = [str(one.get("Status")) for one in job.get("SecondaryStatusTransitions") or ()]
    return _INTERRUPTED in steps and not {"Training", "Stopping"} & {*steps[steps.index(_INTERRUPTED) :]}


def _failed(job: Mapping[str, Any], times: Mapping[str, Any]) -> ExitStatus:
    reason = " ".join(str(job.get("FailureReason") or "it gives no reason").split())[:_SHOWN_CHARS]
    kind, found = reason.partition(":")[0], _EXIT_CODE.search(reason)
    if found is None:
        # What the machine does wrong is retried as lost; what the request does wrong is not.
        error = f"SageMaker says: {clause(reason)}"
        is_own = kind in ("AlgorithmError", "ClientError")
        return ExitStatus(exit_code=None, error=error, is_own_doing=is_own, **times)
    code = int(found[1])
    words = [job.get("ExitMessage") or "", reason[: found.start()].removeprefix(kind).strip(" ,:")]
    warnings = [f"SageMaker says: {clause(said)}" for said in words if said]
    if code == _SIGKILL:
        warnings.append("it was killed, perhaps because its instance was out of memory; SageMaker does not say")
    missing = None
    if code in _NO_PROGRAM:
        missing = f"{_program(job)} is not there, or is no program: the image has it neither on its PATH nor there"
    signal = None if missing else signal_of(code)
    return ExitStatus(exit_code=code, signal=signal, error=missing, warnings=tuple(warnings), **times)


def _program(job: Mapping[str, Any]) -> str:
    words = (job.get("AlgorithmSpecification") or {}).get("ContainerEntrypoint") or ()
    return repr(words[ENTER_WORDS]) if len(words) > ENTER_WORDS else "the job's program"


def _refusal(job: Mapping[str, Any]) -> LaunchError | None:
    """Return why a job never came to run, where that is its request's fault."""
    reason = str(job.get("FailureReason") or "")
    if job["TrainingJobStatus"] != "Failed" or job.get("TrainingStartTime") or not reason.startswith("ClientError"):
        return None
    return SpecError(
        f"SageMaker could not start the job: {clause(reason)}. Correct its image, its data or its options."
    )
