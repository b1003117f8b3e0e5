"""Statuses of Slurm jobs, from what squeue shows, the files of those that changed, and accounting.

A poll of many jobs reads files in one thread, and only of jobs that Slurm shows as changed. It reads those of unchanged
jobs now and then, since a node may be cut off from the controller. One call asks accounting for the jobs that squeue
does not show any more, and for those that somebody cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import anyio

from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState, RemoteStatus
from prefect_launch.runners.remote.slurm import folder
from prefect_launch.runners.remote.slurm.accounting import Accounting
from prefect_launch.runners.remote.slurm.ends import ENDING, status_of
from prefect_launch.runners.remote.slurm.folder import JobFolder
from prefect_launch.runners.remote.slurm.jobs import SlurmJob
from prefect_launch.runners.remote.slurm.records import JobRecord, JobRecords

#: How long the files of a job that Slurm shows unchanged are not looked at.
_LOOK_SECONDS: Final = 15.0
FORGOTTEN: Final = (
    "Slurm knows it no more (it forgets a job MinJobAge after its end), and it has left no exit file: how it ended is"
    " not known"
)


class _Look(NamedTuple):
    """What one look at the files of a job has shown, and when.

    Attributes:
        job: as Slurm showed it then.
        record: that the agent keeps of it; None when it keeps none.
        folder: of its run.
        at: by the monotonic clock.
    """

    job: SlurmJob | None
    record: JobRecord | None
    folder: JobFolder
    at: float

    def still_holds(self, job: SlurmJob | None) -> bool:
        """Whether nothing in the files can have changed that counts."""
        if job is None or job != self.job or self.record is None or time.monotonic() - self.at > _LOOK_SECONDS:
            return False
        return self.folder.node is None if job.is_waiting else job.is_running


class JobStatuses:
    """The statuses of the jobs of one agent.

    Args:
        records: of its jobs.
    """

    def __init__(self, records: JobRecords) -> None:
        self._records = records
        self._accounting = Accounting()
        self._looks: dict[str, _Look] = {}

    def forget(self, number: str) -> None:
        """Forget what is known of a job, since its files were changed."""
        self._looks.pop(number, None)
        self._accounting.forget(number)

    async def of(self, numbers: Collection[str], shown: Mapping[str, SlurmJob]) -> dict[str, RemoteJob]:
        """Return jobs as their files, Slurm and accounting make them; those that are gone, or done with, are left out.

        Args:
            numbers: of the jobs.
            shown: what squeue shows of them.
        """
        looks = await self._look(numbers, shown)
        asked = {number for number, look in looks.items() if _is_for_accounting(look)}
        ended = await self._accounting.ended_jobs(asked)
        found = {}
        for number, look in looks.items():
            job = look.job
            told = ended.get(number)
            if told is not None and look.record is not None and told.name == look.record.name:
                job = told
            remote = self._remote(number, look, job, is_asked=number in asked)
            if remote is not None:
                found[number] = remote
        return found

    async def _look(self, numbers: Collection[str], shown: Mapping[str, SlurmJob]) -> dict[str, _Look]:
        # Those of jobs that nobody follows any more grow old, and go.
        oldest = time.monotonic() - _LOOK_SECONDS
        self._looks = {number: look for number, look in self._looks.items() if look.at >= oldest}
        looks = {number: look for number in numbers if (look := self._looks.get(number)) is not None}
        stale = [
            number for number in numbers if number not in looks or not looks[number].still_holds(shown.get(number))
        ]
        if stale:
            new = await anyio.to_thread.run_sync(self._read, stale, {number: shown.get(number) for number in stale})
            self._looks.update({number: look for number, look in new.items() if look.record is not None})
            looks.update(new)
        return looks

    def _read(self, numbers: list[str], shown: Mapping[str, SlurmJob | None]) -> dict[str, _Look]:
        now, looks, records = time.monotonic(), {}, self._records.of(numbers)
        for number in numbers:
            job, record = shown[number], records.get(number)
            if job is not None and record is not None and not record.is_of(job):
                job = None  # The controller has lost its state, and gives numbers anew.
            run_dir = record.run_dir if record is not None else job.run_dir if job is not None else None
            looks[number] = _Look(job, record, JobFolder() if run_dir is None else folder.look(run_dir), now)
        return looks

    def _remote(self, number: str, look: _Look, job: SlurmJob | None, *, is_asked: bool) -> RemoteJob | None:
        status = status_of(job, look.folder)
        if look.record is None:
            if job is None or job.run_dir is None or status is None or status.state is RemoteState.ENDED:
                return None
            return RemoteJob(handle=number, name=job.name, labels=job.labels, status=status)
        if is_asked and self._is_early(number, look, job):
            status = RemoteStatus(state=RemoteState.RUNNING, reason=ENDING)
        if status is None:
            return None
        return remote_job(look.record, status)

    def _is_early(self, number: str, look: _Look, job: SlurmJob | None) -> bool:
        """Whether to ask accounting again before an end is reported."""
        if job is None:
            return look.folder.exit is None and (self._accounting.is_silent or self._accounting.may_tell(number))
        return job.state == "CANCELLED" and not job.cancelled_by and self._accounting.may_tell(number)


def _is_for_accounting(look: _Look) -> bool:
    if look.record is None:
        return False
    return look.job is None or (look.job.state == "CANCELLED" and not look.folder.is_stop_asked)


def remote_job(record: JobRecord, status: RemoteStatus | None) -> RemoteJob:
    """Return a recorded job with its status; without one, as a job whose end nobody knows."""
    if status is None:
        status = RemoteStatus(state=RemoteState.ENDED, exit=ExitStatus(exit_code=None, error=FORGOTTEN))
    return RemoteJob(handle=record.id, name=record.name, labels=record.labels, status=status)
