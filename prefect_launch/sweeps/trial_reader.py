"""Reader of a sweep's trials: their items, and the metrics that these have reported.

Who reads a sweep again and again keeps its reader. It asks for the metrics of a trial that has ended once. It lists all
items at first, and then from time to time; between, it asks only for those that had not ended, and for those that an
event has named. So a look at a long sweep costs the server no more than one at a short sweep.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import StateType
from prefect_launch.server.metrics import read_metrics
from prefect_launch.server.paging import all_items
from prefect_launch.server.values import PAGE, Item
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import History
from prefect_launch.sweeps.trial_items import SweepTrials, TrialItem, sweep_tag

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

#: How long a reader does without a list of all items: an event can be missed, and a deleted item sends none.
WHOLE_SECONDS: Final = 10.0
#: The agent that ends an item so has written all its metrics before; of another end, some may still come.
_COMPLETE: Final = (StateType.COMPLETED, StateType.FAILED)


async def read_trials(server: Server, sweep_id: UUID, config: SweepConfig) -> SweepTrials:
    """Read the trials of a sweep once.

    Args:
        server: the Prefect server.
        sweep_id: the sweep.
        config: its configuration.
    """
    reader = TrialReader(server, sweep_id)
    await reader.list_items()
    return await reader.trials(config)


class TrialReader:
    """Reads the trials of one sweep, as often as is asked.

    Args:
        server: the Prefect server.
        sweep_id: the sweep.
        whole_seconds: after which time all items are listed again. Who knows of changes only by asking leaves it at 0.
    """

    def __init__(self, server: Server, sweep_id: UUID, *, whole_seconds: float = 0.0) -> None:
        self._server = server
        self._sweep_id = sweep_id
        self._whole_seconds = whole_seconds
        self._items: dict[UUID, Item] = {}
        self._changed: set[UUID] = set()
        self._listed_at = float("-inf")
        #: Metrics of items that have ended, by the item and the time of its end.
        self._ended: dict[tuple[UUID, datetime | None], Metrics] = {}
        self.is_whole = False
        """Whether the last list was of all items."""

    @property
    def ended(self) -> frozenset[UUID]:
        """Ids of the listed items that have ended: also earlier tries, and items of the tag that are no trials."""
        return frozenset(item.id for item in self._items.values() if item.is_terminal)

    def note_changed(self, *item_ids: UUID) -> None:
        """Note items that have changed, or are new: the next list has them."""
        self._changed.update(item_ids)

    def forget(self) -> None:
        """Let the next list be of all items."""
        self._listed_at = float("-inf")

    async def list_items(self) -> None:
        """List all items of the sweep, or those that may have changed since the last list.

        Raises:
            ServerUnavailableError: when the server does not answer; the next list makes up for it.
        """
        await self._list(())

    async def list_with_sweep(self) -> Item | None:
        """List the items, and return the sweep's own flow run: mostly one request for both.

        Raises:
            ServerUnavailableError: when the server does not answer; the next list makes up for it.
        """
        return (await self._list((self._sweep_id,))).get(self._sweep_id)

    async def _list(self, others: Collection[UUID]) -> dict[UUID, Item]:
        now, changed = time.monotonic(), self._changed | {one.id for one in self._items.values() if not one.is_terminal}
        self.is_whole = now - self._listed_at >= self._whole_seconds or len(changed) >= PAGE
        self._changed = set()  # What is noted from here on may come too late for these requests.
        try:
            if self.is_whole:
                changed = set()
                self._items, self._listed_at = {item.id: item async for item in self._all_items()}, now
            wanted = changed.union(others)
            found = {item.id: item for item in await self._server.list_items(ids=wanted)} if wanted else {}
        except BaseException:
            self._changed |= changed
            raise
        apart = {item_id: found.pop(item_id) for item_id in others if item_id in found}
        self._items = {item_id: item for item_id, item in self._items.items() if item_id not in changed} | found
        return apart

    async def trials(self, config: SweepConfig) -> SweepTrials:
        """Return the trials that the listed items are, with what they have reported.

        Args:
            config: the sweep's configuration.

        Raises:
            ServerUnavailableError: when the server does not answer.
        """
        newest = _newest(self._items.values())
        reported: dict[UUID, Metrics] = {}
        if config.objective is not None:
            reported = await self._read_metrics([read.item for read in newest.values()])
        trials = (read.trial(config.objective, reported.get(read.item.id, Metrics())) for read in newest.values())
        return SweepTrials(History(tuple(trials)), newest)

    def _all_items(self) -> AsyncIterator[Item]:
        return all_items(self._server, tags=[sweep_tag(self._sweep_id)])

    async def _read_metrics(self, items: Collection[Item]) -> dict[UUID, Metrics]:
        keys = {item.id: (item.id, item.state.timestamp if item.state else None) for item in items}
        unknown = [item for item in items if keys[item.id] not in self._ended]
        found = await read_metrics(self._server, [item.id for item in unknown]) if unknown else {}
        for item in unknown:
            if item.state_type in _COMPLETE:
                self._ended[keys[item.id]] = found.get(item.id, Metrics())
        return found | {item_id: self._ended[key] for item_id, key in keys.items() if key in self._ended}


def _newest(items: Iterable[Item]) -> dict[int, TrialItem]:
    """Return the item of the last try of each trial, by the trial's number."""
    newest: dict[int, TrialItem] = {}
    for item in items:
        read = TrialItem.of(item)
        if read is None:
            continue
        number = read.record.number
        if number not in newest or newest[number].record.attempt < read.record.attempt:
            newest[number] = read
    return newest
