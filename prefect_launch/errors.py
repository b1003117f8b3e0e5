"""Errors of prefect-launch, grouped by who must act.

All derive from :class:`LaunchError`. A message names the value, the rule that it broke and the next step. The groups
decide how an agent ends an item: an error of the submitter, the queue's owner or the job's own code is ``Failed``; a
failure of the machine or a service is ``Crashed``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

#: How much of a wrong name a message shows: no valid name is longer.
_SHOWN_CHARS = 128
#: Least similarity of a misspelling to a name, by difflib's ratio (0 to 1).
_ALIKE = 0.6
#: How much longer one of the two may be. Without this, `version` would be a misspelling of `python_version`.
_LONGER = 1.5
#: So many letters are a beginning that says what was meant.
_BEGINNING = 3
_Error = TypeVar("_Error", bound="LaunchError")


class LaunchError(Exception):
    """Base of all errors raised by prefect-launch."""


class LaunchDockerError(LaunchError):
    """The reference's name for what the Docker Engine fails at: to be reached, to pull an image, to build one."""


# --- the submitter must act ------------------------------------------------------------------------------------------


class SubmitterError(LaunchError):
    """The request cannot be fulfilled; the submitter must change it."""


class SpecError(SubmitterError):
    """The launch spec breaks a rule: no source or several, a wrong type, a value out of range."""


class InvalidNameError(SubmitterError):
    """A name (of a job, queue, alias, …) is invalid."""


class NotFoundError(SubmitterError):
    """A queue, job, alias, version, variable or resource of that name does not exist.

    The message names the nearest existing name and lists the others.
    """


class InputError(SubmitterError):
    """An input does not match the job's schema."""


class UnsafeSpecError(SubmitterError):
    """The spec sets something that the queue does not allow a submitter to set."""


class ArtifactError(SubmitterError):
    """A job artifact is damaged, truncated, or holds something that is unsafe to unpack."""


class SourceError(SubmitterError):
    """The job's code is not available: a refused remote, a missing commit, a link out of the folder."""


class BuildError(SubmitterError, LaunchDockerError):
    """The job's image cannot be built: a step fails, requirements do not resolve, or the agent builds no images."""


# --- the queue's owner must act --------------------------------------------------------------------------------------


class QueueError(LaunchError):
    """The queue's configuration is wrong, or the queue already exists or has another type."""


# --- the agent's operator must act -----------------------------------------------------------------------------------


class OperatorError(LaunchError):
    """The agent's machine or configuration is at fault."""


class AgentConfigError(OperatorError):
    """The agent's configuration is invalid."""


class NoIdentityError(AgentConfigError):
    """The machine is nobody in a cloud: no config, login or service of the machine says who it is there."""


class InfrastructureError(OperatorError):
    """The machine, the Docker Engine or a registry failed on a valid request: the item is ``Crashed``."""


class BuildDiskError(InfrastructureError):
    """A disk was full while an image was built: the item is ``Failed``; a retry rule sees a fault of the machine."""


class UnreachableError(InfrastructureError, LaunchDockerError):
    """The Docker Engine cannot be reached: the item returns to its queue."""


class NoRoomError(UnreachableError):
    """The place that a queue's runs go to takes none now, such as a namespace whose quota is used up.

    The resource itself is reachable: its other queues continue.
    """


class NothingMadeError(NoRoomError):
    """There is no room for a run whose start would make it, so that nothing of it is there."""


class RunLostError(InfrastructureError):
    """What an item was to run in is gone before it ran: a retry rule sees that it is lost."""


class ImagePullError(InfrastructureError, LaunchDockerError):
    """An image could not be pulled from its registry."""


class RegistryError(InfrastructureError):
    """A registry failed, did not answer, or refused a request."""


class ServerUnavailableError(OperatorError):
    """The Prefect server does not answer."""


class AnswerLostError(ServerUnavailableError):
    """The answer to a request was lost: read the Prefect server before you send the request again."""


# --- the job's author must act ---------------------------------------------------------------------------------------


class ExecutionError(LaunchError):
    """A run ended without success.

    Attributes:
        exit_code: the process's exit code, or ``None`` when it never had one.
        last_lines: the last lines of the run's log, oldest first.
        cause: the cause as a retry rule names it (`failed`, `oom`, `timeout`, …), or ``None``.
        cancelled: whether it was cancelled.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        last_lines: Sequence[str] = (),
        cause: str | None = None,
        cancelled: bool = False,
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)
        self.cause = cause
        self.cancelled = cancelled

    def __repr__(self) -> str:
        # Prefect logs the repr, which would repeat the lines of the job's log.
        first, _, _ = str(self).partition("\n")
        return f"{type(self).__name__}({first!r})"


class SchedulerError(ExecutionError):
    """A sweep failed, or was stopped before its end."""


class JobCodeError(LaunchError):
    """The job's own code uses `prefect_launch.inputs` wrongly, or runs where there are no inputs."""


# --- we must act -----------------------------------------------------------------------------------------------------


class InternalError(LaunchError):
    """A bug in prefect-launch: a state transition or an answer that its own rules exclude. Please report it."""


class ServerFailedError(InternalError):
    """The Prefect server failed on a request (5xx). The next try may succeed."""


class ItemGoneError(InternalError):
    """The item is no longer on the server: somebody deleted it."""


def clause(error: object) -> str:
    """Return the text of another program's error without its full stop, to use inside a sentence."""
    return str(error).strip().removesuffix(".")


def retold(error: _Error, text: str) -> _Error:
    """Return the same error with another text: its type, and what else it holds, stay.

    Args:
        error: any error of prefect-launch, whatever its constructor takes.
        text: what it says from now on.
    """
    error.args = (text,)
    return error


def nearest_name(value: object, known: Iterable[str]) -> str | None:
    """Return the name that was most likely meant: one of similar spelling, or of the same beginning.

    Args:
        value: the name seen.
        known: the right names.

    Returns:
        One of the right names; None when none is similar.
    """
    seen = str(value)
    known = list(known)
    near = [name for name in known if _may_be_meant(seen, name)]
    alike = difflib.get_close_matches(seen, near, n=1, cutoff=_ALIKE)
    # `max` for maximize: much shorter than it, and the beginning of no other.
    begun = [name for name in known if len(seen) >= _BEGINNING and name.startswith(seen)]
    return next(iter(alike), None) or (begun[0] if len(begun) == 1 else None)


def _may_be_meant(seen: str, name: str) -> bool:
    short, long = sorted((seen, name), key=len)
    return len(long) <= _LONGER * len(short) or long.startswith(short)


def unknown_name(
    kind: str, value: object, known: Iterable[str], *, where: str = "", near: str | None = None
) -> NotFoundError:
    """Return the error for a name that does not exist.

    Args:
        kind: the kind of thing that is named, in the singular, such as ``"queue"``.
        value: the name seen.
        known: the right names.
        where: where it was searched, such as ``" in queue 'gpu'"`` (with its leading space).
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
