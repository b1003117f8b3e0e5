"""Log tail: new lines of a run's log, read from the server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import typer

from prefect_launch.core.terminal import line

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun

#: An agent sends new lines every half second, so a shorter pause shows nothing sooner.
_LOOK_SECONDS: Final = 0.5
#: Logger name of the job's own lines; a flow's log also has Prefect's records.
_JOB_RECORDS: Final = "job"


def write_log(text: str, *, err: bool = False) -> None:
    """Print a log record: to a terminal with colours only, without other control sequences; else unchanged."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(line(text) if stream.isatty() else text, err=err, color=True)


class LogTail:
    """Reader of the new records in an item's log.

    Args:
        run: the item.
        write: called with each record's text.
        job_only: skip records that are not the job's own.
    """

    def __init__(self, run: QueuedRun, write: Callable[[str], None], *, job_only: bool = False) -> None:
        self._run = run
        self._write = write
        self._job_only = job_only
        self._seen = 0

    def write_new(self) -> None:
        """Write the records since the last call."""
        records = self._run.logs(offset=self._seen)
        self._seen += len(records)
        for record in records:
            if not self._job_only or record.name == _JOB_RECORDS:
                self._write(record.message)

    def until_end(self) -> None:
        """Write new records until the item has ended, then the rest."""
        while not self._run.item.is_terminal:
            self.write_new()
            time.sleep(_LOOK_SECONDS)
        self.write_new()
