"""Command `prefect-launch top`: queues, agents, devices and active runs on one live screen."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from prefect_launch.cli import agent as agent_commands
from prefect_launch.cli import item_list
from prefect_launch.cli import queue as queue_commands
from prefect_launch.cli.options import single
from prefect_launch.cli.output import live_screen, print_table, table_of
from prefect_launch.cli.process import connected
from prefect_launch.cli.usage_view import usage_cells
from prefect_launch.core.states import ACTIVE
from prefect_launch.core.terminal import printable
from prefect_launch.queues.agent_status import usage_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from prefect_launch.cli.output import Column
    from prefect_launch.client.api import Api
    from prefect_launch.client.run_queue import RunQueue
    from prefect_launch.client.runs_table import Run
    from prefect_launch.queues.agent_status import AgentInfo, QueueActivity

app = single()
_COLUMNS: Final = ("id", "name", "queue", "state", "prio", "job", "took", "message")
#: Active runs that are read; a screen shows fewer.
_MOST: Final = 200
#: Lines that the screen leaves free, and those of headings and of the space between tables.
_SPARE_LINES: Final = 8


@dataclass(frozen=True)
class Overview:
    """What there is now.

    Attributes:
        queues: with their activity.
        agents: those that are there, and those that have left work behind.
        runs: the active ones, newest first.
    """

    queues: Sequence[tuple[RunQueue, QueueActivity]]
    agents: Sequence[AgentInfo]
    runs: Sequence[Run]


@app.command()
def top(
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.5, help="Time between two looks.")
    ] = 2.0,
) -> None:
    """Show queues, agents, devices and active runs on one live screen, until Ctrl-C; in a pipe, print them once."""
    api = connected()
    if not sys.stdout.isatty():
        _print(read_overview(api))
        return
    with live_screen(whole=True) as (console, draw):
        while True:
            draw(_shown(api, console))
            time.sleep(interval)


def read_overview(api: Api) -> Overview:
    """Read what there is now.

    Raises:
        ServerUnavailableError: when the server does not answer.
    """
    from prefect_launch.client.run_filter import RunFilter
    from prefect_launch.client.runs_table import read_runs

    queues = api.run_queues()
    active = RunFilter(states=tuple(sorted(state.value.lower() for state in ACTIVE)), limit=_MOST)
    return Overview(
        list(zip(queues, api.queue_activity(queue.name for queue in queues), strict=True)),
        api.agents(),
        api.call(lambda session: read_runs(api, session, active)),
    )


def _shown(api: Api, console: Console) -> RenderableType:
    """Return the screen; while the server does not answer, it says so."""
    from rich.text import Text

    from prefect_launch.errors import ServerFailedError, ServerUnavailableError

    try:
        return screen(read_overview(api), console.width, console.height)
    except (ServerUnavailableError, ServerFailedError) as error:
        return Text(printable(str(error)), style="red")


def screen(overview: Overview, width: int, height: int) -> RenderableType:
    """Return what a screen of a size shows: as many runs as fit below the queues and the agents."""
    from rich.console import Group
    from rich.text import Text

    devices = _devices(overview)
    left = max(1, height - len(overview.queues) - len(overview.agents) - len(devices) - _SPARE_LINES)
    columns, rows = _runs(overview, left)
    more = len(overview.runs) - left
    return Group(
        table_of(queue_commands.COLUMNS, [queue_commands.row_of(*pair) for pair in overview.queues], width),
        Text(),
        table_of(agent_commands.COLUMNS, [agent_commands.row_of(agent) for agent in overview.agents], width),
        *(Text(printable(line), style="dim") for line in devices),
        Text(),
        table_of(columns, rows, width),
        Text(f"… and {more:,} more" if more > 0 else "", style="dim"),
    )


def _runs(overview: Overview, most: int = _MOST) -> tuple[list[Column], list[list[object]]]:
    """Return the columns and the rows of the table of runs, with what they use before their messages."""
    runs = overview.runs[:most]
    usages = usage_in(overview.agents)
    columns, rows = item_list.cells_of(runs, _COLUMNS)
    more, cells = usage_cells([usages.get(run.handle.id, {}) for run in runs], of_asked=False)
    return [*columns[:-1], *more, columns[-1]], [
        [*row[:-1], *used, row[-1]] for row, used in zip(rows, cells, strict=True)
    ]


def _devices(overview: Overview) -> list[str]:
    """Return a line for each agent that has devices: who holds which."""
    return [f"{agent.name}: {agent.devices}" for agent in overview.agents if agent.devices]


def _print(overview: Overview) -> None:
    rows = [queue_commands.row_of(*pair) for pair in overview.queues]
    print_table(queue_commands.COLUMNS, rows, empty="There is no queue yet.")
    typer.echo()
    rows = [agent_commands.row_of(agent) for agent in overview.agents]
    print_table(agent_commands.COLUMNS, rows, empty="There is no agent.")
    for line in _devices(overview):
        typer.echo(printable(line))
    typer.echo()
    print_table(*_runs(overview), empty="Nothing runs.")
