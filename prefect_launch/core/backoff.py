"""Backoff: the growing pauses between tries, with jitter, that begin anew after a success."""

from __future__ import annotations

import random
from typing import Final

import anyio

#: How much shorter a pause may be than its turn says: callers that failed together do not come back together.
_JITTER: Final = 0.25


class Backoff:
    """Pauses of which each is twice as long as the one before.

    Args:
        first_seconds: the first pause.
        most_seconds: the longest pause.
    """

    def __init__(self, first_seconds: float, most_seconds: float) -> None:
        self._first, self._most = first_seconds, most_seconds
        self._next = first_seconds

    def reset(self) -> None:
        """Begin anew: a try has succeeded."""
        self._next = self._first

    def next(self) -> float:
        """Return the next pause, in seconds, up to a quarter shorter than its turn says."""
        pause = self._next
        self._next = min(2 * pause, self._most)
        return pause * (1 - random.uniform(0, _JITTER))

    async def sleep(self) -> None:
        """Wait for the next pause."""
        await anyio.sleep(self.next())
