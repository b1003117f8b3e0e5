"""Ends of Slurm jobs: what the job wrote down itself, and what Slurm says of it, as one exit status.

The job's own exit file is trusted before the controller, which may have lost its state. But the controller knows the
cause of an end that came from outside: the time limit, memory, preemption, a node that failed, somebody who cancelled.
Such a cause wins over any exit code: a job may save its work on TERM, and exit 0.
"""

from __future__ import annotations

import time
from typing import Final

from prefect_launch.errors import RunLostError, SpecError
from prefect_launch.runners.base import NEVER_STARTED, ExitStatus, signal_of
from prefect_launch.runners.remote.jobs import RemoteState, RemoteStatus
from prefect_launch.runners.remote.slurm.folder import JobFolder, WrittenExit
from prefect_launch.runners.remote.slurm.jobs import MACHINE_FAULTS, SlurmJob
from prefect_launch.runners.remote.slurm.script import FOLDER_MISSING, SECOND_START

#: How long after a job's own end Slurm may take to say that it ended, and why.
_CAUSE_SECONDS: Final = 60.0
_TOO_LONG: Final = frozenset({"DEADLINE", "TIMEOUT"})
#: What is said of a job that has ended, while Slurm has yet to say why.
ENDING: Final = "it has ended, and Slurm has not said why yet"
#: Faults of Slurm in starting a job once more. They say nothing of a start that has come to its end.
_OF_A_START: Final = frozenset(MACHINE_FAULTS) - {"NODE_FAIL"}
#: The signal by which Slurm marks that the kernel has ended a part of a job for its memory.
_OUT_OF_MEMORY: Final = 125


def status_of(job: SlurmJob | None, folder: JobFolder) -> RemoteStatus | None:
    """Return the status of a job; None when Slurm knows it no more, and it has left no exit file.

    Args:
        job: as Slurm shows it.
        folder: of its run.
    """
    if folder.exit is not None:
        if _is_cause_awaited(folder.exit, job):
            return RemoteStatus(state=RemoteState.RUNNING, reason=ENDING)
        return RemoteStatus(state=RemoteState.ENDED, exit=_written_end(folder, folder.exit, job))
    if job is None:
        return None
    if job.has_ended:
        end = _end_by_slurm(folder, job)
        is_lost = _was_cancelled_waiting(folder, job) and not folder.is_stop_asked
        return RemoteStatus(
            state=RemoteState.ENDED, exit=end, refusal=RunLostError(end.describe()) if is_lost else None
        )
    if job.is_waiting:
        state = RemoteState.HELD if job.is_held else RemoteState.PENDING
        refusal = SpecError(f"Slurm cannot run it: {job.wait_reason}") if job.never_starts else None
        return RemoteStatus(state=state, reason=job.wait_reason, refusal=refusal)
    return RemoteStatus(state=RemoteState.RUNNING)


def _is_cause_awaited(written: WrittenExit, job: SlurmJob | None) -> bool:
    """Whether Slurm has yet to say why a job ended, or that all of it has."""
    if job is None or job.has_ended or job.is_waiting or written.exit_code is None:
        return False
    return time.time() - written.written_at < _CAUSE_SECONDS


def _written_end(folder: JobFolder, written: WrittenExit, job: SlurmJob | None) -> ExitStatus:
    code = written.exit_code
    end = ExitStatus(
        exit_code=code,
        signal=signal_of(code),
        stopped=written.stopped,
        started_at=written.started_at,
        ended_at=written.ended_at,
    )
    if code is None:
        return end.model_copy(update={"error": NEVER_STARTED})
    if code == 127 and folder.missing_program is not None:
        where = f"on the node {folder.node}"
        return end.model_copy(update={"error": f"its program {folder.missing_program!r} was not found {where}"})
    if written.stopped or job is None or (code == 0 and job.state in _OF_A_START):
        return end
    return _with_cause(end, job)


def _end_by_slurm(folder: JobFolder, job: SlurmJob) -> ExitStatus:
    """Return the end of a job that has left no exit file: its script did not come to its end."""
    code, number = job.raw_exit >> 8, job.raw_exit & 127
    where = f"the node {job.nodes}" if job.nodes else "its node"
    if job.failed_to_launch or (job.reason == "JobLaunchFailure" and folder.node is None):
        return ExitStatus(exit_code=None, error=f"Slurm could not launch it on {where}: look at slurmd's log there")
    if folder.node is None and code == FOLDER_MISSING:
        return ExitStatus(
            exit_code=None,
            error=f"{where} does not see the folder of its run. The agent's home must be on a file system that all"
            " nodes share: set PREFECT_LAUNCH_HOME to a folder there",
        )
    if code == SECOND_START:
        return ExitStatus(
            exit_code=None,
            error=f"Slurm started it a second time, on {where}; it was not run again, and how the first start ended is"
            " not known",
        )
    if _was_cancelled_waiting(folder, job):
        by = f" by {job.cancelled_by}" if job.cancelled_by else ""
        return ExitStatus(exit_code=None, error=f"cancelled in Slurm{by} before it ran")
    if number == _OUT_OF_MEMORY:
        number = 9
    if folder.node is not None and not number and job.state not in ("COMPLETED", "FAILED"):
        number = 9  # Its script was killed. Else it came to its end, and could not write it down: a full disk, say.
    shell_code = 128 + number if number else code
    end = ExitStatus(exit_code=shell_code, signal=signal_of(shell_code), stopped=folder.is_stop_asked)
    return end if folder.is_stop_asked else _with_cause(end, job)


def _was_cancelled_waiting(folder: JobFolder, job: SlurmJob) -> bool:
    return folder.node is None and job.state == "CANCELLED"


def _with_cause(end: ExitStatus, job: SlurmJob) -> ExitStatus:
    """Add why a job ended that did not end by itself."""
    if job.state in MACHINE_FAULTS:
        where = f" ({job.nodes})" if job.nodes else ""
        return end.model_copy(update={"error": f"{job.state}: {MACHINE_FAULTS[job.state]}{where}"})
    if job.state == "OUT_OF_MEMORY":
        return end.model_copy(update={"oom_killed": True})
    if job.state == "PREEMPTED":
        return end.model_copy(update={"preempted": True})
    if job.state == "CANCELLED":
        who = job.cancelled_by or "somebody"
        return end.model_copy(update={"error": f"CANCELLED: {who} cancelled it in Slurm, and not this agent"})
    if job.state in _TOO_LONG:
        return end.model_copy(update={"timed_out": True})
    return end
