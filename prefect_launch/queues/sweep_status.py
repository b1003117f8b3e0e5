"""Sweep of a waiting item: whether the item may start now, must wait until the sweep continues, or is refused.

A sweep is a flow run, and its id is the item's `sweep_id`. An id that is no UUID is only a label.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from prefect_launch.core.names import short_id
from prefect_launch.core.states import StateType
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import SCHEDULER_FLOW, Item
from prefect_launch.spec.item_parameters import options_of

#: One read of a sweep serves all its items for so long.
KNOWN_SECONDS: Final = 10.0
#: A new item of a sweep that waits is a sign that it continues: then it is read again, after this time.
_SOON_SECONDS: Final = 1.0


@dataclass(frozen=True)
class SweepStatus:
    """What the state of a sweep means for its items that wait.

    Attributes:
        held: why they are not started now, for people; empty when they may be.
        refusal: why they are never started, for people; empty when they may be.
    """

    held: str = ""
    refusal: str = ""


def sweep_id_of(given: object) -> UUID | None:
    """Return a sweep's id as it stands in an item's options; `None` when it is no UUID."""
    try:
        return UUID(str(given))
    except ValueError:
        return None


def sweep_of(item: Item) -> UUID | None:
    """Return the id of an item's sweep; `None` when it is of none."""
    return sweep_id_of(options_of(item).get("sweep_id"))


async def read_sweep_status(server: Server, sweep_id: UUID) -> SweepStatus:
    """Read what the state of a sweep means for its items that wait."""
    sweep = await server.read_item(sweep_id)
    if sweep is None:
        return SweepStatus(
            refusal=f"The sweep {sweep_id} of this item is not on this Prefect server: it was deleted, or never there."
            " The item is not run. Queue it again without sweep_id."
        )
    is_ours = sweep.flow == SCHEDULER_FLOW
    name = f"{sweep.name} ({short_id(sweep_id)})"
    resume = f"'prefect-launch sweep resume {short_id(sweep_id)}' resumes it"
    if sweep.state_type is StateType.PAUSED:
        return SweepStatus(held=f"Its sweep {name} is paused. {resume if is_ours else 'Resume it on its page'}.")
    if is_ours and sweep.state_type is StateType.CRASHED:
        stop = f"'prefect-launch sweep stop {short_id(sweep_id)}' cancels its trials"
        return SweepStatus(held=f"The process of its sweep {name} is gone. {resume}, and {stop}.")
    if sweep.is_terminal:
        return SweepStatus(
            refusal=f"The sweep {sweep_id} of this item has ended already ({sweep.state_name}); it is not run."
        )
    return SweepStatus()


@dataclass
class _Known:
    read_at: float
    status: SweepStatus
    items: set[UUID] = field(default_factory=set)


class SweepStatuses:
    """The statuses of sweeps, each read once in 10 s at most, for however many items.

    Args:
        server: the Prefect server.
        now: the clock, s.
    """

    def __init__(self, server: Server, now: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._now = now
        self._known: dict[UUID, _Known] = {}

    async def of(self, sweep_id: UUID, item_id: UUID | None = None) -> SweepStatus:
        """Return the status of a sweep.

        Args:
            sweep_id: its id.
            item_id: the item that it is asked for. A new item of a sweep that waits is a sign that it continues.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        known = self._known.get(sweep_id)
        if known is None or self._is_stale(known, item_id):
            items = known.items if known is not None else set()
            known = _Known(self._now(), await read_sweep_status(self._server, sweep_id), items)
            self._known = {one: old for one, old in self._known.items() if known.read_at - old.read_at < KNOWN_SECONDS}
            self._known[sweep_id] = known
        if item_id is not None and known.status.held:
            known.items.add(item_id)
        elif not known.status.held:
            known.items.clear()
        return known.status

    def _is_stale(self, known: _Known, item_id: UUID | None) -> bool:
        age = self._now() - known.read_at
        is_new = bool(known.status.held) and item_id is not None and item_id not in known.items
        return age >= KNOWN_SECONDS or (is_new and age >= _SOON_SECONDS)
