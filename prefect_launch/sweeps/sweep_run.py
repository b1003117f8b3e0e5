"""Flow run of a sweep: how it is found, and the configuration that its parameters are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from prefect_launch.core.names import short_id
from prefect_launch.errors import NotFoundError
from prefect_launch.server.values import PAGE, SCHEDULER_FLOW, Item
from prefect_launch.sweeps.config import MAX_TRIALS, MAX_WORKERS, SOURCES, SweepConfig, parse_sweep

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

_MIN_PART_CHARS: Final = 6


def sweep_config(
    config: Mapping[str, Any],
    queue: str | None = None,
    job: str | None = None,
    docker_image: str | None = None,
    num_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None,
    run_cap: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None,
    prior_runs: Sequence[str] | None = None,
    project: str | None = None,
    entity: str | None = None,
) -> SweepConfig:
    """Return the configuration that a sweep's flow run has: options given with the file win over it.

    Its arguments are the parameters of the flow run, and the form of its deployment.

    Args:
        config: The content of a sweep file.
        queue: Where its trials are queued; by default `launch.queue` of the config.
        job: That its trials run; by default the config's.
        docker_image: That its trials run, in place of a job.
        num_workers: Trials at a time; by default the config's.
        run_cap: The most trials; by default the config's.
        prior_runs: Ids of earlier sweeps, and of other items, that its sampler learns from; by default the config's.
        project: Of its trials; by default the config's, or the job's.
        entity: Of its trials, likewise.

    Raises:
        LaunchError: as `parse_sweep` does.
    """
    parse_sweep(config)
    data = dict(config["sweep"] if set(config) == {"sweep"} else config)
    launch = dict(data.get("launch") or {})
    if job is not None or docker_image is not None:
        for name in ("job", "image_uri"):
            data.pop(name, None)
        for name in SOURCES:
            launch.pop(name, None)
        data |= {name: value for name, value in (("job", job), ("image_uri", docker_image)) if value is not None}
    if queue is not None:
        launch["queue"] = queue
    if num_workers is not None:
        data["scheduler"] = {**(data.get("scheduler") or {}), "num_workers": num_workers}
    own = {"run_cap": run_cap, "prior_runs": prior_runs, "project": project, "entity": entity}
    data |= {name: value for name, value in own.items() if value is not None}
    return parse_sweep({**data, "launch": launch} if launch else data)


def config_of(sweep: Item) -> SweepConfig:
    """Return the configuration of a sweep, from its flow run; an item of a queue that names none has its trials there.

    Raises:
        LaunchError: when its parameters are none.
    """
    config = sweep_config(**sweep.parameters)
    if config.launch.queue is not None or sweep.work_pool_name is None:
        return config
    return sweep_config(**{**sweep.parameters, "queue": sweep.work_pool_name})


async def read_sweep(session: Session, sweep_id: UUID) -> Item:
    """Read a sweep's flow run.

    Raises:
        NotFoundError: when there is none, or it is no sweep.
    """
    found = await session.server.read_item(sweep_id)
    if found is None or found.flow != SCHEDULER_FLOW:
        raise NotFoundError(f"There is no sweep {str(sweep_id)!r}. 'prefect-launch sweep list' shows them.")
    return found


async def list_sweeps(session: Session) -> list[Item]:
    """List the newest sweeps, the newest first; at most 200."""
    return await session.server.list_items(flow=SCHEDULER_FLOW, limit=PAGE)


async def find_sweep(session: Session, given: str) -> Item:
    """Find a sweep by its id, the id's first or last characters (6 or more), or its name.

    Raises:
        NotFoundError: when there is none, or there are several.
    """
    text = given.strip()
    with suppress(ValueError):
        return await read_sweep(session, UUID(text))
    sweeps = await list_sweeps(session)
    part = text.lower() if len(text) >= _MIN_PART_CHARS else None
    found = [
        sweep
        for sweep in sweeps
        if sweep.name == text or (part and (str(sweep.id).endswith(part) or str(sweep.id).startswith(part)))
    ]
    if len(found) != 1:
        known = ", ".join(f"{short_id(sweep.id)} ({sweep.name})" for sweep in (found or sweeps)[:5])
        fault = f"{given!r} may mean several sweeps:" if found else f"There is no sweep {given!r}. There are:"
        raise NotFoundError(f"{fault} {known or 'none yet'}. Give the id of one.")
    return found[0]
