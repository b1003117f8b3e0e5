"""Views of an item for people, its log, and the search for it by id, part of it, or name."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import typer

from prefect_launch.cli.output import ago, until
from prefect_launch.client.item_fields import state_of
from prefect_launch.core.states import StateType
from prefect_launch.core.terminal import line
from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.core.metrics import Metrics
    from prefect_launch.queues.wait_reason import WaitReason
    from prefect_launch.server.values import Item, LogRecord


#: The shortest part of an id that is searched for.
_MIN_PART_CHARS: Final = 6
#: How many items are searched for a part of an id, newest first.
_SEARCHED: Final = 2_000
#: How much of an image's digest a list shows.
_DIGEST_CHARS: Final = 12
#: How many candidates a refusal names.
_NAMED: Final = 10
_PART = re.compile(r"[0-9a-f-]*\Z")


def find(api: Api, given: str) -> QueuedRun:
    """Return the item of an id, of an id's last or first characters, or of a name.

    Raises:
        InvalidNameError: when several items are meant.
        NotFoundError: when there is no such item.
    """
    from prefect_launch.client.queued_run import QueuedRun

    text = given.strip()
    part = text.lower()
    if _is_uuid(part):
        return api.queued_run(part)
    found = api.read_items(names=[text], limit=_NAMED + 1) if text else []
    if len(part) >= _MIN_PART_CHARS and _PART.match(part):
        found += [item for item in api.read_items(limit=_SEARCHED) if _is_part(part, item) and item not in found]
    if not found:
        raise NotFoundError(
            f"No item is named {given!r}, nor does the id of one of the {_SEARCHED:,} newest end or begin so (with"
            f" {_MIN_PART_CHARS} characters or more). 'prefect-launch item list' shows them."
        )
    if len(found) > 1:
        candidates = "; ".join(_candidate(item) for item in found[:_NAMED])
        more = "; …" if len(found) > _NAMED else ""
        raise InvalidNameError(f"{given!r} may mean several items: {candidates}{more}. Give the id of one.")
    return QueuedRun(api, found[0])


def _is_part(part: str, item: Item) -> bool:
    return str(item.id).endswith(part) or str(item.id).startswith(part)


def _candidate(item: Item) -> str:
    return f"{item.id} ({item.name}, {state_of(item)}, made {ago(item.created)})"


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def short_source(source: str) -> str:
    """Return what an item runs as a list shows it: `train:v0`, `busybox:1`, `team/digits` of a git remote."""
    name, digest, value = source.rpartition("/")[2].partition("@sha256:")
    if digest:
        return f"{name}{digest}{value[:_DIGEST_CHARS]}"
    if "://" in source or "@" in source:
        return "/".join(re.split(r"[/:]+", source.rstrip("/").removesuffix(".git"))[-2:])
    return name


def outputs_of(run: QueuedRun, item: Item) -> dict[str, Any]:
    """Return the named results of an item that has ended; none, with a warning, where they cannot be read."""
    try:
        return run.outputs() if item.is_terminal else {}
    except LaunchError as error:  # the rest of the item is worth showing where its store cannot be read
        typer.echo(f"WARNING: The outputs cannot be shown: {error}", err=True)
        return {}


def metrics_in_words(metrics: Metrics) -> str:
    """Return a line for each metric: its last value, where it is lowest and highest, and its course as a sparkline."""
    from prefect_launch.core.metrics import Series, format_number, sparkline

    rows = []
    for name in metrics.names:
        value, series = metrics.value(name), metrics.series.get(name, Series())
        course = sparkline([each for _, each in series.points()])
        ends = [f"{word} {format_number(end[1])}" for word, end in (("low", series.low), ("high", series.high)) if end]
        step = [f"step {series.last[0]}"] if series.last else []
        rows.append((name, "" if value is None else format_number(value), course, ", ".join([*step, *ends])))
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)


def waiting_fields(waiting: WaitReason | None) -> dict[str, Any]:
    """Return why an item waits, for programs."""
    return {
        "why": waiting and waiting.reason,
        "why_cause": waiting and waiting.cause,
        "place": waiting and waiting.place,
        "waiting": waiting and waiting.waiting,
        "expected_start": waiting and waiting.expected_start,
        "expected_from": (waiting and waiting.basis) or None,
    }


def start_in_words(waiting: WaitReason | None) -> str:
    """Say when a waiting item is due, or will about start, in this machine's time zone."""
    from prefect_launch.core.units import local_minute, local_time
    from prefect_launch.queues.wait_reason import WaitCause

    if waiting is None or waiting.expected_start is None:
        return ""
    if waiting.cause is WaitCause.NOT_DUE:
        return f"{until(waiting.expected_start)}, at {local_time(waiting.expected_start)}"
    start = f"about {local_minute(waiting.expected_start)}"
    return f"{start}, from {waiting.basis}" if waiting.basis else start


def due_in_words(item: Item) -> str:
    """Say in how long a waiting item is due; an empty text when it is due now, or does not wait."""
    if item.state_type is not StateType.SCHEDULED:
        return ""
    due = item.next_scheduled_start_time
    return until(due) if due is not None and due > datetime.now(timezone.utc) else ""


# Log tail: new lines of a run's log, read from the server.

#: An agent sends new lines every half second, so a shorter pause shows nothing sooner.
_POLL_SECONDS: Final = 0.5
#: How much earlier than the newest record one may be that comes after it: Prefect sends those of a flow seconds late,
#: and the clocks of two machines differ.
_LATE: Final = timedelta(minutes=1)
#: Logger name of the job's own lines; a flow's log also has Prefect's records.
_JOB_RECORDS: Final = "job"


def write_log(text: str, *, err: bool = False) -> None:
    """Print a log record: to a terminal with colours only, without other control sequences; else unchanged."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(line(text) if stream.isatty() else text, err=err, color=True)


class LogTail:
    """Reader of the new records in an item's log: all of them, or only those of the job itself."""

    def __init__(self, run: QueuedRun, write: Callable[[str], None], *, job_only: bool = False) -> None:
        self._run = run
        self._write = write
        self._job_only = job_only
        #: What was read of the last minute.
        self._seen: dict[LogRecord, None] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no record has been read yet."""
        return not self._seen

    def write_new(self) -> None:
        """Write the records that have come since the last call."""
        newest = max((record.timestamp for record in self._seen), default=None)
        since = None if newest is None else newest - _LATE
        read = self._run.logs(since=since)
        for record in read:
            if record not in self._seen and (not self._job_only or record.name == _JOB_RECORDS):
                self._write(record.message)
        self._seen = dict.fromkeys(read) or self._seen

    def until_end(self) -> None:
        """Write new records until the item has ended, then the rest."""
        while not self._run.item.is_terminal:
            self.write_new()
            time.sleep(_POLL_SECONDS)
        self.write_new()
