"""Cores that only a server has, as if it had a machine of its own: what shares them takes from its rate."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def on_cores_of_their_own(pids: Collection[int], count: int) -> Iterator[None]:
    """Let programs have so many cores of this machine, and this process and what it starts the others.

    All share all of them when no core would be left to the others.

    Args:
        pids: of the programs; what they start later has the same cores.
        count: how many cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[:count], cores[count:]
    if not others:
        yield
        return
    for pid in pids:
        _pin(pid, own)
    _pin(os.getpid(), others)
    try:
        yield
    finally:
        _pin(os.getpid(), cores)


def _pin(pid: int, cores: Collection[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # It has ended meanwhile.
            os.sched_setaffinity(int(thread), cores)
