"""What was the matter with a run that did not complete: one category, and the next step to take.

The order of the questions is the diagnosis: what the machine knows for certain comes first, what the last lines of the
log suggest comes after it, and "the job itself" is what is left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from prefect_launch.agent.item.outcome import NO_PROGRAM, Outcome
from prefect_launch.core.filesystem import is_disk_full, says_disk_full
from prefect_launch.core.states import ItemState
from prefect_launch.errors import (
    ImagePullError,
    InfrastructureError,
    LaunchError,
    OperatorError,
    QueueError,
    SubmitterError,
)
from prefect_launch.runners.base import ExitStatus
from prefect_launch.spec.retry import Cause


class Category(str, Enum):
    """What was the matter."""

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
    """What people read of a category."""

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
        "The kernel ended it for want of memory.",
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
    """Say what was the matter.

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
    told = {Cause.TIMEOUT: Category.TIMEOUT, Cause.PREEMPTED: Category.PREEMPTED, Cause.LOST: Category.LOST}
    if outcome.cause in told:
        return told[outcome.cause]
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
