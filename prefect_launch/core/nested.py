"""Nested values by dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(values: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Return nested values by dotted names; an empty group is a value.

    Args:
        values: by name; a group of values is a mapping.
        group: the name of the group that they are in.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{group}.{name}" if group else name
        found |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found
