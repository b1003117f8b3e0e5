"""Sizes in bytes: read from what people write, and said as people do."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[bkmgt]?)(?:i?b)?\Z", re.IGNORECASE)

_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

#: The engine counts in 64 bits, the sign among them.
MAX_INTEGER = 2**63 - 1
_NAMED = ("B", "KiB", "MiB", "GiB", "TiB")


def text(value: object) -> str:
    """A text, or a number as one."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or str(value) == "" or "\0" in str(value):
        raise ValueError("it must be text or a number, and not empty")
    return str(value)


def size(value: object) -> int:
    """Bytes: a number, or one with a unit (`512m`, `1.5g`)."""
    found = _SIZE.match(text(value).strip())
    if not found:
        raise ValueError('it must be a number of bytes, or one with a unit: b, k, m, g or t, such as "512m"')
    size = float(found["number"]) * _UNITS[found["unit"].lower()]
    if size > MAX_INTEGER:
        raise ValueError("it must be less than 8 EiB")
    return int(size)


def in_bytes(amount: int) -> str:
    """Say an amount of bytes as people do, such as `3.1 GiB`."""
    value, unit = float(amount), _NAMED[0]
    for unit in _NAMED:
        if value < 1024 or unit == _NAMED[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == _NAMED[0] else f"{value:.1f} {unit}"
