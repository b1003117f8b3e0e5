"""Runs as rows of a table: what each asked for and what it came to.

A row is flat, so that `pandas.DataFrame(runs_table())` has a column for each input, output and metric.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.client.api import Api, default_api
from prefect_launch.client.item_fields import fields_of, request_of, source_of, started_at
from prefect_launch.client.queued_run import QueuedRun, read_outputs
from prefect_launch.client.run_filter import (
    COLUMNS,
    GROUPS,
    INPUTS,
    METRICS,
    OUTPUTS,
    SEARCHED,
    STATES,
    Condition,
    RunFilter,
    parse_moment,
)
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.nested import flat
from prefect_launch.errors import ArtifactError, NotFoundError
from prefect_launch.jobs.index import PATH_TAG
from prefect_launch.jobs.model import parse_reference
from prefect_launch.server.metrics import read_metrics
from prefect_launch.server.paging import all_items
from prefect_launch.server.values import PAGE, Item, ItemFilter

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

#: Outputs that are read at a time.
_READS: Final = 16


@dataclass(frozen=True)
class Run:
    """An item, with what it came to.

    Attributes:
        handle: on the item.
        item: as it was read.
        outputs: its named results; empty while they are not read.
        metrics: what it reported; empty while it is not read.
    """

    handle: QueuedRun
    item: Item
    outputs: Mapping[str, Any]
    metrics: Metrics

    @cached_property
    def row(self) -> dict[str, Any]:
        """All of it, by column."""
        request = request_of(self.item)
        started = started_at(self.item)
        created = self.item.created
        waited = (started - created).total_seconds() if started and created else None
        values = {**request, **fields_of(self.handle, self.item), "waited_seconds": waited}
        found = {name: values.get(name) for name in COLUMNS}
        found |= flat(request["inputs"], INPUTS) | flat(self.outputs, OUTPUTS)
        return found | {
            f"{METRICS}.{name}": self.metrics.value(name) for name in [*self.metrics.series, *self.metrics.wandb]
        }


async def read_runs(api: Api, session: Session, wanted: RunFilter, columns: Collection[str] = ()) -> list[Run]:
    """Return runs with what some columns need.

    Args:
        api: for the handles on them.
        session: an open connection.
        wanted: which runs.
        columns: that will be looked at; a group's name is all of its columns.

    Raises:
        NotFoundError: for an unknown queue or job, and for an input, output or metric of the filter that no run has.
        InfrastructureError: when outputs cannot be read from their store.
    """
    if wanted.queue is not None:
        await session.queue(wanted.queue)
    most = SEARCHED if wanted.sort else wanted.limit
    found: list[Run] = []
    seen: set[str] = set()
    async for page in _pages(api, session, wanted):
        runs = [Run(QueuedRun(api, item), item, {}, Metrics()) for item in page]
        runs = await complete(session, runs, _groups(wanted.columns))
        seen.update(column for run in runs for column in run.row)
        found += [run for run in runs if wanted.fits(run.row)]
        if len(found) >= most:
            break
    wanted.check_seen(seen)
    if wanted.sort:
        found.sort(key=lambda run: wanted.place(run.row), reverse=wanted.descends)
    return await complete(session, found[: wanted.limit], _groups(columns) - _groups(wanted.columns))


def _groups(columns: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in columns}


async def _pages(api: Api, session: Session, wanted: RunFilter) -> AsyncIterator[list[Item]]:
    """Yield items by pages, newest first."""
    job, unknown = None, None
    if wanted.job:
        try:
            job = (await session.jobs.resolve(wanted.job)).reference
        except NotFoundError as error:  # It may be deleted: its items still name it.
            job, unknown = wanted.job, error
    of = parse_reference(job, entity=api.entity, project=api.project) if job else None
    types = sorted({STATES[state] for state in wanted.states})
    filters = ItemFilter(
        pool=wanted.queue,
        state_types=types or None,
        expected_after=wanted.since,
        tags=[f"{PATH_TAG}{of.name}"] if of else None,
    )
    size = PAGE if wanted.columns or wanted.job or wanted.since else min(PAGE, wanted.limit)
    page: list[Item] = []
    seen = 0
    async for item in all_items(session.server, page=size, by_id=False, **filters):
        seen += 1
        source = source_of(item)
        is_of_job = (
            of is None or source == str(of) or (":" not in (wanted.job or "") and source.startswith(f"{of.path}:"))
        )
        if is_of_job:
            unknown = None
        if is_of_job and (item.work_pool_name or wanted.queue):
            page.append(item)
        if len(page) == size:
            yield page
            page = []
        if seen == SEARCHED:
            break
    if unknown is not None:
        raise unknown
    yield page


async def complete(session: Session, runs: list[Run], groups: Collection[str]) -> list[Run]:
    """Return runs with their outputs and metrics, where these groups of columns need them.

    Raises:
        InfrastructureError: when outputs cannot be read from their store.
    """
    metrics: Mapping[UUID, Metrics] = {}
    if METRICS in groups:
        metrics = await read_metrics(session.server, [run.item.id for run in runs])
    outputs: list[Mapping[str, Any]] = [run.outputs for run in runs]
    if OUTPUTS in groups:
        places = asyncio.Semaphore(_READS)

        async def read(run: Run) -> Mapping[str, Any]:
            async with places:
                try:
                    return await read_outputs(session, run.item) if run.item.is_terminal else {}
                except ArtifactError:
                    return {}

        outputs = await asyncio.gather(*map(read, runs))
    return [
        Run(run.handle, run.item, outputs=own, metrics=metrics.get(run.item.id, run.metrics))
        for run, own in zip(runs, outputs, strict=True)
    ]


def runs_table(
    *,
    queue: str | None = None,
    job: str | None = None,
    states: Iterable[str] = (),
    since: str | datetime | None = None,
    where: str | Iterable[str] = (),
    sort: str | None = None,
    limit: int = PAGE,
) -> list[dict[str, Any]]:
    """Return runs as flat rows: `pandas.DataFrame(runs_table(job="train"))` compares them.

    Args:
        queue: only of this queue.
        job: only of this job, `entity/project/name` or shorter; with `:v3` or an alias, only of that version.
        states: only in one of these states, such as `completed`.
        since: only those that were queued after it: how long ago (`7d`), a date, or a time.
        where: one condition or several, which all hold, such as `outputs.accuracy > 0.9`.
        sort: a column; with a `-` before it, the highest value comes first. By default, the newest come first.
        limit: how many rows at most.

    Returns:
        A row for each run: `id`, `name`, `queue`, `state`, `job`, `author`, `created`, `started`, `ended`,
        `waited_seconds`, `duration_seconds` and what else `COLUMNS` names; and `inputs.…`, `outputs.…` and the last
        value of `metrics.…` by their names. A row has only those that its run has.

    Raises:
        NotFoundError: for an unknown queue, job, state or column; names the nearest one.
        SpecError: for a condition or a time that cannot be read.
        InfrastructureError: when outputs cannot be read from their store.
        ServerUnavailableError: when the server does not answer.
    """
    conditions = [where] if isinstance(where, str) else where
    wanted = RunFilter(
        queue=queue,
        job=job,
        states=tuple(state.lower() for state in states),
        since=parse_moment(since) if isinstance(since, str) else since,
        where=tuple(map(Condition.parse, conditions)),
        sort=sort,
        limit=limit,
    )
    api = default_api()
    return [run.row for run in api.call(lambda session: read_runs(api, session, wanted, GROUPS))]
