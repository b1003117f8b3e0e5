"""Fields of an item, for programs: its state and times, what it runs, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.core.states import StateType
from prefect_launch.core.usage import totals_in
from prefect_launch.errors import LaunchError

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.server.values import Item

#: What the item of a sweep runs, in place of a job.
SWEEP: Final = "sweep"


def request_of(item: Item) -> dict[str, Any]:
    """Return what an item asks for; for an invalid spec, only its job and inputs; for a sweep, its configuration."""
    from prefect_launch.spec.item_parameters import JOB_LABEL, RERUN_LABEL, is_scheduler, spec_of

    if is_scheduler(item):
        given = {name: value for name, value in item.parameters.items() if value is not None}
        return {"job": source_of(item), "inputs": {}, "sweep": given}
    try:
        spec = spec_of(item)
    except LaunchError:
        return {"job": item.labels.get(JOB_LABEL), "inputs": item.parameters}
    return {
        "job": item.labels.get(JOB_LABEL) or spec.job,
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
        "after": list(spec.after),
        "resumable": bool(spec.resumable),
        "rerun_of": item.labels.get(RERUN_LABEL),
    }


def source_of(item: Item) -> str:
    """Return what an item runs: its job, at its version, its image, or its git URI; an empty text for neither.

    Of a sweep it is the word `sweep`: its trials are items of their own.
    """
    from prefect_launch.spec.item_parameters import JOB_LABEL, is_scheduler, options_of

    if is_scheduler(item):
        return SWEEP
    given = options_of(item)
    docker = given.get("docker")
    image = docker.get("docker_image") if isinstance(docker, Mapping) else None
    named = item.labels.get(JOB_LABEL) or given.get("job") or given.get("docker_image") or image
    return str(named or given.get("image_uri") or given.get("uri") or "")


def state_of(item: Item) -> str:
    """Return its state's name in lower case."""
    return (item.state_name or "unknown").lower()


def started_at(item: Item) -> datetime | None:
    """Return when it began to run, or `None`: the server sets a start time even for an item that never ran."""
    return item.start_time if item.run_count else None


def duration_of(item: Item) -> float | None:
    """Return how long its attempts ran, or have been running, in seconds."""
    return item.running_seconds(datetime.now(timezone.utc)) if item.run_count else None


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
        "due": item.next_scheduled_start_time if item.state_type is StateType.SCHEDULED else None,
        "duration_seconds": duration_of(item),
        "usage": totals_in(item.state.data if item.state else None),
        "url": run.url,
    }
