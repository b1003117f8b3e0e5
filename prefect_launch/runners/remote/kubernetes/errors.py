"""Answers of the Kubernetes API that are no success, as errors that say who must act and how.

A cluster that is away, overloaded, fails inside or does not know the agent's token any more is `UnreachableError`: no
run ends, and the item waits. A missing right is an error for the agent's operator; a refused manifest is one for its
author.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.errors import (
    AgentConfigError,
    InfrastructureError,
    LaunchError,
    NoRoomError,
    QueueError,
    SpecError,
    UnreachableError,
    clause,
)

#: How much of an answer that is no status a message shows: a proxy sends whole pages.
_SHOWN_CHARS: Final = 300
#: How the API says that a right is missing; whatever else it forbids comes from a rule of the namespace.
_NO_RIGHT: Final = re.compile(r'cannot (\w+) resource "([^"]+)"')
#: How it refuses a patch, or a deletion, of an object that has another uid than the request names.
_ANOTHER_UID: Final = re.compile(r"metadata\.uid: .*field is immutable|UID in (the )?precondition")
_QUOTA: Final = "exceeded quota"
#: The cause that it gives where a namespace takes nothing new, since it is being deleted.
_LEAVING: Final = "NamespaceTerminating"


class TakenError(InfrastructureError):
    """An object of that name exists already."""


class ConflictError(InfrastructureError):
    """The object is another one than that which was meant: it has another uid."""


class ExpiredError(InfrastructureError):
    """The version to continue from is too old: list again."""


class NotThereError(InfrastructureError):
    """There is no such object, or no such place for it."""


class NotReadyError(InfrastructureError):
    """The API refuses a request that is right, as that for the log of a container which has not started."""


class LoginError(UnreachableError):
    """The API does not know the agent's token or certificate (any more)."""


class OverloadedError(UnreachableError):
    """The API asks to wait.

    Args:
        message: what the API says.
        retry_after: for how long, in seconds; None: it does not say.
    """

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Answer(NamedTuple):
    """An answer of the API that is no success.

    Attributes:
        code: of HTTP.
        message: in the API's words.
        reason: one word, such as `AlreadyExists`.
        causes: each wrong field with what is wrong with it.
        cause_reasons: one word for each cause, such as `NamespaceTerminating`.
        retry_after: how long the API asks to wait, in seconds.
    """

    code: int
    message: str
    reason: str = ""
    causes: tuple[str, ...] = ()
    cause_reasons: tuple[str, ...] = ()
    retry_after: float | None = None

    @classmethod
    def read(cls, code: int, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Read an answer; one that is no JSON, as proxies give, is shown by its beginning."""
        try:
            status = json.loads(body)
        except ValueError:
            status = None
        if not isinstance(status, dict):
            text = " ".join(body[: 4 * _SHOWN_CHARS].decode("utf-8", "replace").split())
            status = {"message": text[:_SHOWN_CHARS]}
        details = status.get("details") or {}
        causes = details.get("causes") or ()
        return cls(
            code=int(status.get("code") or code),
            message=str(status.get("message") or f"HTTP status {code}"),
            reason=str(status.get("reason") or ""),
            causes=tuple(_cause(cause) for cause in causes),
            cause_reasons=tuple(str(cause.get("reason") or "") for cause in causes),
            retry_after=_seconds(headers.get("Retry-After"), details.get("retryAfterSeconds")),
        )

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.code == 429 or self.code >= 500 or self.is_race

    @property
    def is_race(self) -> bool:
        """Whether somebody else has changed the same object, or the quota that counts it, at the same moment."""
        return self.code == 409 and self.reason != "AlreadyExists" and not self.is_of_another

    @property
    def is_of_another(self) -> bool:
        """Whether another object has the name now than the one with the uid that the request names."""
        return any(_ANOTHER_UID.search(one) for one in (*self.causes, self.message))


def error_of(answer: Answer, what: str, host: str) -> LaunchError:
    """Return the error for an answer.

    Args:
        answer: of the API.
        what: was asked for, such as "create the Job default/launch-1".
        host: that was asked.
    """
    said = clause(answer.message)
    if answer.code in (409, 422) and answer.is_of_another:
        return ConflictError(f"The cluster at {host} did not {what}, since another object has that name now: {said}.")
    if answer.is_race:
        return NoRoomError(
            f"The cluster at {host} did not {what}, since others change the same object again and again: {said}. It is"
            " asked again later."
        )
    if answer.code in (400, 422):
        return _refused(answer, what)
    if answer.code == 401:
        return LoginError(
            f"The cluster at {host} does not know who this agent is: {said}. Its token or certificate has expired or is"
            " wrong. Renew it in the kubeconfig: it is read again at the next try."
        )
    if answer.code == 403:
        return _forbidden(answer, what, host)
    if answer.code == 404:
        return NotThereError(f"The cluster at {host} cannot {what}: {said}.")
    if answer.code == 409:
        return TakenError(f"The cluster at {host} did not {what}: {said}.")
    if answer.code == 410:
        return ExpiredError(f"The cluster at {host} has forgotten that version: {said}.")
    if answer.code == 429:
        wait = f" for {answer.retry_after:g} s" if answer.retry_after else ""
        return OverloadedError(
            f"The cluster at {host} is overloaded and asks to wait{wait}: {said}. Nothing is lost.", answer.retry_after
        )
    if answer.code in (502, 503, 504):
        return UnreachableError(f"The cluster at {host} did not {what}: {said}. It is asked again.")
    failed = f"The cluster at {host} failed to {what}: {said} (HTTP {answer.code})."
    if answer.code >= 500:  # Its storage is busy, or a webhook of its own is away.
        return NoRoomError(f"{failed} It is asked again later. Look at what it names, or at its API server's log.")
    return InfrastructureError(f"{failed} Look at its API server's log.")


def _refused(answer: Answer, what: str) -> LaunchError:
    if answer.reason == "BadRequest" and "waiting to start" in answer.message:
        return NotReadyError(clause(answer.message))
    # The message of a status with causes repeats them, in the words of a program.
    said = "; ".join(answer.causes) or clause(answer.message)
    return SpecError(f"The cluster did not {what}: {said}. Correct resource_args.kubernetes.")


def _forbidden(answer: Answer, what: str, host: str) -> LaunchError:
    said = clause(answer.message)
    if _LEAVING in answer.cause_reasons:
        return QueueError(
            f"The cluster at {host} did not {what}, since the namespace is being deleted: {said}. Name another"
            " namespace in the queue's config, or create this one again once it is gone."
        )
    if _QUOTA in said:
        return NoRoomError(f"The cluster at {host} did not {what}, since the namespace is full: {said}.")
    if missing := _NO_RIGHT.search(said):
        verb, resource = missing.groups()
        return AgentConfigError(
            f"This agent may not {what}: {said}. Give its account a Role with the verb {verb!r} on {resource!r}."
        )
    return SpecError(f"A rule of the cluster does not let this agent {what}: {said}.")


def _cause(cause: Mapping[str, Any]) -> str:
    field, message = str(cause.get("field") or ""), clause(cause.get("message") or cause.get("reason") or "")
    return f"{field}: {message}" if field and field not in message else message


def _seconds(*found: object) -> float | None:
    for one in found:
        try:
            return float(str(one))
        except ValueError:
            continue
    return None
