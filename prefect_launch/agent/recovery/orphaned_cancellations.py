"""Items that were asked to stop while they waited, and that the server leaves to an agent although none has them.

The server ends an item that waits by itself, unless something is on record that it once ran in: so it is with one that
was put back in the UI. Any agent of the queue ends such an item, at once when the event tells of it. An idle agent asks
once a minute, in case no event came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final
from uuid import UUID, uuid5

import anyio

from prefect_launch.agent.item.transitions import log, move
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ItemGoneError, LaunchError
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item, State

#: How long items that events tell of are gathered for one question; an event also comes before its commit.
GATHER_SECONDS: Final = 1.5
LOOK_SECONDS: Final = 60.0
_MOST_IDS: Final = 200
_MESSAGE: Final = "Stopped while it waited: nothing of it was running."


class StrayStops:
    """Ends what was asked to stop and is nobody's.

    Args:
        server: the door.
        queues: of the agent.
        held: gives the ids of the items that it has in work.
    """

    def __init__(self, server: Server, queues: Collection[str], held: Callable[[], Collection[UUID]]) -> None:
        self._server = server
        self._queues = tuple(queues)
        self._held = held
        self._told = asyncio.Event()
        self._ids: set[UUID] = set()

    def heard(self, item_id: str) -> None:
        """Note an item that an event told of: it may be a new one, or one that is asked to stop."""
        self._ids.add(UUID(item_id))
        self._told.set()

    async def watch(self) -> None:
        """Look when something was heard, and now and then in case nothing was, for ever."""
        while True:
            with anyio.move_on_after(LOOK_SECONDS):
                await self._told.wait()
                await anyio.sleep(GATHER_SECONDS)
            ids, self._ids = self._ids, set()
            self._told.clear()
            try:
                await self.look(ids)
            except LaunchError as error:
                log.debug("not looked for stray stops: %s", error)

    async def look(self, ids: Collection[UUID] = ()) -> None:
        """End those of these items that are asked to stop and are nobody's.

        Args:
            ids: of the items; none: all of the queues.

        Raises:
            LaunchError: when the server fails.
        """
        stopping = [StateType.CANCELLING]
        found: list[Item] = []
        if 0 < len(ids) <= _MOST_IDS:
            found = await self._server.list_items(ids=ids, state_types=stopping)
        else:
            for queue in self._queues:
                found += await self._server.list_items(pool=queue, state_types=stopping)
        for item in found:
            if item.id not in self._held():
                await self._end(item)

    async def _end(self, item: Item) -> None:
        history = await self._server.read_states(item.id)
        if not is_stray(history):
            return
        once = uuid5(item.id, f"stray stop {history[-1].timestamp}")  # Another agent may end it too.
        try:
            await move(self._server, item.id, StateType.CANCELLING, ItemState.CANCELLED, _MESSAGE, transition_id=once)
        except ItemGoneError:
            log.debug("%s is gone", item.id)


def is_stray(history: Sequence[State]) -> bool:
    """Whether an item with these states, oldest first, was asked to stop while it waited."""
    before = [state for state in history if state.type is not StateType.CANCELLING]
    is_stopping = bool(history) and history[-1].type is StateType.CANCELLING
    return is_stopping and bool(before) and before[-1].type is StateType.SCHEDULED
