"""Values of a submitter that land in a path or a bind of the queue's owner: no way out of the place that is meant.

The owner writes `/data/{{team}}:/data`; a value `../..`, one with a `:` or a `,` in it, an empty one or a new line
would make another path, or another bind, of it. What the owner's `pattern` or `enum` lets through is taken as it is:
then the owner has said which values there may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefect_launch.errors import UnsafeSpecError
from prefect_launch.policy.macros import SUBMITTED
from prefect_launch.policy.template import QueueConfig, fill_text, named_in
from prefect_launch.spec.option_names import normalise_options

#: Options whose value is a path, or holds one, whether or not a `/` is written beside the placeholder.
_PATHS: Final = frozenset({"device", "mount", "tmpfs", "volume", "workdir"})
#: Options of several fields, which these characters divide.
_FIELDS: Final = frozenset({"add-host", "device", "mount", "tmpfs", "volume"})
_DIVIDERS: Final = ':,"'


def check_path_values(config: QueueConfig, values: Mapping[str, Any], macros: Mapping[str, str]) -> None:
    """Refuse values that would change the meaning of a path or a bind which they are filled into.

    Args:
        config: the queue's.
        values: of its template variables, as the submitter gave them; checked against their schemas.
        macros: what `prefect_launch.policy.macros` fills in. Those of a submitter's choice, such as `run_name`, are
            looked at.

    Raises:
        UnsafeSpecError: naming the variable, its value, the option and the rule.
    """
    defaults = {name: rule["default"] for name, rule in config.template_variables.items() if "default" in rule}
    for option, text in _texts(normalise_options(config.resource_args)):
        names = [name for name in named_in(text) if _is_free(name, config, values)]
        for name in names:
            given = macros.get(name[2:-1]) if name.startswith("$") else values.get(name)
            if not isinstance(given, str):
                continue
            fault = _fault(given, option, text) or _climbs(text, {**defaults, **values}, macros)
            if fault:
                raise UnsafeSpecError(_refusal(name, given, option, fault))


def _is_free(name: str, config: QueueConfig, values: Mapping[str, Any]) -> bool:
    """Whether a submitter chose the value, and the owner has not said which there may be."""
    if name.startswith("$"):
        return name[2:-1] in SUBMITTED
    schema = config.template_variables.get(name, {})
    is_default = "default" in schema and values.get(name) == schema["default"]
    return name in values and not is_default and not schema.keys() & {"enum", "pattern"}


def _fault(value: str, option: str, text: str) -> str | None:
    """Return the rule that a value breaks where it stands; `None` when it breaks none."""
    if option not in _PATHS | _FIELDS and "/" not in text:
        return None
    if not value.strip():
        return "it must not be empty"
    if not value.isprintable():
        return "it must have no line breaks and no control characters"
    if option in _FIELDS and set(value) & set(_DIVIDERS):
        return "it must have no ':', ',' or '\"', which divide the option's fields"
    if value.startswith("/"):
        return "it must be no absolute path"
    if {".", ".."} & set(value.split("/")):
        return "it must not lead out of its folder ('.' and '..')"
    return None


def _climbs(text: str, values: Mapping[str, Any], macros: Mapping[str, str]) -> str | None:
    """Return a rule that is broken by a value and the owner's text together: `.` in `/data/.{{team}}` makes `..`."""
    filled = fill_text(text, values, macros)
    if _dots(filled) > _dots(fill_text(text, _Letters(), _Letters())):
        return "it must not lead out of its folder ('.' and '..')"
    return None


def _dots(text: str) -> int:
    return sum(part in (".", "..") for part in re.split(r"[/:,=]", text)) if "/" in text else 0


class _Letters(dict[str, str]):
    """A letter for whatever is named."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "x"


def _refusal(name: str, value: str, option: str, fault: str) -> str:
    if name.startswith("$"):
        return (
            f"{name[2:-1]} cannot be {value!r} on this queue, which puts it into a path or a bind (its option"
            f" {option!r}): {fault}. Choose another."
        )
    return (
        f"Template variable {name!r} cannot be {value!r}, which the queue puts into a path or a bind (its option"
        f" {option!r}): {fault}. Give another value; the queue's owner can say which there may be by a pattern or an"
        " enum of the variable."
    )


def _texts(value: Any, option: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in options, each with the option that it stands in; a variable of env as `env.NAME`."""
    if isinstance(value, str):
        yield option, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, name if not option else f"{option}.{name}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, option)
