"""Wake-ups of a sweep's scheduler: when it reads its items again, by events and by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import anyio

#: Changes other than ends are read together, so that reading them does not keep the server from starting trials.
_SOON_SECONDS: Final = 1.0
#: An event may come before the server has committed what it tells of: the items are read again after so long …
_AGAIN_SECONDS: Final = 0.15
#: … until they show it, and for so long at most: the server may have gone back on it.
_COMMIT_SECONDS: Final = 3.0
#: Of other changes that somebody waits for, nothing tells whether they are seen.
_SETTLE_SECONDS: Final = 0.5


class Wake:
    """Tells the scheduler when to look; call everything on the event loop.

    Args:
        look_seconds: the longest time between two looks.
    """

    def __init__(self, look_seconds: float) -> None:
        self._look_seconds = look_seconds
        self._woken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ends: dict[str, float] = {}
        self._settled_at = 0.0

    def now(self) -> None:
        """Let it look at once."""
        self._woken.set()

    def soon(self) -> None:
        """Let it look in a moment, as something has changed that nobody waits for."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON_SECONDS, self._woken.set)

    def at_end_of(self, item_id: str) -> None:
        """Let it look at once, and again until it sees that this item has ended; an empty id is none."""
        if item_id:
            self._ends[item_id] = asyncio.get_running_loop().time() + _COMMIT_SECONDS
        self._woken.set()

    def at_change(self) -> None:
        """Let it look at once, and again for a moment, as what has changed may not be committed yet."""
        self._settled_at = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        self._woken.set()

    def begin_look(self) -> None:
        """Note that a look begins: it sees every change that is reported and committed by now."""
        self._woken.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def note_ended(self, item_ids: Collection[str]) -> None:
        """Note which items the look has seen to have ended."""
        now = asyncio.get_running_loop().time()
        self._ends = {one: until for one, until in self._ends.items() if one not in item_ids and now < until}

    async def wait(self) -> None:
        """Wait until it is time for the next look."""
        is_unsettled = self._ends or asyncio.get_running_loop().time() < self._settled_at
        seconds = min(_AGAIN_SECONDS, self._look_seconds) if is_unsettled else self._look_seconds
        with anyio.move_on_after(seconds):
            await self._woken.wait()
