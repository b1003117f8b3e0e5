"""Outcome of an attempt: the item's final state, its message, and the failure category with the next step to take.

`diagnose` looks for causes in a fixed order: first what the machine knows for certain, then what the last lines of the
log suggest. Otherwise the cause is "the job itself".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefect_launch.core.filesystem import FREE_DISK_ADVICE as DISK_FULL_STEP
from prefect_launch.core.filesystem import is_disk_full, says_disk_full
from prefect_launch.core.states import USAGE, ItemState
from prefect_launch.core.units import format_duration
from prefect_launch.errors import (
    BuildDiskError,
    ImagePullError,
    InfrastructureError,
    InternalError,
    LaunchError,
    OperatorError,
    QueueError,
    RunLostError,
    SubmitterError,
)
from prefect_launch.runners.base import ExitStatus, Phase
from prefect_launch.spec.scheduling import Cause

#: A shell's exit codes for a program that does not exist, or cannot be executed.
NO_PROGRAM: Final = (126, 127)


class Outcome(BaseModel):
    """The state that an item ends in, and why."""

    model_config = ConfigDict(frozen=True)

    state: ItemState
    message: str
    data: dict[str, Any] | None = None
    cause: Cause | None = Field(default=None, description="Why it ended, for its retry; None: no retry helps.")
    is_explained: bool = Field(default=False, description="Whether the message says all, so that no report follows.")

    @model_validator(mode="before")
    @classmethod
    def _read_cause(cls, values: Any) -> Any:
        """Take the cause from the data of the state, where the one that stopped the run has put it."""
        if isinstance(values, Mapping) and values.get("cause") is None and (values.get("data") or {}).get("cause"):
            return {**values, "cause": values["data"]["cause"]}
        return values

    def cancelled(self) -> Outcome:
        """Return the same end as that of an item that was asked to stop."""
        return self.model_copy(update={"state": ItemState.CANCELLED, "cause": None})

    def with_notes(self, notes: Sequence[str]) -> Outcome:
        """Return the same end with what went wrong around the run."""
        said = self.message if self.message.endswith(".") else f"{self.message}."
        return self.model_copy(update={"message": f"{said} Note: {' '.join(notes)}"}) if notes else self

    def with_usage(self, totals: Mapping[str, float]) -> Outcome:
        """Return the same end with what the run has used, by name."""
        return self.model_copy(update={"data": {**(self.data or {}), USAGE: dict(totals)}}) if totals else self

    def not_again(self, why: str) -> Outcome:
        """Return the same end as one that no retry follows, with the reason."""
        return self.model_copy(update={"message": f"{self.message} It is not tried again: {why}", "cause": None})


def outcome_of_exit(end: ExitStatus) -> Outcome:
    """Say how a run that was started has ended.

    Exit code 0 is success. A run that was stopped is cancelled. Out of memory, a lost supervisor, a machine that was
    taken away, an eviction or a container that someone removed is the machine's fault.
    """
    data = {"exit_code": end.exit_code, "signal": end.signal, "oom_killed": end.oom_killed}
    lasted = "" if end.duration_seconds is None else f" after {end.duration_seconds:.1f} s"
    if end.stopped:
        return Outcome(state=ItemState.CANCELLED, message=f"Stopped{lasted}: {end.describe()}.", data=data)
    if end.succeeded:
        return Outcome(state=ItemState.COMPLETED, message=f"Finished{lasted} with exit code 0.", data=data)
    cause = cause_of(end)
    if cause is not Cause.FAILED or end.error:
        state = ItemState.FAILED if cause in (Cause.FAILED, Cause.TIMEOUT) else ItemState.CRASHED
        message = f"[{Phase.RUN.value}] {_sentence(end.describe())}"
        return Outcome(state=state, message=message, data=data, cause=cause)
    message = f"[{Phase.RUN.value}] The job ended{lasted} {end.manner()}."
    return Outcome(state=ItemState.FAILED, message=message, data=data, cause=cause)


def at_its_limit(end: ExitStatus, seconds: float) -> str:
    """Say how a run ended that was stopped at its time limit."""
    return f"The job timed out after {format_duration(seconds)}, its time limit; {end.describe()}."


def cause_of(end: ExitStatus) -> Cause:
    """Say why a run ended without success. A program that cannot be run is its author's doing, not the machine's."""
    if end.preempted:
        return Cause.PREEMPTED
    if end.oom_killed:
        return Cause.OOM
    if end.timed_out:
        return Cause.TIMEOUT
    is_its_own = end.is_own_doing or end.exit_code in NO_PROGRAM
    return Cause.LOST if end.error and not is_its_own else Cause.FAILED


def outcome_of_error(error: BaseException, phase: Phase) -> Outcome:
    """Say how an item ends that could not be started: the machine's fault is a crash, what was asked for a failure."""
    if isinstance(error, BuildDiskError):
        return Outcome(state=ItemState.FAILED, message=f"[{phase.value}] {error}", cause=Cause.CRASHED)
    full = is_disk_full(error)
    fault = full or isinstance(error, (OperatorError, InternalError)) or not isinstance(error, LaunchError)
    text = str(error) if isinstance(error, LaunchError) else f"{type(error).__name__}: {error}"
    if full:
        text = f"No space left on device: {_sentence(text)} {DISK_FULL_STEP}"
    cause = Cause.LOST if isinstance(error, RunLostError) else Cause.CRASHED
    return Outcome(
        state=ItemState.CRASHED if fault else ItemState.FAILED,
        message=f"[{phase.value}] {_sentence(text)}",
        cause=cause if fault else None,
    )


