"""Usage of a run: the CPU time that it has taken so far, and the memory that it holds now."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """What a run uses of its machine.

    Attributes:
        cpu_seconds: CPU time since its start, of all its processes.
        memory_bytes: what its processes hold now.
        cost_seconds: the CPU time that this look at it has taken.
    """

    cpu_seconds: float
    memory_bytes: int
    cost_seconds: float = 0.0
