"""What `add --explain` prints for people."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import typer

from prefect_launch.cli.item_view import start_in_words
from prefect_launch.cli.output import Column, print_details, print_table

if TYPE_CHECKING:
    from prefect_launch.client.explain import Explanation

_COLUMNS = (Column("WHAT"), Column("ASKED FOR", gives_way=True), Column("BECOMES", gives_way=True), Column("BY"))


def print_explanation(told: Explanation) -> None:
    """Print what would be queued, what the queue changes, and what an agent would make."""
    waiting = told.waiting
    typer.echo("A dry run: nothing is queued.")
    print_details(
        [
            ("name", told.name),
            ("there", told.there and f"{told.there}: the same run id and spec; adding it gives that item"),
            ("queue", f"{told.queue} ({told.resource})"),
            ("priority", {"default": "medium"}.get(told.priority, told.priority)),
            ("place", waiting.position if waiting else "1st: the queue is made at its first use"),
            ("why", waiting and waiting.reason),
            ("starts", start_in_words(waiting)),
            ("built here", told.built_of and f"the code of {told.built_of}, pushed to {told.pushed_to}"),
            ("job", told.job),
            ("image", "built at the start, of the job's code" if told.builds else told.image),
            ("digest", told.digest or ("the one of the push" if told.built_of else told.image and "resolved at start")),
            ("options", told.options),
            ("limits", ", ".join(f"{name} {most}" for name, most in told.limits.items())),
            ("fixed", ", ".join(told.fixed)),
        ]
    )
    rows = [(change.what, _text(change.asked), _text(change.becomes), change.by) for change in told.changes]
    if rows:
        typer.echo("\nOther than what you asked for:")
        print_table(_COLUMNS, rows, empty="")
    typer.echo("\nWhat the agent creates (of variables, the names):")
    print_details([(name, _shown(name, value)) for name, value in told.creates.items()])


def _shown(name: str, value: object) -> object:
    """Show a command as a shell takes it, and the names of variables in a row."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        return value
    return ", ".join(value) if name.lower() == "env" else shlex.join(value)


def _text(value: object) -> str:
    return "" if value is None else str(value)
