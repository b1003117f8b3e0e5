"""When a waiting item will start, from how long past runs took: a guess for people, never a promise.

Pure: it plays the line through, slot by slot, as if every run took as long as the typical past one. What fails, is
cancelled or comes in with a higher priority meanwhile moves it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

#: What is left of a run that takes longer than the typical one, as a share of that.
_OVERTIME: Final = 0.1


class Past(BaseModel):
    """Past runs, as far as a forecast needs them."""

    model_config = ConfigDict(frozen=True)

    seconds: tuple[float, ...] = Field(description="How long each took.")
    job: str = Field(default="", description="The job that they are of; empty: any job of the queue.")

    @property
    def typical_seconds(self) -> float:
        """Their median."""
        return median(self.seconds)

    def describe(self) -> str:
        """Say what they are, such as `20 past runs of train`."""
        runs = f"{len(self.seconds)} past run{'' if len(self.seconds) == 1 else 's'}"
        return f"{runs} of {self.job}" if self.job else f"{runs} of the queue"


def seconds_until_start(*, ahead: int, running: Sequence[float], slots: int | None, typical: float) -> float:
    """Return when the item behind `ahead` others gets a slot, in seconds from now.

    Args:
        ahead: how many start before it.
        running: for how long each item in work has been running, in seconds.
        slots: how many run at a time; `None`: any number.
        typical: how long a run takes, in seconds.
    """
    if slots is None:
        return 0.0
    ends = sorted(max(typical - seconds, typical * _OVERTIME) for seconds in running)
    # When more run than may (the limit was lowered), the first to end free no slot.
    free_at = ends[max(0, len(ends) - slots) :] + [0.0] * max(0, slots - len(ends))
    heapq.heapify(free_at)
    for _ in range(ahead):
        heapq.heapreplace(free_at, free_at[0] + typical)
    return free_at[0]
