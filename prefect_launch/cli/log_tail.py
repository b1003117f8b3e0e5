"""A run's log lines as they come, from the server, where every agent sends them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import typer

from prefect_launch.core.terminal import line

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun

#: An agent sends new lines every half second; asking more often shows nothing sooner.
_LOOK_SECONDS: Final = 0.5
#: The name that records of a job's own lines have; a flow's log has Prefect's records too.
_JOB_RECORDS: Final = "job"


def write_log(text: str, *, err: bool = False) -> None:
    """Print a record of a log: with its colours and without other sequences to a terminal, else as it is."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(line(text) if stream.isatty() else text, err=err, color=True)


class LogTail:
    """What is new in an item's log.

    Args:
        run: the item.
        write: is given each record's text.
        job_only: leave out what is not the job's own.
    """

    def __init__(self, run: QueuedRun, write: Callable[[str], None], *, job_only: bool = False) -> None:
        self._run = run
        self._write = write
        self._job_only = job_only
        self._seen = 0

    def look(self) -> None:
        """Write what has come since the last time."""
        records = self._run.logs(offset=self._seen)
        self._seen += len(records)
        for record in records:
            if not self._job_only or record.name == _JOB_RECORDS:
                self._write(record.message)

    def until_end(self) -> None:
        """Write what comes until the item has ended, and all that is there then."""
        while not self._run.item.is_terminal:
            self.look()
            time.sleep(_LOOK_SECONDS)
        self.look()
