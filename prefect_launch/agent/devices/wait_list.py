"""The line of those who wait for devices: who comes first, once patience has run out.

An item that does not fit now lets smaller ones pass, for a while. Then it is the head of the line: what it needs of
what is free is kept for it, so it starts as soon as enough of what runs has ended. Only one item at a time is the head
(the most urgent, then the longest waiting), and one of a higher priority is never held up by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from prefect_launch.agent.devices.request import Ask

#: How long an item keeps its place in the line though no poll shows it: its queue may be paused, or at its limit.
_REMEMBERED_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Waiting:
    """One item that does not fit now.

    Attributes:
        queue: its queue's name.
        rank: of its priority; 1 is the most urgent.
        since: when it was first found not to fit, s.
        seen: when a poll last showed it, s.
        present: whether the last whole poll of its queue showed it.
        reason: why it waits, in words.
    """

    item_id: UUID
    queue: str
    ask: Ask
    rank: int
    since: float
    seen: float
    reason: str
    present: bool = True


class Line:
    """Who waits.

    Args:
        patience_seconds: how long an item lets smaller ones pass.
        now: the clock, s.
    """

    def __init__(self, patience_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._patience_seconds = patience_seconds
        self._now = now
        self._waiting: dict[UUID, Waiting] = {}
        #: Who has waited longest, by rank, for each thing that is asked for; `None`: to be found anew. Of thousands
        #: that ask for the same, only this one can be the head.
        self._longest: dict[tuple[int, Ask], Waiting] | None = {}

    @property
    def waiting(self) -> list[Waiting]:
        """Those who wait, in the order in which they are served."""
        return sorted((one for one in self._waiting.values() if one.present), key=_turn)

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._waits_longest()

    def wait(self, item_id: UUID, queue: str, ask: Ask, rank: int, reason: str) -> bool:
        """Put an item into the line; whether it is new there."""
        now, known = self._now(), self._waiting.get(item_id)
        since = known.since if known else now
        one = Waiting(item_id, queue, ask, rank, since=since, seen=now, reason=reason)
        self._waiting[item_id] = one
        if known is None and self._longest is not None:
            self._longest.setdefault((rank, ask), one)
        elif known is not None and (known.rank, known.ask, known.present) != (rank, ask, True):
            self._longest = None
        return known is None

    def leave(self, item_id: UUID) -> None:
        """Take an item out of the line."""
        if self._waiting.pop(item_id, None) is not None:
            self._longest = None

    def saw(self, queue: str, shown: Collection[UUID]) -> None:
        """Note what a whole poll of a queue showed: who is not there any more keeps nothing for itself."""
        now, self._longest = self._now(), None
        for one in list(self._waiting.values()):
            if one.item_id in shown:
                self._waiting[one.item_id] = replace(one, present=True, seen=now)
            elif one.queue == queue:
                self._waiting[one.item_id] = replace(one, present=False)
            if now - self._waiting[one.item_id].seen > _REMEMBERED_SECONDS:
                del self._waiting[one.item_id]

    def since(self, item_id: UUID) -> float | None:
        """Return when an item was first found not to fit, on the line's clock; `None` when it does not wait."""
        one = self._waiting.get(item_id)
        return None if one is None else one.since

    def kept_from(self, item_id: UUID, rank: int, can: Callable[[Ask], bool]) -> Ask | None:
        """Return what is kept for the head of the line, as far as it binds an item of this rank.

        Args:
            item_id: who asks.
            rank: of its priority.
            can: whether an ask could be met once what runs here has ended. Nothing is kept for one that waits for
                somebody else's process: that may never end.
        """
        patient = self._now() - self._patience_seconds
        heads = sorted(self._waits_longest().values(), key=_turn)
        head = next((one for one in heads if one.since <= patient and can(one.ask)), None)
        return None if head is None or head.item_id == item_id or rank < head.rank else head.ask

    def _waits_longest(self) -> dict[tuple[int, Ask], Waiting]:
        if self._longest is None:
            self._longest = {}
            for one in self.waiting:
                self._longest.setdefault((one.rank, one.ask), one)
        return self._longest


def _turn(one: Waiting) -> tuple[int, float]:
    return one.rank, one.since
