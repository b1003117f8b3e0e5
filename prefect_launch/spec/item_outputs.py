"""Outputs of one item as inputs of another: an input `{item: ID, path: model.pt}` is a file that the item has left.

The program gets the path of its own copy in that place, which the agent fetches before the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from prefect_launch.errors import InputError

_KEYS: Final = frozenset({"item", "path"})

#: Names that lead to an input through its groups.
Keys = tuple[str, ...]


class ItemOutput(BaseModel):
    """A file, or a folder of files, that an item has left.

    Attributes:
        item: id of the item, a UUID.
        path: relative, in the item's outputs.
    """

    model_config = ConfigDict(frozen=True)

    item: str
    path: str

    @property
    def place(self) -> str:
        """Where its copy lies, in the folder of all such inputs of a run."""
        return f"{self.item}/{self.path}"


def item_outputs(inputs: Mapping[str, Any], schema: Mapping[str, Any] | None = None) -> dict[Keys, ItemOutput]:
    """Return the inputs that stand for outputs of items.

    Args:
        inputs: of a run.
        schema: of its job's inputs. Where that declares a group of inputs, a mapping is that group.

    Raises:
        InputError: when one names no item, or no file in its outputs.
    """
    return {keys: _read(".".join(keys), value) for keys, value in named_outputs(inputs, schema)}


def with_values(inputs: Mapping[str, Any], values: Mapping[Keys, Any]) -> dict[str, Any]:
    """Return a copy of inputs with other values in some places."""
    changed = deepcopy(dict(inputs))
    for (*groups, last), value in values.items():
        group = changed
        for name in groups:
            group = group[name]
        group[last] = value
    return changed


def placed_inputs(inputs: Mapping[str, Any], schema: Mapping[str, Any] | None, folder: str) -> dict[str, Any]:
    """Return inputs as the program gets them, with paths of files in the place of the outputs of items.

    Args:
        inputs: of a run.
        schema: of its job's inputs.
        folder: where the program sees its copies.

    Raises:
        InputError: as `item_outputs`.
    """
    found = item_outputs(inputs, schema)
    return with_values(inputs, {keys: f"{folder}/{one.place}" for keys, one in found.items()})


def named_outputs(
    inputs: Mapping[str, Any], schema: Mapping[str, Any] | None, above: Keys = ()
) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """Yield what `item_outputs` reads, as it was written."""
    declared = (schema or {}).get("properties") or {}
    for name, value in inputs.items():
        if not isinstance(value, Mapping):
            continue
        own = declared.get(name)
        if value.keys() == _KEYS and not (own or {}).get("properties"):
            yield (*above, name), value
        else:
            yield from named_outputs(value, own, (*above, name))


def _read(name: str, value: Mapping[str, Any]) -> ItemOutput:
    path = PurePosixPath(str(value["path"]))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(
            f"The input {name!r} names the file {value['path']!r} of an item; it must be a path in the item's outputs,"
            " such as 'model.pt'. 'prefect-launch item outputs' lists them."
        )
    try:
        item = UUID(str(value["item"]))
    except ValueError:
        raise InputError(
            f"The input {name!r} is a file of the item {value['item']!r}; it must be the whole id of an item, as"
            " launch_add and 'prefect-launch item list --json' give it."
        ) from None
    return ItemOutput(item=str(item), path=str(path))
