"""What all commands' help has in common, and the options that many of them take."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}

JsonOption = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON instead of text.")]
EntityOption = Annotated[
    str | None,
    typer.Option("-e", "--entity", metavar="ENTITY", help="Who owns it. Default: LAUNCH_ENTITY, or 'default'."),
]
ProjectOption = Annotated[
    str | None,
    typer.Option("-p", "--project", metavar="PROJECT", help="Its project. Default: LAUNCH_PROJECT, or 'default'."),
]
ConfigOption = Annotated[
    str | None, typer.Option("-c", "--config", metavar="CONFIG", help="A launch config: JSON, YAML, or a file of it.")
]
RetriesOption = Annotated[
    str | None,
    typer.Option(
        "--retries",
        metavar="RULE",
        help='When it is run again: how often at most, or {"max": 3, "on": ["failed", "oom"], "delay": 30}.',
    ),
]


def group(help_text: str) -> typer.Typer:
    """Make a group of commands."""
    return typer.Typer(help=help_text, context_settings=CONTEXT, rich_markup_mode="rich", add_completion=False)


def single() -> typer.Typer:
    """Make the home of one command that is in no group."""
    return typer.Typer(context_settings=CONTEXT, rich_markup_mode="rich", add_completion=False)


def examples(*lines: str) -> str:
    """Make the epilog of a command's help: one example a line."""
    shown = [f"  [cyan]{line.replace('[', chr(92) + '[')}[/cyan]" for line in lines]
    return "\n".join(["[bold]Examples[/bold]", *shown])
