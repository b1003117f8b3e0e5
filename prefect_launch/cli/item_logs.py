"""Command `prefect-launch item logs`, and the tail of a log that `add --wait` and `run` print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prefect_launch.cli.item_view import find
from prefect_launch.cli.options import JsonOption
from prefect_launch.cli.output import at, lasted, print_json
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import duration_of, state_of
from prefect_launch.client.patience import when_answered
from prefect_launch.core.names import name_and_id, short_id
from prefect_launch.core.states import StateType
from prefect_launch.core.terminal import line, printable

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.server.values import Item, LogRecord

#: An agent sends new lines every half second, so a shorter pause shows nothing sooner.
_POLL_SECONDS: Final = 0.5
#: To ask why an item waits costs the server several reads.
_REASON_SECONDS: Final = 5.0
#: How much earlier than the newest record one may be that comes after it: Prefect sends those of a flow seconds late,
#: and the clocks of two machines differ.
_LATE: Final = timedelta(minutes=1)
#: Logger name of the job's own lines; a flow's log also has Prefect's records.
_JOB_RECORDS: Final = "job"


def logs(
    item_id: Annotated[str, typer.Argument(metavar="ID", help="The item's id, its last 8 characters, or its name.")],
    follow: Annotated[
        bool,
        typer.Option(
            "-f", "--follow", metavar="", help="Follow the log until the item has ended; say what it waits for before."
        ),
    ] = False,
    timestamps: Annotated[
        bool, typer.Option("-t", "--timestamps", metavar="", help="Begin each line with the time of its record.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only records of that time or later: 10min ago, or a time."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print an item's log."""
    from prefect_launch.client.run_filter import parse_moment

    start = None if since is None else parse_moment(since)
    run = find(connected(), item_id)
    if json:
        if follow:
            LogTail(run, lambda _: None).until_end()
        print_json([_fields(record) for record in run.logs(since=start)])
        return

    def write(record: LogRecord) -> None:
        lines = record.message.splitlines() if timestamps else [record.message]
        for each in lines:
            write_log(f"{at(record.timestamp)}  {each}" if timestamps else each)

    tail = LogTail(run, write, since=start)
    if follow:
        tail.until_end(tell=lambda words: typer.echo(printable(words), err=True))
    else:
        tail.write_new()
    if tail.is_empty:
        item = run.item
        what = "The log is empty." if start is None else f"The log has no record since {at(start)}."
        typer.echo(f"{what} {printable(_state_in_words(item))}", err=True)


def _fields(record: LogRecord) -> dict[str, Any]:
    return {"time": record.timestamp, "level": record.level, "logger": record.name, "message": record.message}


def write_log(text: str, *, err: bool = False) -> None:
    """Print a log record: to a terminal with colours only, without other control sequences; else unchanged."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(line(text) if stream.isatty() else text, err=err, color=True)


def write_record(record: LogRecord, *, err: bool) -> None:
    """Print a log record, without its time."""
    write_log(record.message, err=err)


def print_until_end(run: QueuedRun, *, log_to_error: bool) -> None:
    """Print an item's log until it has ended, and how it did.

    Raises:
        ExecutionError: when it failed or was cancelled.
    """
    tail = LogTail(run, partial(write_record, err=log_to_error))
    try:
        tail.until_end(tell=lambda words: typer.echo(printable(words), err=True))
    except KeyboardInterrupt:
        typer.echo(f"It continues. Follow it with: prefect-launch item logs {short_id(run.id)} -f", err=True)
        raise
    item = run.wait_until_finished()
    typer.echo(f"{name_and_id(run)} {state_of(item)} after {lasted(duration_of(item))}.", err=True)


class LogTail:
    """Reader of the new records in an item's log: all of them, or only those of the job itself."""

    def __init__(
        self,
        run: QueuedRun,
        write: Callable[[LogRecord], None],
        *,
        job_only: bool = False,
        since: datetime | None = None,
    ) -> None:
        self._run = run
        self._write = write
        self._job_only = job_only
        self._since = since
        #: What was read of the last minute.
        self._seen: dict[LogRecord, None] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no record has been read yet."""
        return not self._seen

    def write_new(self) -> None:
        """Write the records that have come since the last call."""
        newest = max((record.timestamp for record in self._seen), default=None)
        read = self._run.logs(since=self._since if newest is None else newest - _LATE)
        for record in read:
            is_wanted = self._since is None or record.timestamp >= self._since
            if is_wanted and record not in self._seen and (not self._job_only or record.name == _JOB_RECORDS):
                self._write(record)
        self._seen = dict.fromkeys(read) or self._seen

    def until_end(self, tell: Callable[[str], None] | None = None) -> None:
        """Write new records until the item has ended, then the rest.

        Args:
            tell: is called with what the item waits for, until its first record, whenever that changes.
        """
        waits = _Waits(self._run)
        while not (item := when_answered(lambda: self._run.item)).is_terminal:
            when_answered(self.write_new)
            if tell is not None and self.is_empty and (words := when_answered(lambda: waits.news(item))):
                tell(words)
            time.sleep(_POLL_SECONDS)
        when_answered(self.write_new)


class _Waits:
    """What an item waits for, told when it changes."""

    def __init__(self, run: QueuedRun) -> None:
        self._run = run
        self._told = ""
        self._due = 0.0

    def news(self, item: Item) -> str:
        """Return what it waits for now; an empty text when that was told last."""
        if item.state_type is StateType.SCHEDULED:
            if time.monotonic() < self._due:
                return ""
            self._due = time.monotonic() + _REASON_SECONDS
            waiting = self._run.why_waiting()
            words = "" if waiting is None else f"The item waits: {waiting.reason}"
        else:
            words = _state_in_words(item)
        if words == self._told:
            return ""
        self._told = words
        return words


def _state_in_words(item: Item) -> str:
    state = state_of(item)
    said = state if state in ("failed", "crashed") else f"is {state}"
    return f"The item {said}: {item.message}" if item.message else f"The item {said}."
