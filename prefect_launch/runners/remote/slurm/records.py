"""Records of an agent's Slurm jobs: one small file each, so that a job is known after Slurm has forgotten it.

Slurm forgets a job `MinJobAge` (300 s by default) after its end. A record is written once the job is submitted, and
removed when the agent has all that there is of it: an ended job without a record is done with.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


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


class JobRecords:
    """The records in one folder, which several agents may share. It blocks for a moment: call it in a thread.

    Args:
        folder: made with the first record.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, record: JobRecord) -> None:
        """Keep a record, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{record.id}.{os.getpid()}.part"
        part.write_text(record.model_dump_json(), encoding="utf-8")
        part.replace(self._path(record.id))

    def get(self, number: str) -> JobRecord | None:
        """Return the record of a job; None when there is none that can be read."""
        try:
            return JobRecord.model_validate_json(self._path(number).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    def all(self) -> list[JobRecord]:
        """Return all records, in no order."""
        found = (self.get(path.stem) for path in self._folder.glob("*.json"))
        return [record for record in found if record is not None]

    def remove(self, number: str) -> None:
        """Remove the record of a job, if there is one."""
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: str) -> Path:
        return self._folder / f"{number}.json"
