"""Views of an item for people, and the search for it by id, part of it, or name."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import typer

from prefect_launch.cli.output import ago, until
from prefect_launch.client.item_fields import state_of
from prefect_launch.core.states import StateType
from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.core.metrics import Metrics
    from prefect_launch.queues.wait_reason import WaitReason
    from prefect_launch.server.values import Item


#: The shortest part of an id that is searched for.
_MIN_PART_CHARS: Final = 6
#: How many items are searched for a part of an id, newest first.
_SEARCHED: Final = 2_000
#: How much of an image's digest a list shows.
_DIGEST_CHARS: Final = 12
#: Of a metric's course, where there is room, and where there is none.
_SPARKLINE_CHARS: Final = 24
_LEAST_SPARKLINE_CHARS: Final = 8
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
    from prefect_launch.queues.moved import is_moved

    text = given.strip()
    part = text.lower()
    if _is_uuid(part):
        return api.queued_run(part)
    found = api.read_items(names=[text], limit=_NAMED + 1) if text else []
    if len(part) >= _MIN_PART_CHARS and _PART.match(part):
        newest = api.read_items(limit=_SEARCHED, moved=True)
        found += [item for item in newest if _is_part(part, item) and item not in found]
    if not found:
        raise NotFoundError(
            f"No item is named {given!r}, nor does the id of one of the {_SEARCHED:,} newest end or begin so (with"
            f" {_MIN_PART_CHARS} characters or more). 'prefect-launch item list' shows them."
        )
    if len(found) > 1:
        candidates = "; ".join(_candidate(item) for item in found[:_NAMED])
        more = "; …" if len(found) > _NAMED else ""
        raise InvalidNameError(f"{given!r} may mean several items: {candidates}{more}. Give the id of one.")
    return api.queued_run(found[0].id) if is_moved(found[0]) else QueuedRun(api, found[0])


def find_all(api: Api, given: Iterable[str]) -> list[QueuedRun]:
    """Return several items, each once; see `find`."""
    return list({run.id: run for run in (find(api, one) for one in given)}.values())


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


def metrics_in_words(metrics: Metrics, columns: int | None = None) -> str:
    """Return a line for each metric: its last value, where it is lowest and highest, and its course as a sparkline.

    Args:
        metrics: of an item.
        columns: that a line may have; the sparklines are shorter then.
    """
    from prefect_launch.core.metrics import Series, format_number, sparkline

    rows = []
    for name in metrics.names:
        value, series = metrics.value(name), metrics.series.get(name, Series())
        ends = [f"{word} {format_number(end[1])}" for word, end in (("low", series.low), ("high", series.high)) if end]
        step = [f"step {series.last[0]}"] if series.last else []
        points = [each for _, each in series.points()]
        rows.append((name, "" if value is None else format_number(value), ", ".join([*step, *ends]), points))
    names, values, words = (max((len(str(row[place])) for row in rows), default=0) for place in range(3))
    left = _SPARKLINE_CHARS if columns is None else columns - names - values - words - 6
    width = max(_LEAST_SPARKLINE_CHARS, min(_SPARKLINE_CHARS, left))
    lines = [(sparkline(points, width), *row) for *row, points in rows]
    drawn = max((len(line) for line, *_ in lines), default=0)
    return "\n".join(
        f"{name:{names}}  {value:{values}}  {line:{drawn}}  {said}".rstrip() for line, name, value, said in lines
    )


def usage_in_words(usage: Mapping[str, float], item: Item) -> str:
    """Say what the run of an item uses now, or has used in all."""
    from prefect_launch.core.usage import present_in_words, totals_in_words

    return totals_in_words(usage) if item.is_terminal else present_in_words(usage)


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