def _sentence(text: str) -> str:
    stripped = text.strip()
    return (stripped[:1].upper() + stripped[1:]) if stripped else "No reason was given."


class Category(str, Enum):
    """Failure category of an attempt."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    LOST = "lost"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    CRASHED_CODE = "crash of the program"
    NO_PROGRAM = "command not found"
    MISSING_MODULE = "missing module"
    GPU_MEMORY = "out of GPU memory"
    DISK_FULL = "disk full"
    JOB = "error in the job"
    IMAGE = "image not pulled"
    SPEC = "refused"
    QUEUE = "queue"
    MACHINE = "machine"
    INTERNAL = "internal"


class Advice(NamedTuple):
    """What people read about a category."""

    summary: str
    next_step: str


ADVICE: Final[dict[Category, Advice]] = {
    Category.CANCELLED: Advice("It was asked to stop.", "Nothing, if that was meant. Else put it back into its queue."),
    Category.TIMEOUT: Advice("It took longer than it was allowed to.", "Raise its time limit, or make it do less."),
    Category.PREEMPTED: Advice(
        "Its machine was taken away from it.", "Let it come back by itself; save checkpoints to $LAUNCH_OUTPUT_DIR."
    ),
    Category.LOST: Advice(
        "Its agent, its machine or what it ran in is gone.",
        "Look at that machine. The job itself need not be at fault.",
    ),
    Category.OUT_OF_MEMORY: Advice(
        "The kernel ended it: out of memory.",
        "Raise its memory (resource_args, or the queue's options), or let it use less: smaller batches, fewer workers.",
    ),
    Category.KILLED: Advice(
        "It was killed, and not by its agent.",
        "Look for the kernel's out-of-memory killer in the machine's log (dmesg), and for people or tools that kill.",
    ),
    Category.CRASHED_CODE: Advice(
        "A signal ended its program.",
        "Look for a crash in native code: run it with PYTHONFAULTHANDLER=1, and check that its libraries fit together.",
    ),
    Category.NO_PROGRAM: Advice(
        "Its command cannot be run.", "Correct the entry point, or put the program into the image or the requirements."
    ),
    Category.MISSING_MODULE: Advice(
        "A Python module is missing.",
        "Add it to the job's requirements.txt, or to the image; create the job again.",
    ),
    Category.GPU_MEMORY: Advice(
        "The GPU has too little free memory for it.", "Use a smaller batch or model, or ask for a larger or freer GPU."
    ),
    Category.DISK_FULL: Advice(
        "A disk is full.",
        "Free space on the agent's machine (prefect-launch agent clean), or let the job write less, or to a volume.",
    ),
    Category.JOB: Advice("The job itself ended with an error.", "Read its last lines below, and correct the job."),
    Category.IMAGE: Advice(
        "Its image cannot be had.", "Check the image's name, and that the agent's machine may read that registry."
    ),
    Category.SPEC: Advice("What was asked for cannot be done.", "Correct the request as the detail says."),
    Category.QUEUE: Advice("The queue's own configuration is wrong.", "Its owner corrects it; then put the item back."),
    Category.MACHINE: Advice(
        "The agent's machine failed.", "The agent's operator looks at the machine; then put the item back."
    ),
    Category.INTERNAL: Advice("prefect-launch itself failed.", "Look at the agent's log, and report it."),
}

_SIGNS: Final = (
    (re.compile(r"\b(ModuleNotFoundError|ImportError): "), Category.MISSING_MODULE),
    (re.compile(r"CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"), Category.GPU_MEMORY),
    (re.compile(r"No space left on device|Errno 28\]"), Category.DISK_FULL),
    (re.compile(r"^(MemoryError\b|numpy\S*MemoryError)|Cannot allocate memory"), Category.OUT_OF_MEMORY),
)
#: Only what stands near the end brought the job down.
_LINES_READ: Final = 15
_OF_ERRORS: Final = (
    (ImagePullError, Category.IMAGE),
    (SubmitterError, Category.SPEC),
    (QueueError, Category.QUEUE),
    (InfrastructureError, Category.MACHINE),
    (OperatorError, Category.MACHINE),
    (OSError, Category.MACHINE),
    (LaunchError, Category.INTERNAL),
)


def diagnose(
    outcome: Outcome, end: ExitStatus | None, error: BaseException | None, last_lines: Sequence[str]
) -> Category:
    """Return the failure category of an attempt.

    Args:
        outcome: how the attempt ended.
        end: how its process ended, when there was one.
        error: why it did not come to run, when it did not.
        last_lines: of its log, oldest first.
    """
    if outcome.state is ItemState.CANCELLED:
        return Category.CANCELLED
    if end is not None and says_disk_full(end.error):
        return Category.DISK_FULL
    known = {Cause.TIMEOUT: Category.TIMEOUT, Cause.PREEMPTED: Category.PREEMPTED, Cause.LOST: Category.LOST}
    if outcome.cause in known:
        return known[outcome.cause]
    if end is not None:
        return _of_exit(end, last_lines)
    if is_disk_full(error):
        return Category.DISK_FULL
    return next((category for kind, category in _OF_ERRORS if isinstance(error, kind)), Category.INTERNAL)


def _of_exit(end: ExitStatus, last_lines: Sequence[str]) -> Category:
    if end.oom_killed:
        return Category.OUT_OF_MEMORY
    if end.exit_code in NO_PROGRAM:
        return Category.NO_PROGRAM
    if end.signal == "SIGKILL":
        return Category.KILLED
    for line in reversed(last_lines[-_LINES_READ:]):
        for sign, category in _SIGNS:
            if sign.search(line):
                return category
    return Category.CRASHED_CODE if end.signal else Category.JOB
