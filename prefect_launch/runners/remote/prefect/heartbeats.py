"""Heartbeats of wrappers, as their labels show them: which children have been silent for too long.

Only time in which the server was asked counts: while it is away, no wrapper can beat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final
from uuid import UUID

from prefect_launch.runners.remote.prefect.wrapper import HEARTBEAT_LABEL
from prefect_launch.server.values import Item

#: Four heartbeats. A wrapper that finds its flow run crashed ends its job.
LOST_SECONDS: Final = 240.0
#: The most that counts of the time between two looks.
_MOST_SECONDS: Final = 15.0


class Heartbeats:
    """How long each child has been silent.

    Args:
        lost_seconds: for how long a child is silent that counts as lost.
        clock: its clock, in seconds.
    """

    def __init__(self, lost_seconds: float = LOST_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._lost_seconds, self._clock = lost_seconds, clock
        self._looked_at = clock()
        self._silent: dict[UUID, tuple[object, float]] = {}

    def lost(self, running: Collection[Item]) -> list[Item]:
        """Return those of the running children that have been silent for too long; called at each look."""
        now = self._clock()
        passed, self._looked_at = min(now - self._looked_at, _MOST_SECONDS), now
        known, self._silent = self._silent, {}
        for child in running:
            beat = child.labels.get(HEARTBEAT_LABEL)
            last, seconds = known.get(child.id, (None, -passed))
            self._silent[child.id] = (beat, seconds + passed if beat == last or child.id not in known else 0.0)
        return [child for child in running if self._silent[child.id][1] >= self._lost_seconds]
