"""How much of the cores a machine's programs take, and a program that takes as much."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.cpu import machine_cpu_ms
from benchmarks.figures import steady_rate
from tests.support.processes import ChildProcess

if TYPE_CHECKING:
    from typing_extensions import Self

_LOOK_SECONDS: Final = 0.1
#: Takes a share of one core: it works until it has had that, then sleeps for some milliseconds.
_WORKER: Final = """
import sys, time
share, begun = float(sys.argv[1]), time.monotonic()
while True:
    if time.process_time() < share * (time.monotonic() - begun):
        sum(range(2000))
    else:
        time.sleep(0.003)
"""


@dataclass(frozen=True)
class Pace:
    """How fast things were done.

    Attributes:
        rate: things a second.
        cores: how many cores all programs of the machine took meanwhile.
    """

    rate: float
    cores: float

    def more_than(self, floor: Pace) -> float:
        """Return how many cores it took more than the floor would take for as many things."""
        return max(0.0, self.cores - floor.cores * self.rate / floor.rate)


class CoresUsed:
    """What all programs of the machine take of its cores while the block lasts."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._cpu_ms: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def pace(self, ends: Sequence[float], parallel: int) -> Pace:
        """Return the pace of things that were done in the block, from the first one's end to the last one's.

        Args:
            ends: when each was done, in seconds since the epoch; more than `parallel`.
            parallel: how many were worked on at a time.
        """
        return Pace(steady_rate(ends, parallel), self.between(min(ends), max(ends)))

    def between(self, begin: float, end: float) -> float:
        """Return how many cores they took, on average.

        Args:
            begin: a time inside the block, in seconds since the epoch.
            end: a later one.
        """
        first = max(0, bisect(self._times, begin) - 1)
        last = min(len(self._times) - 1, max(first + 1, bisect(self._times, end)))
        return (self._cpu_ms[last] - self._cpu_ms[first]) / 1000 / (self._times[last] - self._times[first])

    def _look(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._over.wait(_LOOK_SECONDS)
            self._times.append(time.time())
            self._cpu_ms.append(machine_cpu_ms())


@contextmanager
def other_work(cores: float) -> Iterator[None]:
    """Run programs that do nothing of use and take so many cores, for as long as the block lasts."""
    programs = max(1, math.ceil(cores))
    command = [sys.executable, "-c", _WORKER, str(cores / programs)]
    with ExitStack() as stack:
        for _ in range(programs):
            stack.callback(ChildProcess(command, Path(os.devnull)).stop)
        yield
