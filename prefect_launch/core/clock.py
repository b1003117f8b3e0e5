"""The clock that says how old is what an agent knows."""

from __future__ import annotations

import time


def now() -> float:
    """Return seconds on a monotonic clock that also counts while the machine sleeps, if it has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
