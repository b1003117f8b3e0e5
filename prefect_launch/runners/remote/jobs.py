"""Jobs of a cluster as its runner sees them: status, handle, change, and parts of a log."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import ExitStatus, Labels


class RemoteState(str, Enum):
    """Where a job is, from the system's own view."""

    HELD = "held"
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class RemoteStatus(BaseModel):
    """The status of a job.

    Attributes:
        state: where it is.
        reason: why it, or a part of it, does not run yet, in the system's own words; empty where the system gives none.
        exit: how it ended; given with `ENDED`.
        refusal: why it, or a part of it, will never start, of a job that has not ended or has done so without having
            run. Who waits for its start or its end gets it raised, and the job is stopped and removed: an
            `ImagePullError` and any other `InfrastructureError` is the machine's fault, a `SpecError` the submitter's.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    state: RemoteState
    reason: str = ""
    exit: ExitStatus | None = None
    refusal: LaunchError | None = None


class RemoteJob(BaseModel):
    """A job that the system knows.

    Attributes:
        handle: names it in all further calls; where the system cannot hold jobs, its name.
        name: that it was submitted under.
        labels: that it was submitted with.
        status: of the job now.
        is_complete: whether all is in it that its submission puts there; what is not whole was never released.
    """

    model_config = ConfigDict(frozen=True)

    handle: str
    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    status: RemoteStatus
    is_complete: bool = True


class RunHandle(NamedTuple):
    """The handle of a run on a system of jobs.

    Attributes:
        job: the job's handle, which a job of a later claim may have too.
        claim: that the run was made under; empty for a direct `launch`.
    """

    job: str
    claim: str

    def __str__(self) -> str:
        return f"{self.job}@{self.claim}"

    @classmethod
    def parse(cls, text: str) -> RunHandle:
        """Read a handle from its text."""
        job, _, claim = text.rpartition("@")
        return cls(job, claim)

    @classmethod
    def of(cls, job: RemoteJob) -> RunHandle:
        """Return the handle of the run that a job is."""
        return cls(job.handle, job.labels.get(Labels.CLAIM, ""))


class JobChange(NamedTuple):
    """A change that a system tells of.

    Attributes:
        handle: of the job that changed; None: of any, such as when a connection was made anew and may have missed some.
        job: as it is now; None: look for yourself, such as when the job is gone.
    """

    handle: str | None = None
    job: RemoteJob | None = None


class LogPart(NamedTuple):
    """A part of a job's log.

    Attributes:
        content: as the job wrote it; many lines at a time where there are many: each part costs two writes.
        position: from where to read on after this part; only the runner interprets it.
        is_error: whether the job wrote it to its standard error, where the system separates the two streams.
    """

    content: bytes
    position: str
    is_error: bool = False
