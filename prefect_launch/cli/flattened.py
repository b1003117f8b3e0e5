"""Options that several commands share: one dataclass, which each of them takes as a value and its users as options.

Typer reads a command's options off its signature, so a command gets one in which the dataclass's fields stand in its
place. The order of the fields is the order in the help.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def flattened(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of the dataclass that it takes as options of its own.

    Args:
        without: the fields that are no options of this command; they keep their defaults.
    """

    def give(command: Callable[..., None]) -> Callable[..., None]:
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

    return give


def _option(field: Field[Any], hints: dict[str, Any]) -> Parameter:
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])


def _by_keyword(parameter: Parameter) -> Parameter:
    return parameter.replace(kind=Parameter.KEYWORD_ONLY)
