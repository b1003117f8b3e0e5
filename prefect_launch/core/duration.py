"""Durations as people write them: seconds as a number, or `90s`, `45 min`, `2h`, `1h30m`, `2d`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

from prefect_launch.errors import SpecError

_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: A number and its unit; of the unit's spelling the first letter decides: `m`, `min`, `minutes`.
_PART: Final = re.compile(
    r"\s*(\d+(?:\.\d+)?)\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|)(?![a-z])(?:\s|(?=\d)|$)",
    re.IGNORECASE,
)


def read_duration(value: Any) -> float | None:
    """Return a duration in seconds; `None` and an empty text are none.

    Raises:
        SpecError: when it is no duration, or not longer than zero.
    """
    if value is None or value == "":
        return None
    seconds = _parse(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds <= 0:
        raise SpecError(
            f"Invalid duration {value!r}: give seconds as a number above 0, or a text such as '90s', '45min', '2h' or"
            " '1h30m'."
        )
    return float(seconds)


def _parse(text: str) -> float | None:
    total, place = 0.0, 0
    while place < len(text):
        part = _PART.match(text, place)
        if part is None or (not part[2] and (place or part.end() < len(text))):
            return None
        total += float(part[1]) * _UNITS[part[2][:1].lower() or "s"]
        place = part.end()
    return total


def in_words(seconds: float) -> str:
    """Return a duration as people say it, exactly: `2 h`, `1 h 30 min`, `90 s` as `1 min 30 s`."""
    parts = []
    left = round(seconds, 1)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        whole, left = divmod(left, size)
        if whole:
            parts.append(f"{whole:g} {unit}")
    if left or not parts:
        parts.append(f"{round(left, 1):g} s")
    return " ".join(parts)


#: A field of a frozen value that holds a time limit.
TimeLimit = Annotated[
    float | None,
    BeforeValidator(read_duration),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}, mode="validation"),
]
