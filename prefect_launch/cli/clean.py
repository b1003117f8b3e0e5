"""Output of `prefect-launch agent clean`."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from prefect_launch.cli.output import Column, ago, print_json, print_table

if TYPE_CHECKING:
    from prefect_launch.agent.housekeeping.housekeeper import Report


def print_report(report: Report | None, *, home: Path, dry_run: bool, as_json: bool) -> None:
    """Print what a clean-up has removed, or would remove."""
    from prefect_launch.core.units import format_size

    if report is None:
        typer.echo(f"Another agent is cleaning {home}. Try again in a moment.", err=True)
        raise typer.Exit(1)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    rows = [("finished run", name, "", "") for name in report.finished]
    for cache in report.caches:
        rows += [
            (cache.cache, entry.name, format_size(entry.size_bytes), ago(_time(entry.used_at)))
            for entry in cache.evicted
        ]
    if rows:
        columns = (Column("WHAT"), Column("NAME", gives_way=True), Column("SIZE", right=True), Column("LAST USED"))
        print_table(columns, rows, empty="")
    verb = "Would remove" if dry_run else "Removed"
    typer.echo(f"{verb} {report.describe()} of {home}.")
    for cache in report.caches:
        limit = "no limit" if cache.limit_bytes is None else f"limit {format_size(cache.limit_bytes)}"
        kept = (
            f"not seen ({limit}): {cache.unreachable}"
            if cache.unreachable
            else f"{format_size(cache.kept_bytes)} kept ({limit})"
        )
        typer.echo(f"{cache.cache}: {kept}")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
