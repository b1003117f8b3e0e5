"""Command `prefect-launch item compare`: runs side by side, in the terminal or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_launch.cli.item_list import text_of
from prefect_launch.cli.item_view import find
from prefect_launch.cli.options import JsonOption
from prefect_launch.cli.output import Column, print_json, print_table, write_file
from prefect_launch.cli.process import connected

if TYPE_CHECKING:
    from prefect_launch.client.compare import Comparison


def compare(
    item_ids: Annotated[
        list[str], typer.Argument(metavar="ID…", help="Two items or more: their ids, last 8 characters, or names.")
    ],
    everything: Annotated[
        bool, typer.Option("--all", metavar="", help="Show what is the same in all of them, too.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write it as one HTML file, with a chart of each metric."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare items: what differs of inputs, code and environment, and what each came to."""
    from prefect_launch.client.compare import compare_runs

    api = connected()
    items = [find(api, given).item for given in item_ids]
    comparison = api.call(lambda session: compare_runs(api, session, items))
    if html is not None:
        write_file(html, comparison.html(text_of), "--html")
        typer.echo(f"The comparison of {len(items)} items is in {html}.", err=True)
    if json:
        print_json(comparison.fields())
    elif html is None:
        _print(comparison, everything=everything)


def _print(comparison: Comparison, *, everything: bool) -> None:
    rows = comparison.shown(everything=everything)
    print_table(
        [Column("OF"), Column("WHAT"), *(Column(name, wraps=True) for name in comparison.names)],
        [[row.section, row.name, *map(text_of, row.values)] for row in rows],
        empty="",
    )
    left = len(comparison.rows) - len(rows)
    if left:
        typer.echo(f"\nThe same in all: {left} more; --all shows them.")
