"""Requests to a running sweep, and its scheduler's answer: data on the sweep's flow run, each read by one model.

A scheduler reads them at each look, so one that is killed keeps none of them in memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from prefect_launch.core.names import short_id
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Item, State

_PAUSED: Final = "Paused"
#: Prefect's name of a pause in which the flow run's process leaves; it continues as a run of its deployment.
_SUSPENDED: Final = "Suspended"


class PauseRequest(BaseModel):
    """How a sweep is paused: the data of its state. Without data, as Prefect pauses, nothing is stopped."""

    model_config = ConfigDict(frozen=True)

    now: bool = Field(default=False, description="Its trials are stopped, and run again when the sweep continues.")

    @classmethod
    def of(cls, sweep: Item) -> Self:
        """Read it from a sweep that is paused."""
        try:
            return cls.model_validate(sweep.state.data if sweep.state else None)
        except ValidationError:
            return cls()

    def state(self, sweep: Item) -> State:
        """Return the state of a sweep that is paused so."""
        what = "its trials are stopped, and run again" if self.now else "running trials finish, and the rest runs"
        returns = sweep.deployment_id is not None
        return State(
            type=StateType.PAUSED,
            name=_SUSPENDED if returns else _PAUSED,
            message=f"The sweep is paused: {what} when it is resumed.",
            data=self.model_dump(),
            state_details={"pause_reschedule": returns},
        )


class _Label(BaseModel):
    """Model of a label of the sweep's flow run: JSON."""

    model_config = ConfigDict(frozen=True)

    label: ClassVar[str]

    @classmethod
    def read(cls, sweep: Item) -> Self | None:
        """Read the label; `None` when there is none, or it is something else."""
        try:
            return cls.model_validate_json(str(sweep.labels.get(cls.label)))
        except ValidationError:
            return None

    @property
    def labels(self) -> Mapping[str, Any]:
        """The labels to write."""
        return {self.label: self.model_dump_json()}


class RetryRequest(_Label):
    """Trials of a sweep that are to run again."""

    label = "prefect-launch.sweep-retries"

    tries: dict[int, int] = Field(
        default_factory=dict, description="The try that is wanted, by the trial's number: 2 is the first retry."
    )

    @classmethod
    def of(cls, sweep: Item | None) -> Self:
        """Read it; nothing is requested when there is none."""
        return (cls.read(sweep) if sweep is not None else None) or cls()

    def with_tries(self, tries: Mapping[int, int]) -> Self:
        """Return the request with these added; a higher try wins."""
        return self.model_copy(
            update={"tries": {**self.tries, **{k: max(n, self.tries.get(k, 0)) for k, n in tries.items()}}}
        )


class TrialCount(_Label):
    """How many trials of a sweep were made: a number below it is used up, also when its item was deleted."""

    label = "prefect-launch.sweep-trials"

    made: int = Field(default=0, ge=0)

    @classmethod
    def of(cls, sweep: Item | None) -> Self:
        """Read it; 0 when there is none."""
        return (cls.read(sweep) if sweep is not None else None) or cls()


class SchedulerProcess(_Label):
    """The process that runs a sweep, and the state of the sweep that it has seen last."""

    label = "prefect-launch.sweep-process"

    host: str
    pid: int
    seen: datetime | None = Field(description="When the sweep became Running, the last time that the process saw.")

    @classmethod
    def here(cls, sweep: Item) -> Self:
        """Return this process, which sees the sweep."""
        return cls(host=socket.gethostname(), pid=os.getpid(), seen=sweep.state.timestamp if sweep.state else None)

    @property
    def has_died(self) -> bool:
        """Whether it is known to be gone; of another machine's process nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


def message_of(sweep: Item) -> str:
    """Return the message of a sweep's state; of one that runs no more, as its process has died, what to do about it."""
    process, began = SchedulerProcess.read(sweep), sweep.state.timestamp if sweep.state else None
    # One that another process continues has become Running since.
    if sweep.state_type is StateType.RUNNING and process and process.seen == began and process.has_died:
        return f"Its process is gone. 'prefect-launch sweep resume {short_id(sweep.id)}' continues it."
    return sweep.message


def queued_again() -> State:
    """Return the state of a sweep that goes back into its queue."""
    return State.of(ItemState.QUEUED, "The sweep is resumed, and waits for a process to run it.")
