"""Every error of prefect-launch, grouped by who must act.

All derive from :class:`LaunchError`. A message names the value that was seen, the rule that it broke and the next
step. The groups decide how an agent ends an item: what the submitter, the queue's owner or the job's own code got wrong
is ``Failed``; what the machine or a service failed to do is ``Crashed``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

#: As much of a wrong name as a message shows: no right one is longer.
_SHOWN_CHARS = 128
#: How alike two names are, by difflib's ratio (0 to 1), when one may be a misspelling of the other.
_ALIKE = 0.6
#: And how much longer one of them may be. Without that `version` would be a misspelling of `python_version`.
_LONGER = 1.5


class LaunchError(Exception):
    """Base of all errors raised by prefect-launch."""


# --- the submitter must act ------------------------------------------------------------------------------------------


class SubmitterError(LaunchError):
    """What was asked for cannot be done; ask for something else."""


class SpecError(SubmitterError):
    """The launch spec breaks a rule: a missing or doubled source, a wrong type, a value outside its range."""


class InvalidNameError(SubmitterError):
    """A name (of a job, queue, alias, …) is not one that can be given."""


class NotFoundError(SubmitterError):
    """A queue, job, alias, version, variable or resource of that name does not exist.

    The message names the nearest right one and lists the others.
    """


class InputError(SubmitterError):
    """An input does not match the job's schema."""


class UnsafeSpecError(SubmitterError):
    """The spec asks for something that the queue does not allow a submitter to set."""


class ArtifactError(SubmitterError):
    """A job artifact is damaged, truncated, or holds something that must not be unpacked."""


class SourceError(SubmitterError):
    """The job's code cannot be had: a remote that is refused, a commit that is gone, a folder that leaks."""


class BuildError(SubmitterError):
    """The job's image cannot be built: a step fails, its requirements do not resolve, or nothing builds where it is."""


# --- the queue's owner must act --------------------------------------------------------------------------------------


class QueueError(LaunchError):
    """The queue's own configuration is wrong, or the queue is in the way (exists already, has another type)."""


# --- the agent's operator must act -----------------------------------------------------------------------------------


class OperatorError(LaunchError):
    """The agent's machine or configuration is at fault."""


class AgentConfigError(OperatorError):
    """The agent's configuration is invalid."""


class InfrastructureError(OperatorError):
    """The machine, the Docker Engine or a registry failed to do what was rightly asked: the item is ``Crashed``."""


class BuildDiskError(InfrastructureError):
    """A disk was full while an image was built: the build has failed, and the item is ``Failed``; its retry rule sees a
    fault of the machine."""


class UnreachableError(InfrastructureError):
    """What runs the jobs (the Docker Engine) cannot be reached: the item goes back into its queue."""


class ImagePullError(InfrastructureError):
    """A registry did not give an image."""


class RegistryError(InfrastructureError):
    """A registry failed, did not answer, or refused what was asked of it."""


class ServerUnavailableError(OperatorError):
    """The Prefect server does not answer."""


class AnswerLostError(ServerUnavailableError):
    """A request may have reached the Prefect server or not, and must not be sent again before that is known."""


# --- the job's author must act ---------------------------------------------------------------------------------------


class ExecutionError(LaunchError):
    """A run ended without success.

    Attributes:
        exit_code: the process's exit code, or ``None`` when it never had one.
        last_lines: the last lines of the run's log, oldest first.
        cause: why, in the word of a retry rule (`failed`, `oom`, `timeout`, …), when that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        last_lines: Sequence[str] = (),
        cause: str | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)
        self.cause = cause

    def __repr__(self) -> str:
        # Prefect writes it into its own log, where the lines of a job's log would stand once more.
        first, _, _ = str(self).partition("\n")
        return f"{type(self).__name__}({first!r})"


class JobCodeError(LaunchError):
    """The job's own code uses `prefect_launch.inputs` in a way that cannot work, or runs where it finds no inputs."""


# --- we must act -----------------------------------------------------------------------------------------------------


class InternalError(LaunchError):
    """A bug in prefect-launch: a move or an answer that its own rules exclude. Please report it."""


class ServerFailedError(InternalError):
    """The Prefect server failed over a request (5xx). It may not the next time."""


class ItemGoneError(InternalError):
    """The item is not on the server any more: somebody deleted it while it was waiting to be moved."""


def clause(error: object) -> str:
    """Return what another program or library says of a fault, to go into a sentence: without a full stop at its end."""
    return str(error).strip().removesuffix(".")


def nearest_name(value: object, known: Iterable[str]) -> str | None:
    """Return the name that was most likely meant: the wrong one misspells it, or has its end cut off or added to.

    Args:
        value: the name seen.
        known: the right names.

    Returns:
        One of the right names; None when none of them is near.
    """
    seen = str(value)
    near = [name for name in known if _may_be_meant(seen, name)]
    return next(iter(difflib.get_close_matches(seen, near, n=1, cutoff=_ALIKE)), None)


def _may_be_meant(seen: str, name: str) -> bool:
    short, long = sorted((seen, name), key=len)
    return len(long) <= _LONGER * len(short) or long.startswith(short)


def unknown_name(
    kind: str, value: object, known: Iterable[str], *, where: str = "", near: str | None = None
) -> NotFoundError:
    """Make the error for a name that does not exist.

    Args:
        kind: what the name is of, in the singular, such as ``"queue"``.
        value: the name seen.
        known: the right names.
        where: where they were looked for, such as ``" in queue 'gpu'"`` (with its leading space).
        near: the right name where the caller knows it; by default the nearest one.

    Returns:
        An error that names the nearest right one and lists up to twenty of them.
    """
    names = sorted({str(name) for name in known})
    near = near or nearest_name(value, names)
    hint = f" Did you mean {near!r}?" if near else ""
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    listing = f" Known: {shown}." if names else f" There is no {kind} yet."
    seen = str(value)
    shown_value = seen if len(seen) <= _SHOWN_CHARS else f"{seen[: _SHOWN_CHARS - 1]}…"
    return NotFoundError(f"Unknown {kind} {shown_value!r}{where}.{hint}{listing}")
