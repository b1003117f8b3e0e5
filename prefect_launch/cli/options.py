"""Shared options of commands, and the common parts of their help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, Final, get_type_hints

import typer

CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}

JsonOption = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON instead of text.")]
EntityOption = Annotated[
    str | None,
    typer.Option("-e", "--entity", metavar="ENTITY", help="Owner. Default: LAUNCH_ENTITY, or 'default'."),
]
ProjectOption = Annotated[
    str | None,
    typer.Option("-p", "--project", metavar="PROJECT", help="Project. Default: LAUNCH_PROJECT, or 'default'."),
]
ConfigOption = Annotated[
    str | None, typer.Option("-c", "--config", metavar="CONFIG", help="A launch config: JSON, YAML, or a file.")
]
RetriesOption = Annotated[
    str | None,
    typer.Option(
        "--retries",
        metavar="RULE",
        help='Retry rule: how often at most, or {"max": 3, "on": ["failed", "oom"], "delay": 30}.',
    ),
]


def group(help_text: str) -> typer.Typer:
    """Make a group of commands."""
    return typer.Typer(help=help_text, context_settings=CONTEXT, rich_markup_mode="rich", add_completion=False)


def single() -> typer.Typer:
    """Make an app for one command outside any group."""
    return typer.Typer(context_settings=CONTEXT, rich_markup_mode="rich", add_completion=False)


def examples(*lines: str) -> str:
    """Make the epilog of a command's help: one example a line."""
    shown = [f"  [cyan]{line.replace('[', chr(92) + '[')}[/cyan]" for line in lines]
    return "\n".join(["[bold]Examples[/bold]", *shown])


# Options from a dataclass: a command takes the dataclass as one value, its users see the fields as options.


def flattened(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that turns the fields of a command's dataclass into options of the command.

    Args:
        without: fields that are not options of this command; they keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        (pack,) = [one for one in signature.parameters.values() if is_dataclass(one.annotation)]
        kind: type[Any] = pack.annotation
        shared = [field for field in fields(kind) if field.name not in without]
        hints = get_type_hints(kind, include_extras=True)

        @functools.wraps(command)
        def called(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in shared}
            command(**given, **{pack.name: kind(**values)})

        parameters: list[Parameter] = []
        for one in signature.parameters.values():
            parameters += [_option(field, hints) for field in shared] if one is pack else [_by_keyword(one)]
        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def _option(field: Field[Any], hints: dict[str, Any]) -> Parameter:
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])


def _by_keyword(parameter: Parameter) -> Parameter:
    return parameter.replace(kind=Parameter.KEYWORD_ONLY)
