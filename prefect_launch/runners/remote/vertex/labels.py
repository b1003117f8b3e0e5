"""Labels of a run as labels of Google Cloud, and back exactly.

Google takes small letters, digits, `_` and `-`, at most 63 of them. A key's dots and dashes are `_`. In a value, each
other byte is `_` and its two hexadecimal digits, `_` itself too. A value that is longer then goes on in further labels,
whose keys end with `_2`, `_3` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from prefect_launch.runners.base import Labels

_MOST_CHARS: Final = 63
_NAMES: Final = {
    name.replace(".", "_").replace("-", "_"): name
    for attribute, name in vars(Labels).items()
    if attribute.isupper() and isinstance(name, str)
}
_PREFIX: Final = "prefect_launch_"
_PART: Final = re.compile(r"(.+?)(?:_(\d+))?")
_OTHER: Final = re.compile(rb"[^a-z0-9-]")


def is_own_key(key: str) -> bool:
    """Whether a label's key is one that only the runner sets."""
    return key.startswith(_PREFIX)


def as_google(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a run as Google takes them."""
    made: dict[str, str] = {}
    for name, value in labels.items():
        key = name.replace(".", "_").replace("-", "_")
        text = _OTHER.sub(lambda found: b"_%02x" % found[0][0], value.encode(errors="surrogateescape")).decode()
        parts = [text[start : start + _MOST_CHARS] for start in range(0, len(text), _MOST_CHARS)] or [""]
        made |= {key if number == 1 else f"{key}_{number}": part for number, part in enumerate(parts, 1)}
    return made


def from_google(found: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a run that a job has; those of others are left out."""
    parts: dict[str, dict[int, str]] = {}
    for key, value in found.items():
        match = _PART.fullmatch(key)
        if match is not None and match[1] in _NAMES:
            parts.setdefault(_NAMES[match[1]], {})[int(match[2] or 1)] = value
    return {name: _decoded("".join(text for _, text in sorted(pieces.items()))) for name, pieces in parts.items()}


def _decoded(text: str) -> str:
    return unquote(text.replace("_", "%"), errors="surrogateescape")
