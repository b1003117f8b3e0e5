"""Records of an agent's Slurm jobs: one small file each, so that a job is known after Slurm has forgotten it.

Slurm forgets a job `MinJobAge` (300 s by default) after its end. A record is written once the job is submitted, and
removed when the agent has all that there is of it: an ended job without a record is done with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from prefect_launch.runners.remote.job_notes import JobNotes
from prefect_launch.runners.remote.slurm.jobs import SlurmJob


class JobRecord(BaseModel):
    """A job that an agent of this home has submitted.

    Attributes:
        id: its number in Slurm.
        name: that it was submitted under.
        labels: that it was submitted with.
        run_dir: the folder of its run.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    labels: dict[str, str]
    run_dir: Path

    def is_of(self, job: SlurmJob) -> bool:
        """Whether a job that Slurm shows under this number is this one: a controller may give a number twice.

        A site may write something else into the comment of jobs; then the name alone says it.
        """
        return job.name == self.name and (job.run_dir is None or job.labels == self.labels)


class JobRecords:
    """The records in one folder, which several agents may share. It blocks for a moment: call it in a thread.

    A file's name holds the number and the name of its job, so none is read to find the one of a name.

    Args:
        folder: made with the first record.
    """

    def __init__(self, folder: Path) -> None:
        self._notes = JobNotes(folder, JobRecord)

    def add(self, record: JobRecord) -> None:
        """Keep a record; one of an older job that had its number, under another name, is hidden and not lost."""
        self._notes.write(_key(record), record)

    def get(self, number: str) -> JobRecord | None:
        """Return the record of a job, the newest of its number; None when there is none that can be read."""
        return self.of([number]).get(number)

    def of(self, numbers: Collection[str]) -> dict[str, JobRecord]:
        """Return the records of these jobs, as far as there are any, the newest of each number."""
        wanted, found = set(numbers), dict[str, JobRecord]()
        for record in self._read(key for key in self._notes.names() if key.partition(".")[0] in wanted):
            other = found.get(record.id)
            if other is None or self._notes.written_at(_key(other)) < self._notes.written_at(_key(record)):
                found[record.id] = record
        return found

    def named(self, name: str) -> JobRecord | None:
        """Return the record of the job of a name, the oldest of several; None when there is none."""
        found = self._read(key for key in self._notes.names() if key.partition(".")[2] == name)
        return min(found, key=lambda record: int(record.id), default=None)

    def all(self) -> list[JobRecord]:
        """Return all records, also several of one number, in no order."""
        return self._read(self._notes.names())

    def remove(self, record: JobRecord) -> None:
        """Remove a record, if it is there; one of another name that has its number stays."""
        self._notes.remove(_key(record))

    def _read(self, keys: Iterable[str]) -> list[JobRecord]:
        return [record for key in keys if (record := self._notes.read(key)) is not None]


def _key(record: JobRecord) -> str:
    return f"{record.id}.{record.name}"
