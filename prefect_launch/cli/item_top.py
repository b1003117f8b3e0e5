"""Command `prefect-launch item top`: what items use of CPU, memory and GPUs, live until they have ended."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_launch.cli.item_view import find_all
from prefect_launch.cli.options import ItemIds, JsonOption
from prefect_launch.cli.output import Column, lasted, live_screen, print_json, print_table, table_of
from prefect_launch.cli.process import connected
from prefect_launch.cli.usage_view import usage_cells
from prefect_launch.client.item_fields import duration_of, state_of
from prefect_launch.core.names import name_and_id, short_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.server.values import Item


@dataclass(frozen=True)
class _Use:
    """What an item uses now, or has used in all."""

    item: Item
    usage: dict[str, float]


def top(
    item_ids: ItemIds,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.5, help="Time between two looks.")
    ] = 2.0,
    json: JsonOption = False,
) -> None:
    """Show what items use of CPU, memory and GPUs, live until they have ended; in a pipe, print it once.

    Of an item that has ended: the mean of its CPUs and GPUs, and the peak of its memory.
    """
    api = connected()
    runs = find_all(api, item_ids)
    uses = _read(api, runs)
    if json:
        print_json([{"id": one.item.id, "state": state_of(one.item), "usage": one.usage} for one in uses])
    elif sys.stdout.isatty():
        _live(api, runs, interval)
    else:
        columns, rows = _table(uses)
        print_table(columns, rows, empty="")
    for note in () if json else _notes(api, runs, uses):
        typer.echo(note, err=True)


def _live(api: Api, runs: Sequence[QueuedRun], interval: float) -> None:
    with live_screen() as (console, draw):
        while True:
            uses = _read(api, runs)
            draw(_drawn(uses, console))
            if all(one.item.is_terminal for one in uses):
                return
            time.sleep(interval)


def _drawn(uses: Sequence[_Use], console: Console) -> RenderableType:
    columns, rows = _table(uses)
    return table_of(columns, rows, console.width)


def _table(uses: Sequence[_Use]) -> tuple[list[Column], list[list[object]]]:
    more, cells = usage_cells([one.usage for one in uses])
    columns = [Column("ID"), Column("NAME", gives_way=True), Column("STATE"), Column("TOOK", right=True), *more]
    rows = [_cells_of(one.item) + used for one, used in zip(uses, cells, strict=True)]
    return columns, rows


def _cells_of(item: Item) -> list[object]:
    return [short_id(item.id), item.name, state_of(item), lasted(duration_of(item))]


def _read(api: Api, runs: Sequence[QueuedRun]) -> list[_Use]:
    """Read the items, and in one request what they use now.

    Raises:
        NotFoundError: when one was deleted.
    """
    from prefect_launch.core.usage import as_present, totals_in
    from prefect_launch.queues.agent_status import read_usage

    present = api.call(lambda session: read_usage(session.server))
    uses = []
    for item in (run.item for run in runs):
        totals = as_present(totals_in(item.state.data if item.state else None))
        uses.append(_Use(item, totals if item.is_terminal else present.get(str(item.id), {})))
    return uses


def _notes(api: Api, runs: Sequence[QueuedRun], uses: Sequence[_Use]) -> list[str]:
    """Say of which items it is not known what they use, and why."""
    unknown = [(run, one.item) for run, one in zip(runs, uses, strict=True) if not one.usage]
    return [f"{name_and_id(run)}: {_why_unknown(api, run, item)}" for run, item in unknown]


def _why_unknown(api: Api, run: QueuedRun, item: Item) -> str:
    from prefect_launch.errors import LaunchError
    from prefect_launch.runners.registry import runner_class

    try:
        resource = api.run_queue(run.queue_name).type
        if not runner_class(resource).tells_usage:
            return f"the resource {resource!r} does not tell what its runs use."
    except LaunchError:  # Its queue is gone, or another machine alone has the resource.
        pass
    if not item.run_count:
        return f"it has not started. 'prefect-launch item show {short_id(item.id)}' says why."
    return "no sample of what it uses is there: an agent takes one each second, and tells it within 20 s."
