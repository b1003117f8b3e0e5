"""An item as people and programs see it: one row, or all that is known of it; and finding it by its id's beginning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError

if TYPE_CHECKING:
    from prefect_launch.api import Api
    from prefect_launch.queued_run import QueuedRun
    from prefect_launch.server.values import Item
    from prefect_launch.waiting import Waiting

#: What a table shows of an id; its beginning is unique in practice, and taken wherever an id is.
SHORT_ID_CHARS: Final = 8
_MIN_PREFIX_CHARS: Final = 6
#: How many items are looked through for the beginning of an id, newest first.
_SEARCHED: Final = 2_000
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]*\Z")


def find(api: Api, given: str) -> QueuedRun:
    """Return the item of an id, or of an id's beginning.

    Raises:
        InvalidNameError: when it is no id, too short, or the beginning of two items' ids.
        NotFoundError: when there is no such item.
    """
    text = given.strip().lower()
    if _is_uuid(text):
        return api.queued_run(text)
    if len(text) < _MIN_PREFIX_CHARS or not _PREFIX.match(text):
        raise InvalidNameError(
            f"Invalid item id {given!r}: give an item's id, or its first {_MIN_PREFIX_CHARS} or more characters, as"
            " 'prefect-launch item list' shows them."
        )
    found = [run for run in api.items(limit=_SEARCHED) if run.id.startswith(text)]
    if not found:
        raise NotFoundError(f"No item has an id that begins with {given!r}. 'prefect-launch item list' shows them.")
    if len(found) > 1:
        ids = ", ".join(run.id for run in found)
        raise InvalidNameError(f"{len(found)} items have an id that begins with {given!r}: {ids}. Give more of it.")
    return found[0]


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def request_of(item: Item) -> dict[str, Any]:
    """Return what an item asks for; what of it can be read when it is no good spec."""
    from prefect_launch.item_spec import spec_of

    try:
        spec = spec_of(item)
    except LaunchError:
        return {"job": item.labels.get("prefect-launch.job"), "inputs": item.parameters}
    return {
        "job": spec.job,
        "image": spec.image,
        "digest": spec.docker.digest,
        "uri": spec.uri,
        "entity": spec.entity,
        "project": spec.project,
        "author": spec.author,
        "run_id": spec.run_id,
        "sweep_id": spec.sweep_id,
        "inputs": spec.overrides.run_config,
        "args": list(spec.overrides.args),
        "entry_point": list(spec.overrides.entry_point or ()),
        "resource_args": spec.resource_args,
        "template_variables": spec.template_variables,
    }


def source_of(item: Item) -> str:
    """Return the job, at its version, or the image of an item."""
    named = item.labels.get("prefect-launch.job") or item.parameters.get("job")
    docker = item.parameters.get("docker")
    image = docker.get("docker_image") if isinstance(docker, Mapping) else None
    return str(named or image or item.parameters.get("image_uri") or item.parameters.get("uri") or "")


def state_of(item: Item) -> str:
    """Return its state's name in lower case."""
    return (item.state_name or "unknown").lower()


def started_at(item: Item) -> datetime | None:
    """Return when it began to run; `None` when it never did: the server gives what ended before a start of its own."""
    return item.start_time if item.run_count else None


def duration_of(item: Item) -> float | None:
    """Return for how long it ran or has been running, in seconds."""
    started = started_at(item)
    return None if started is None else ((item.end_time or datetime.now(timezone.utc)) - started).total_seconds()


def fields_of(run: QueuedRun, item: Item) -> dict[str, Any]:
    """Return what a list shows of an item, for programs."""
    return {
        "id": run.id,
        "name": run.name,
        "run_id": run.run_id,
        "queue": run.queue_name,
        "state": state_of(item),
        "state_type": item.state_type,
        "message": item.message,
        "priority": int(run.priority),
        "job": source_of(item),
        "entity": run.entity,
        "project": run.project,
        "attempts": item.run_count,
        "created": item.created,
        "started": started_at(item),
        "ended": item.end_time,
        "duration_seconds": duration_of(item),
        "url": run.url,
    }


def waiting_fields(waiting: Waiting | None) -> dict[str, Any]:
    """Return why an item waits, for programs."""
    return {
        "why": waiting and waiting.reason,
        "why_cause": waiting and waiting.cause,
        "place": waiting and waiting.place,
        "waiting": waiting and waiting.waiting,
        "expected_start": waiting and waiting.expected_start,
        "expected_from": (waiting and waiting.basis) or None,
    }


def start_in_words(waiting: Waiting | None) -> str:
    """Say when a waiting item will about start, in this machine's time zone."""
    if waiting is None or waiting.expected_start is None:
        return ""
    start = waiting.expected_start.astimezone()
    is_today = start.date() == datetime.now().astimezone().date()
    told = f"about {start:%H:%M}" if is_today else f"about {start:%Y-%m-%d %H:%M}"
    return f"{told}, from {waiting.basis}" if waiting.basis else told
