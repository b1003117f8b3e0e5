"""Cores that only a server has, as if it had a machine of its own: what shares them takes from its rate."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def on_cores_of_their_own(pids: Collection[int], count: int) -> Iterator[None]:
    """Let programs have so many cores of this machine, and this process and what it starts the others, for a block.

    All share all of them when no core would be left to the others, and once the block is over.

    Args:
        pids: of the programs, which outlive the block; what they start in it has the same cores.
        count: how many cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[:count], cores[count:]
    if not others:
        yield
        return
    placed = [*((pid, own) for pid in pids), (os.getpid(), others)]
    for pid, share in placed:
        _pin(pid, share)
    try:
        yield
    finally:
        for pid, _ in placed:
            _pin(pid, cores)


def _pin(pid: int, cores: Collection[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # It has ended meanwhile.
            os.sched_setaffinity(int(thread), cores)
