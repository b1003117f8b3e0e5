"""What the exit code of a process tells, as shells have it."""

from __future__ import annotations

import signal
from typing import Final

_SIGNALS: Final = frozenset(int(one) for one in signal.Signals)


def signal_of(exit_code: int | None) -> str | None:
    """Return the name of the signal that an exit code tells of, as shells have it: 137 is "SIGKILL"."""
    number = (exit_code or 0) - 128
    return signal.Signals(number).name if number in _SIGNALS else None
