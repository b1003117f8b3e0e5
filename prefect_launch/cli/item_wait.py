"""Command `prefect-launch item wait`: its exit code tells a script how the items ended."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_launch.cli.item_view import find_all
from prefect_launch.cli.main import CANCELLED, TIMED_OUT
from prefect_launch.cli.options import ItemIds, JsonOption
from prefect_launch.cli.output import lasted, print_json
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import duration_of, fields_of, state_of
from prefect_launch.core.names import name_and_id
from prefect_launch.core.states import StateType
from prefect_launch.core.terminal import printable


def wait(
    item_ids: ItemIds,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="Wait no longer: seconds, or 45min, 2h. Then exit 124."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Wait until items have ended; exit with 0 if all completed, 1 if one failed, 3 if cancelled, 124 if late."""
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.client.wait_for_ends import ends_of
    from prefect_launch.core.units import parse_duration

    api, seconds = connected(), parse_duration(timeout)
    runs = find_all(api, item_ids)
    ended, late = [], None
    try:
        for item in ends_of(api, runs, timeout=seconds):
            ended.append(item)
            if not json:
                why = f": {printable(item.message)}" if item.message else "."
                took = f" after {lasted(duration_of(item))}" if item.run_count else ""
                typer.echo(f"{name_and_id(item)} {state_of(item)}{took}{why}")
    except TimeoutError as error:
        late = error
    if json:
        print_json([fields_of(QueuedRun(api, item), item) for item in ended])
    if late is not None:
        typer.echo(str(late), err=True)
        raise typer.Exit(TIMED_OUT)
    raise typer.Exit(_code_of({item.state_type for item in ended}))


def _code_of(ends: set[StateType | None]) -> int:
    if ends & {StateType.FAILED, StateType.CRASHED}:
        return 1
    return CANCELLED if StateType.CANCELLED in ends else 0
