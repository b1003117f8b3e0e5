"""How a run's end becomes the item's state, its message, and the artifacts that show what it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefect_launch.core.filesystem import FREE_DISK_ADVICE as DISK_FULL_STEP
from prefect_launch.core.filesystem import is_disk_full
from prefect_launch.core.states import ItemState
from prefect_launch.errors import BuildDiskError, InternalError, LaunchError, OperatorError
from prefect_launch.runners.base import ExitStatus, Phase
from prefect_launch.spec.retry import Cause

#: What a shell gives as exit code of a program that is not there, or is none.
NO_PROGRAM: Final = (126, 127)


class Outcome(BaseModel):
    """The state that an item ends in, and why."""

    model_config = ConfigDict(frozen=True)

    state: ItemState
    message: str
    data: dict[str, Any] | None = None
    cause: Cause | None = Field(default=None, description="Why it ended, for its retry; None: no retry can mend it.")

    @model_validator(mode="before")
    @classmethod
    def _read_cause(cls, values: Any) -> Any:
        """Take the cause from the data of the state, where whoever stopped a run has put it."""
        if isinstance(values, Mapping) and values.get("cause") is None and (values.get("data") or {}).get("cause"):
            return {**values, "cause": values["data"]["cause"]}
        return values

    def cancelled(self) -> Outcome:
        """Return the same end as that of an item that was asked to stop."""
        return self.model_copy(update={"state": ItemState.CANCELLED, "cause": None})

    def with_notes(self, notes: Sequence[str]) -> Outcome:
        """Return the same end with what went wrong beside the run itself."""
        return self.model_copy(update={"message": f"{self.message} Note: {' '.join(notes)}"}) if notes else self

    def not_again(self, why: str) -> Outcome:
        """Return the same end as one that no retry follows, with the reason."""
        return self.model_copy(update={"message": f"{self.message} It is not tried again: {why}", "cause": None})


def outcome_of_exit(end: ExitStatus) -> Outcome:
    """Say how a run that was started has ended.

    Exit code 0 is success. A run that was stopped is cancelled. Out of memory, a lost supervisor or a container that
    someone removed is the machine's fault.
    """
    data = {"exit_code": end.exit_code, "signal": end.signal, "oom_killed": end.oom_killed}
    lasted = "" if end.duration_seconds is None else f" after {end.duration_seconds:.1f} s"
    if end.stopped:
        return Outcome(state=ItemState.CANCELLED, message=f"Stopped{lasted}: {end.describe()}.", data=data)
    if end.succeeded:
        return Outcome(state=ItemState.COMPLETED, message=f"Finished{lasted} with exit code 0.", data=data)
    cause = cause_of(end)
    if cause is not Cause.FAILED or end.error:
        state = ItemState.FAILED if cause is Cause.FAILED else ItemState.CRASHED
        message = f"[{Phase.RUN.value}] {_sentence(end.describe())}"
        return Outcome(state=state, message=message, data=data, cause=cause)
    message = f"[{Phase.RUN.value}] The job ended{lasted} {end.manner()}."
    return Outcome(state=ItemState.FAILED, message=message, data=data, cause=cause)


def cause_of(end: ExitStatus) -> Cause:
    """Say why a run ended without success. A program that cannot be run is its author's doing, not the machine's."""
    if end.preempted:
        return Cause.PREEMPTED
    if end.oom_killed:
        return Cause.OOM
    return Cause.LOST if end.error and end.exit_code not in NO_PROGRAM else Cause.FAILED


def outcome_of_error(error: BaseException, phase: Phase) -> Outcome:
    """Say how an item ends that could not be started: the machine's fault is a crash, what was asked for a failure."""
    if isinstance(error, BuildDiskError):
        return Outcome(state=ItemState.FAILED, message=f"[{phase.value}] {error}", cause=Cause.CRASHED)
    full = is_disk_full(error)
    fault = full or isinstance(error, (OperatorError, InternalError)) or not isinstance(error, LaunchError)
    text = str(error) if isinstance(error, LaunchError) else f"{type(error).__name__}: {error}"
    if full:
        text = f"No space left on device: {_sentence(text)} {DISK_FULL_STEP}"
    return Outcome(
        state=ItemState.CRASHED if fault else ItemState.FAILED,
        message=f"[{phase.value}] {_sentence(text)}",
        cause=Cause.CRASHED if fault else None,
    )


def _sentence(text: str) -> str:
    stripped = text.strip()
    return (stripped[:1].upper() + stripped[1:]) if stripped else "No reason was given."
