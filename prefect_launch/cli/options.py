"""Options of commands: those that several share, the common parts of their help, and the values that they read.

A value is `NAME=VALUE`, JSON, YAML, or a file. The schema decides its type: `--set tag=1.10` stays text when the job's
input is a string.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer
import typer.core

from prefect_launch.errors import SpecError

#: Long options of W&B's command, by the ones here that they mean.
_OF_WANDB: Final[Mapping[str, str]] = {"set-var": "template-variable", "git-version": "git-ref"}
CONTEXT: Final[dict[str, Any]] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: _OF_WANDB.get(name, name),
}

ItemId = Annotated[str, typer.Argument(metavar="ID", help="The item's id, its last 8 characters, or its name.")]
ItemIds = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Items: their ids, the last 8 characters, or their names.")
]
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

ArgsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- ARGS", help="After '--': arguments of the job's program.", show_default=False),
]


_REST: Final = "arguments of the program follow '--'"


class PassesArgs(typer.core.TyperCommand):
    """A command whose parameter `args` takes all that follows `--`, and nothing before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line: options, then what follows `--`."""
        end = args.index("--") if "--" in args else len(args)
        try:
            rest = super().parse_args(ctx, args[:end])
        except Exception as error:
            usage: Any = error
            if hasattr(usage, "possibilities"):  # an unknown option, of click or of typer's copy of it
                usage.message += f"; {_REST}"
            raise
        if unexpected := ctx.params["args"]:
            ctx.fail(f"Got unexpected extra argument ({' '.join(unexpected)}); {_REST}")
        ctx.params["args"] = args[end + 1 :]
        return rest


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


# Values on a command line: `NAME=VALUE`, JSON, YAML, and files of them.

_TYPE_OF: Final[Mapping[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}


def read_mapping(given: str, option: str) -> dict[str, Any]:
    """Read a mapping from JSON, YAML, or a file of either.

    Raises:
        SpecError: when it is neither, is no mapping, or holds NaN or Infinity.
    """
    path = Path(given)
    text, what = given, f"{option} {_short(given)!r}"
    if _is_file(path):
        text, what = _read(path, option), f"The file {given!r} of {option}"
    value = _parse(text, what, strict=path.suffix == ".json" and text is not given)
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if text is given and isinstance(value, str):
        raise SpecError(f"{what} is neither a file that exists nor a JSON or YAML mapping, such as '{{\"key\": 1}}'.")
    raise SpecError(
        f"{what} must hold a mapping of names to values, not {type(value).__name__} {_short(str(value))!r}."
    )


def read_mappings(path: Path, option: str) -> list[dict[str, Any]]:
    """Read a list of mappings from a file: a JSON or YAML list, or JSON lines (`.jsonl`).

    Raises:
        SpecError: when it cannot be read, or is no list of mappings.
    """
    text, file = _read(path, option), f"file {str(path)!r} of {option}"
    what = f"The {file}"
    if path.suffix == ".jsonl":
        lines = [(f"Line {number} of the {file}", line) for number, line in enumerate(text.splitlines(), start=1)]
        found: Any = [_parse(line, where, strict=True) for where, line in lines if line.strip()]
    else:
        found = _parse(text, what, strict=path.suffix == ".json")
    if found is None:  # an empty YAML file
        return []
    if not isinstance(found, list):
        raise SpecError(f"{what} must hold a list of mappings, not {type(found).__name__} {_short(str(found))!r}.")
    for number, one in enumerate(found, start=1):
        if not isinstance(one, Mapping):
            raise SpecError(
                f"{what} must hold a list of mappings, and its entry {number} is {type(one).__name__}"
                f" {_short(str(one))!r}."
            )
    return [{str(key): item for key, item in one.items()} for one in found]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long or odd text is no path
        return False


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"The file {str(path)!r} of {option} cannot be read: {error}.") from None


def _parse(text: str, what: str, *, strict: bool) -> Any:
    """Parse JSON, or else YAML; with `strict`, JSON only."""
    try:
        return json.loads(text, parse_constant=lambda word: _refuse_constant(word, what))
    except json.JSONDecodeError as error:
        if strict:
            raise SpecError(f"{what} is no JSON: {error}.") from None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{what} is neither JSON nor YAML: {reason}.") from None


def _refuse_constant(word: str, what: str) -> Any:
    raise SpecError(f"{what} holds {word}, which JSON does not have. Use a number, or text in quotes.")


def read_retries(given: str, option: str = "--retries") -> dict[str, Any]:
    """Read a retry rule from a whole number or a mapping (see `read_mapping`); returns a mapping.

    Raises:
        SpecError: when it is no good rule.
        NotFoundError: for an unknown option or cause; names the nearest right one.
    """
    from prefect_launch.spec.scheduling import parse_retries

    number = re.fullmatch(r"\s*([+-]?\d+)\s*", given)
    try:
        value = int(number[1]) if number else read_mapping(given, option)
    except SpecError as error:
        raise SpecError(f"{error} A whole number, such as '{option} 3', says how often at most.") from None
    rule = parse_retries(value, option)
    return rule.model_dump(mode="json", exclude_unset=True)


def split_assignment(text: str, option: str) -> tuple[str, str]:
    """Split `NAME=VALUE` at its first `=`; the value may hold more of them.

    Raises:
        SpecError: when there is no `=`, or no name before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SpecError(f"{option} takes NAME=VALUE, such as '{option} size=3'; got {text!r}.")
    return name.strip(), value


def typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """Return a text as a value of the type that its schema declares.

    A text stays text if the schema's type is a string. Otherwise it is read as JSON, and stays text if it is not JSON:
    the schema's own check then names the fault.
    """
    types = _types(schema or {})
    if types and types <= {"string", "null"}:
        return None if text == "null" and "null" in types else text
    try:
        value = json.loads(text, parse_constant=float)
    except json.JSONDecodeError:
        return _lenient(text, types)
    if types and _TYPE_OF[type(value)] not in types | ({"integer"} if "number" in types else set()):
        return text if "string" in types else value
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _lenient(text: str, types: set[str]) -> Any:
    """Read what people write instead of JSON: `True`, `.5`."""
    if "boolean" in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if types & {"number", "integer"} and "string" not in types:
        try:
            value = float(text)
        except ValueError:
            return text
        return value if math.isfinite(value) else text
    return text


def _types(schema: Mapping[str, Any]) -> set[str]:
    given = schema.get("type", ())
    found = {given} if isinstance(given, str) else set(given)
    found |= {_TYPE_OF[type(value)] for value in schema.get("enum", ()) if not found}
    for keyword in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(keyword, ()):
            found |= _types(part)
    return found


def nested(
    assignments: Iterable[tuple[str, str]],
    schema: Mapping[str, Any] | None,
    read: Callable[[str, Mapping[str, Any] | None], Any] = typed,
) -> dict[str, Any]:
    """Make a job's inputs from assignments: `a.b=1` sets `b` in the group `a`, unless the job has an input `a.b`.

    Args:
        assignments: names and texts.
        schema: of the job's inputs.
        read: makes a value of a text and its schema.

    Raises:
        SpecError: when one name is both a value and a group.
    """
    inputs: dict[str, Any] = {}
    for name, text in assignments:
        *groups, last = [name] if name in _properties(schema) else name.split(".")
        if "" in (*groups, last):
            raise SpecError(
                f"Invalid input name {name!r}: a part of it is empty. Write a.b for the input b of the group a."
            )
        place, here = inputs, schema
        for group in groups:
            here = _properties(here).get(group)
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise SpecError(
                    f"The input {name!r} is set in {group!r}, which was given a value of its own. Keep one."
                )
        place[last] = read(text, _properties(here).get(last))
    return inputs


def _properties(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = (schema or {}).get("properties")
    return found if isinstance(found, Mapping) else {}


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
