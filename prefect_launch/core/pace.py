"""Pace of work that is repeated for each of many runs: with more runs, each has its turn less often.

So what an agent spends on its runs while nothing happens does not grow with their number.
"""

from __future__ import annotations


class Pace:
    """The pause between two turns of one run; enter it for as long as a run has turns.

    Args:
        turns_a_second: how many turns all runs have a second, at most.

    Attributes:
        runs: how many runs have turns.
    """

    def __init__(self, turns_a_second: float) -> None:
        self._turns_a_second = turns_a_second
        self.runs = 0

    def __enter__(self) -> Pace:
        self.runs += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.runs -= 1

    def pause(self, least_seconds: float) -> float:
        """Return the pause now, in seconds.

        Args:
            least_seconds: the pause while there are few runs.
        """
        return max(least_seconds, self.runs / self._turns_a_second)
