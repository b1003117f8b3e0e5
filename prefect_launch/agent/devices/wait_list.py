"""Wait list for devices: which waiting item comes first, once its patience has run out.

An item that does not fit lets smaller ones pass, for a while. Then it becomes the head of the list: free
devices that it needs are reserved for it, so it starts as soon as enough runs have ended. Only one item is the head at
a time (highest priority first, then longest waiting). It never holds up an item of a higher priority.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from prefect_launch.agent.devices.allocations import DeviceRequest

#: How long an item keeps its place though no poll shows it: its queue may be paused, or at its limit.
_REMEMBERED_SECONDS: Final = 600.0


@dataclass(frozen=True)
class WaitingItem:
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
    request: DeviceRequest
    rank: int
    since: float
    seen: float
    reason: str
    present: bool = True


class DeviceWaitList:
    """The items of one agent that wait for devices.

    Args:
        patience_seconds: how long an item lets smaller ones pass.
        now: the clock, s.
    """

    def __init__(self, patience_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._patience_seconds = patience_seconds
        self._now = now
        self._waiting: dict[UUID, WaitingItem] = {}
        #: Who has waited longest, by rank, for each thing that is asked for; `None`: to be found anew. Of thousands
        #: that ask for the same, only this one can be the head.
        self._longest: dict[tuple[int, DeviceRequest], WaitingItem] | None = {}

    @property
    def waiting(self) -> list[WaitingItem]:
        """The waiting items, in the order in which they are served."""
        return sorted((one for one in self._waiting.values() if one.present), key=_order)

    @property
    def is_empty(self) -> bool:
        """Whether no item waits."""
        return not self._waits_longest()

    def wait(self, item_id: UUID, queue: str, request: DeviceRequest, rank: int, reason: str) -> bool:
        """Add an item; whether it is new on the list."""
        now, known = self._now(), self._waiting.get(item_id)
        since = known.since if known else now
        one = WaitingItem(item_id, queue, request, rank, since=since, seen=now, reason=reason)
        self._waiting[item_id] = one
        if known is None and self._longest is not None:
            self._longest.setdefault((rank, request), one)
        elif known is not None and (known.rank, known.request, known.present) != (rank, request, True):
            self._longest = None
        return known is None

    def leave(self, item_id: UUID) -> None:
        """Remove an item."""
        if self._waiting.pop(item_id, None) is not None:
            self._longest = None

    def sync_waiting(self, queue: str, shown: Collection[UUID]) -> None:
        """Note what a whole poll of a queue showed: an item that it does not show reserves nothing."""
        now, self._longest = self._now(), None
        for one in list(self._waiting.values()):
            if one.item_id in shown:
                self._waiting[one.item_id] = replace(one, present=True, seen=now)
            elif one.queue == queue:
                self._waiting[one.item_id] = replace(one, present=False)
            if now - self._waiting[one.item_id].seen > _REMEMBERED_SECONDS:
                del self._waiting[one.item_id]

    def since(self, item_id: UUID) -> float | None:
        """Return when an item was first found not to fit, on the list's clock; `None` when it does not wait."""
        one = self._waiting.get(item_id)
        return None if one is None else one.since

    def reserved_from(self, item_id: UUID, rank: int, can: Callable[[DeviceRequest], bool]) -> DeviceRequest | None:
        """Return what is reserved for the head of the list, as far as it binds an item of this rank.

        Args:
            item_id: the item that asks.
            rank: of its priority.
            can: whether a request could be met once what runs here has ended. Nothing is reserved for one that waits
                for a foreign process: that may never end.
        """
        patient = self._now() - self._patience_seconds
        heads = sorted(self._waits_longest().values(), key=_order)
        head = next((one for one in heads if one.since <= patient and can(one.request)), None)
        return None if head is None or head.item_id == item_id or rank < head.rank else head.request

    def _waits_longest(self) -> dict[tuple[int, DeviceRequest], WaitingItem]:
        if self._longest is None:
            self._longest = {}
            for one in self.waiting:
                self._longest.setdefault((one.rank, one.request), one)
        return self._longest


def _order(one: WaitingItem) -> tuple[int, float]:
    return one.rank, one.since
