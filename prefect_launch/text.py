"""Text that a server can keep: whole characters, which not every Python text has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_fault(value: str, path: str) -> str | None:
    """Say what keeps a text from being kept; `None` when nothing does.

    Args:
        value: the text.
        path: what it is, for the message.
    """
    if "\0" in value:
        return f"{path} holds a NUL character, which PostgreSQL does not keep"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{path} holds half of a character (a lone surrogate); write it as whole UTF-8 text"
    return None


def nested_text_fault(value: Any, path: str) -> str | None:
    """Say the same of the first such text in nested mappings and sequences, their names included."""
    if isinstance(value, str):
        return text_fault(value, path)
    if isinstance(value, Mapping):
        for key in value:
            if fault := text_fault(str(key), f"a name in {path}"):
                return fault
        children = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None
    return next((fault for name, item in children if (fault := nested_text_fault(item, name))), None)
