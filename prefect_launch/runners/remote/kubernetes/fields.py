"""Check of a Kubernetes manifest against the fields of the API: unknown fields, missing ones, wrong types.

The table of fields (`fields.json`) is made of the models of kubernetes_asyncio by `scripts/kubernetes_fields.py`, so
that a submitter needs no client library. A field that a newer server has can be let through by the queue's
owner (`allow-fields`). What only a server knows (immutable fields, quotas, admission) is not checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from prefect_launch.errors import SpecError, nearest_name

#: How deep a manifest may be nested.
_MAX_DEPTH: Final = 100
#: How much of a value a message shows.
_SHOWN_CHARS: Final = 80
_MAP: Final = "dict("
_LIST: Final = "list["
#: Maps of quantities: a number is as good as its text there, for YAML's `cpu: 2`.
_QUANTITIES: Final = frozenset({"limits", "requests", "overhead", "capacity"})


class Entry(NamedTuple):
    """One entry of nested mappings and lists.

    Attributes:
        path: where it stands, such as `spec.template.spec.containers[0].image`.
        key: its own key; empty for an item of a list.
        value: that it holds.
    """

    path: str
    key: str
    value: Any


def walk(value: Any, path: str = "") -> Iterator[Entry]:
    """Yield every entry of nested mappings and lists, from the top down."""
    # A stack of our own: a manifest nested a thousand deep must end in an answer, not in a RecursionError.
    waiting = [(path, value)]
    while waiting:
        here, current = waiting.pop()
        if isinstance(current, Mapping):
            entries = [Entry(join(here, key), str(key), item) for key, item in current.items()]
            yield from entries
            waiting.extend((entry.path, entry.value) for entry in reversed(entries))
        elif isinstance(current, (list, tuple)):
            items = [Entry(f"{here}[{index}]", "", item) for index, item in enumerate(current)]
            yield from items
            waiting.extend((entry.path, entry.value) for entry in reversed(items))


def unshared(value: Any) -> Any:
    """Return a copy of nested mappings and lists in which no part is another's too, as an alias of YAML makes it."""
    if isinstance(value, Mapping):
        return {key: unshared(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [unshared(item) for item in value]
    return value


def join(path: str, key: object) -> str:
    """Return the path of a key below a path."""
    return f"{path}.{key}" if path else str(key)


def shown(value: Any) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


@lru_cache(maxsize=1)
def field_table() -> dict[str, dict[str, str]]:
    """Return the types of the fields of each type of the API; a required field's type ends with `!`."""
    text = files(__package__).joinpath("fields.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, str]] = json.loads(text)
    return table


def check_fields(value: Any, kind: str, path: str, *, allowed: Collection[str] = ()) -> None:
    """Refuse a value that is not of a type of the API.

    Args:
        value: to check.
        kind: the type's name, such as `V1Job`.
        path: of the value, for messages.
        allowed: names of fields that are let through wherever they stand.

    Raises:
        SpecError: with the path, the value, the rule and the nearest known field.
    """
    if next((entry for entry in walk(value) if entry.path.count(".") > _MAX_DEPTH), None):
        raise SpecError(f"{path} is nested more than {_MAX_DEPTH} levels deep. A manifest needs no more than about 15.")
    _check(value, kind, path, frozenset(allowed))


def _check(value: Any, kind: str, path: str, allowed: Collection[str]) -> None:
    if value is None or kind == "object":
        return
    if kind.startswith(_LIST):
        if not isinstance(value, (list, tuple)):
            raise _wrong(path, value, "it must be a list")
        for index, item in enumerate(value):
            if item is None:
                raise _wrong(f"{path}[{index}]", item, "an entry of a list must not be empty")
            _check(item, kind[len(_LIST) : -1], f"{path}[{index}]", allowed)
    elif kind.startswith(_MAP):
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "it must be a mapping of names to values")
        of_items = kind[len(_MAP) : -1].partition(", ")[2]
        takes_numbers = path.rpartition(".")[2] in _QUANTITIES
        for key, item in value.items():
            if not (takes_numbers and isinstance(item, (int, float)) and not isinstance(item, bool)):
                _check(item, of_items, join(path, key), allowed)
    elif kind in field_table():
        _check_object(value, kind, path, allowed)
    else:
        _check_plain(value, kind, path)


def _check_object(value: Any, kind: str, path: str, allowed: Collection[str]) -> None:
    fields = field_table()[kind]
    if not isinstance(value, Mapping):
        raise _wrong(path, value, f"it must be a mapping with fields such as {', '.join(sorted(fields)[:4])}")
    for key, item in value.items():
        if key in fields:
            _check(item, fields[key].removesuffix("!"), join(path, key), allowed)
        elif key not in allowed:
            raise _unknown(path, key, fields)
    for name, of_field in fields.items():
        if of_field.endswith("!") and value.get(name) is None:
            raise SpecError(f"{path} has no field {name!r}, which it must have. Add {join(path, name)}.")


def _check_plain(value: Any, kind: str, path: str) -> None:
    if kind in ("str", "datetime"):
        if not isinstance(value, str):
            raise _wrong(path, value, "it must be text. Put it in quotes", stop="")
    elif kind == "bool":
        if not isinstance(value, bool):
            raise _wrong(path, value, "it must be true or false, without quotes")
    elif kind == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(path, value, "it must be a whole number, without quotes")
    elif kind == "float" and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise _wrong(path, value, "it must be a number, without quotes")


def _wrong(path: str, value: Any, rule: str, *, stop: str = ". Correct it") -> SpecError:
    return SpecError(f"{path} is {shown(value)}: {rule}{stop}.")


def _unknown(path: str, key: object, fields: Collection[str]) -> SpecError:
    near = _same_letters(str(key), fields) or nearest_name(key, fields)
    hint = f" Did you mean {near!r}?" if near else ""
    known = ", ".join(sorted(fields))
    return SpecError(
        f"{path} has a field {shown(key)}, which the Kubernetes API does not have there.{hint} Known: {known}. Correct"
        " it; for a field that only a newer server knows, the queue's owner adds its name to allow-fields."
    )


def _same_letters(key: str, fields: Collection[str]) -> str | None:
    """Return the field that is written with the same letters, as `node_selector` for `nodeSelector`."""
    plain = re.sub(r"[_-]", "", key).casefold()
    return next((name for name in fields if name.casefold() == plain), None)
