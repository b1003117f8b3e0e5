"""Macros: `${run_id}` and the like in resource arguments, filled in on the agent when an item starts.

A macro's value comes from the item, or from a list of names that the agent's operator wrote into the agent's config.
The agent's environment is never read, so that a submitter cannot have a secret of the agent's machine written into a
spec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from prefect_launch.errors import AgentConfigError

#: What an item itself gives a value to.
BUILT_IN = (
    "project_name",
    "entity_name",
    "run_id",
    "run_name",
    "image_uri",
    "author",
    "item_id",
    "queue_name",
    "attempt",
)

#: Those of them whose value its submitter chooses freely, or nearly so.
SUBMITTED = ("project_name", "entity_name", "run_id", "run_name", "image_uri", "author")

#: A macro in a text; its name is the group.
MACRO = re.compile(r"\$\{(\w+)\}")
_NAME = re.compile(r"\w+")
_Value = TypeVar("_Value")


def macro_values(
    *,
    run_id: str,
    item_id: str,
    attempt: int,
    project_name: str | None = None,
    entity_name: str | None = None,
    run_name: str | None = None,
    image_uri: str | None = None,
    author: str | None = None,
    queue_name: str | None = None,
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the values of all macros for one attempt at one item.

    Args:
        run_id: the launch run id.
        item_id: the queue item's id.
        attempt: 1 for the first.
        project_name: and the others: `None` or empty when the item has none; the macro is then unknown, and stays as
            it is written rather than becoming the word "None".
        entity_name: the entity.
        run_name: the run's display name.
        image_uri: the container image that runs.
        author: who submitted the item.
        queue_name: the queue.
        named: the macros of the agent's config.

    Raises:
        AgentConfigError: when a name in `named` is no word, is built in, or has a value that is not text.
    """
    own = {
        "project_name": project_name,
        "entity_name": entity_name,
        "run_id": run_id,
        "run_name": run_name,
        "image_uri": image_uri,
        "author": author,
        "item_id": item_id,
        "queue_name": queue_name,
        "attempt": str(attempt),
    }
    return {**check_named_macros(named or {}), **{name: value for name, value in own.items() if value}}


def check_named_macros(named: Mapping[str, str]) -> dict[str, str]:
    """Return the macros of an agent's config when they are good.

    Raises:
        AgentConfigError: as `macro_values`.
    """
    for name, value in named.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise AgentConfigError(f"Invalid macro name {name!r}: use letters, digits and '_', as in ${{data_dir}}.")
        if name in BUILT_IN:
            raise AgentConfigError(
                f"The macro {name!r} is built in and cannot be set in the agent's config. Rename yours."
            )
        if not isinstance(value, str):
            raise AgentConfigError(f"The macro {name!r} is {value!r}; a macro's value must be text. Put it in quotes.")
    return dict(named)


def fill_macros(value: _Value, macros: Mapping[str, str]) -> _Value:
    """Return a copy of resource arguments with its macros filled in: of a run of no queue, whose caller wrote them.

    In a queue's options they are filled by `QueueConfig.fill`, in one pass with the template variables and secrets.

    Args:
        value: nested mappings and lists. Text in them is filled; keys and everything else stay. It is not changed.
        macros: as `macro_values` returns them. A macro that is not among them stays as it is written; what a value
            brings in is not filled again.
    """
    filled: Any = _fill(value, macros)
    return filled  # type: ignore[no-any-return]


def _fill(value: Any, macros: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return MACRO.sub(lambda match: macros.get(match[1], match[0]), value)
    if isinstance(value, Mapping):
        return {key: _fill(item, macros) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(item, macros) for item in value]
    return value
