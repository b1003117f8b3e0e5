"""Quantities of resource options: how much a value asks for, so that a queue's owner can set a maximum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prefect_launch.core import units as sizes
from prefect_launch.runners import option_values as values
from prefect_launch.runners.gpu_option import read_gpus

UNLIMITED: Final = math.inf


@dataclass(frozen=True)
class Quantity:
    """How much an option asks for.

    Attributes:
        measure: reads a value as a number of its unit (bytes, billionths of a CPU, GPUs); infinite where it means that
            there is no limit. Raises `ValueError` for a value that is none.
        has_maximum: whether a queue can set a maximum of it.
        unset: how much a run has that does not set it; where that is above a queue's maximum, it gets the maximum.
        bounds_with: options that say the same in another way, or together with it.
    """

    measure: Callable[[object], float]
    has_maximum: bool = True
    unset: float = 0
    bounds_with: frozenset[str] = frozenset()


def bytes_above_zero(value: object) -> float:
    """Bytes; 0 and -1 are no limit."""
    size = values.size_or_unlimited(value)
    return size if size > 0 else UNLIMITED


def count_above_zero(value: object) -> float:
    """A count; 0 and less are no limit."""
    count = values.integer(value)
    return count if count > 0 else UNLIMITED


def gpus(value: object) -> float:
    """GPUs, however they are asked for."""
    asked = read_gpus(value)
    return UNLIMITED if asked.all else len(asked.ids) or asked.count


def greatest_ulimit(value: object) -> float:
    """The greatest of some ulimits; -1 is no limit."""
    each = [one[kind] for one in values.ulimits(value) for kind in ("Soft", "Hard")]
    return UNLIMITED if min(each) < 0 else max(each)


_MEMORY: Final = frozenset({"memory", "memory-swap"})
_CPUS: Final = frozenset({"cpus", "cpu-period", "cpu-quota"})

#: Of `local-container`, as the Docker Engine takes them.
CONTAINER_QUANTITIES: Final = {
    "cpu-period": Quantity(values.integer, has_maximum=False, bounds_with=_CPUS),
    "cpu-quota": Quantity(count_above_zero, has_maximum=False, bounds_with=_CPUS),
    "cpu-shares": Quantity(values.integer, unset=1024),
    "cpus": Quantity(values.nano_cpus, unset=UNLIMITED, bounds_with=_CPUS),
    "gpus": Quantity(gpus),
    "memory": Quantity(bytes_above_zero, unset=UNLIMITED, bounds_with=_MEMORY),
    "memory-reservation": Quantity(bytes_above_zero),
    "memory-swap": Quantity(bytes_above_zero, bounds_with=_MEMORY),
    "pids-limit": Quantity(count_above_zero, unset=UNLIMITED),
    "shm-size": Quantity(bytes_above_zero, unset=64 * 1024**2),
    "ulimit": Quantity(greatest_ulimit, has_maximum=False),
}
#: Of `local-process`: what its agent keeps free for it. A job that says nothing has nothing kept free.
PROCESS_QUANTITIES: Final = {
    "cpus": Quantity(values.nano_cpus),
    "gpus": Quantity(gpus),
    "memory": Quantity(sizes.size),
}
