"""Durations, sizes, counts and points in time, as people write and read them.

A time always names its zone: UTC where readers sit anywhere (the server's messages, a log), this machine's zone where
its user reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from prefect_launch.errors import SpecError

_SECONDS_OF_UNIT: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: A number and its unit; of the unit's spelling the first letter decides: `m`, `min`, `minutes`.
_PART: Final = re.compile(
    r"\s*(\d+(?:\.\d+)?)\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|)(?![a-z])(?:\s|(?=\d)|$)",
    re.IGNORECASE,
)


def parse_duration(value: Any) -> float | None:
    """Return a duration in seconds; `None` for `None` and for an empty text.

    Raises:
        SpecError: when it is no duration, or not longer than zero.
    """
    if value is None or value == "":
        return None
    seconds = _seconds_in(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds <= 0:
        raise SpecError(
            f"Invalid duration {value!r}: give seconds as a number above 0, or a text such as '90s', '45min', '2h' or"
            " '1h30m'."
        )
    return float(seconds)


def _seconds_in(text: str) -> float | None:
    total, place = 0.0, 0
    while place < len(text):
        part = _PART.match(text, place)
        if part is None or (not part[2] and (place or part.end() < len(text))):
            return None
        total += float(part[1]) * _SECONDS_OF_UNIT[part[2][:1].lower() or "s"]
        place = part.end()
    return total


def format_duration(seconds: float) -> str:
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


# --- sizes in bytes ---

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[bkmgt]?)(?:i?b)?\Z", re.IGNORECASE)

_SIZE_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

#: The engine counts in 64 bits, the sign among them.
MAX_INTEGER = 2**63 - 1
_NAMED = ("B", "KiB", "MiB", "GiB", "TiB")


def as_text(value: object) -> str:
    """A text, or a number as one."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or str(value) == "" or "\0" in str(value):
        raise ValueError("it must be text or a number, and not empty")
    return str(value)


def parse_size(value: object) -> int:
    """Bytes: a number, or one with a unit (`512m`, `1.5g`)."""
    found = _SIZE.match(as_text(value).strip())
    if not found:
        raise ValueError('it must be a number of bytes, or one with a unit: b, k, m, g or t, such as "512m"')
    size = float(found["number"]) * _SIZE_UNITS[found["unit"].lower()]
    if size > MAX_INTEGER:
        raise ValueError("it must be less than 8 EiB")
    return int(size)


def format_size(amount: int) -> str:
    """Say an amount of bytes as people do, such as `3.1 GiB`."""
    value, unit = float(amount), _NAMED[0]
    for unit in _NAMED:
        if value < 1024 or unit == _NAMED[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == _NAMED[0] else f"{value:.1f} {unit}"


# --- counts ---


def counted(count: float, thing: str) -> str:
    """Return a number of things, such as `1 node` or `1,200 nodes`."""
    number = f"{count:,g}" if isinstance(count, float) else f"{count:,}"
    return f"{number} {thing}" if count == 1 else f"{number} {thing}s"


# --- points in time ---


def utc_time(moment: datetime) -> str:
    """Return a moment such as `2026-05-04 12:05:00 UTC`."""
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def local_time(moment: datetime) -> str:
    """Return a moment in this machine's zone, such as `2026-05-04 14:05:00 +02:00`."""
    here = moment.astimezone()
    return f"{here:%Y-%m-%d %H:%M:%S} {_zone(here)}"


def utc_minute(moment: datetime) -> str:
    """Return a moment to the minute, such as `12:05 UTC`; with its date when that is not today's."""
    return _minute(moment.astimezone(timezone.utc))


def local_minute(moment: datetime) -> str:
    """Return a moment to the minute in this machine's zone; with its date when that is not today's."""
    return _minute(moment.astimezone())


def _minute(moment: datetime) -> str:
    is_today = moment.date() == datetime.now(timezone.utc).astimezone(moment.tzinfo).date()
    return f"{moment:{'%H:%M' if is_today else '%Y-%m-%d %H:%M'}} {_zone(moment)}"


def _zone(moment: datetime) -> str:
    return moment.isoformat()[-6:] if moment.utcoffset() else "UTC"
