"""What `prefect-launch agent watchdog` does and prints."""

from __future__ import annotations

import asyncio

import typer

from prefect_launch.errors import SpecError


def run_watchdog(after: str | None, *, remove: bool) -> None:
    """Set the server's watchdog, take it off, or tell of it.

    Raises:
        SpecError: for a time that is none or too short, or when both are asked for.
    """
    from prefect_launch.client.api import default_api
    from prefect_launch.core.units import format_duration, parse_duration
    from prefect_launch.queues.watchdog import aread_watchdog, aremove_watchdog, aset_watchdog, check_patience

    if after is not None and remove:
        raise SpecError("'--after' sets the watchdog and '--remove' takes it off: give one of them.")
    if after is not None:
        seconds = check_patience(parse_duration(after) or 0.0)
        changed = asyncio.run(aset_watchdog(default_api(), seconds))
        typer.echo(f"The watchdog is {'set' if changed else 'there already'}: {format_duration(seconds)}.")
    elif remove:
        was_there = asyncio.run(aremove_watchdog(default_api()))
        typer.echo("The watchdog is taken off." if was_there else "There was no watchdog.")
    else:
        found = asyncio.run(aread_watchdog(default_api()))
        typer.echo("There is no watchdog." if found is None else f"The watchdog is set: {format_duration(found)}.")
