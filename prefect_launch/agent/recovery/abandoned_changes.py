"""Abandoned changes: items that somebody held to change them, and died before they were put back.

Who changes a waiting item holds it for seconds (`prefect_launch.client.change_item`). An agent that sees the same hold
at two checks a minute apart, by its own clock, puts the item back into its queue.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.core.states import ItemState
from prefect_launch.core.supervision import unless_away
from prefect_launch.queues.claim import is_held_for_change, undo_claim
from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

#: Three times as long as a change may hold an item.
CHECK_SECONDS: Final = 60.0
_WHY: Final = "Somebody held it to change it, and did not put it back."


class AbandonedChanges:
    """Puts back the items of an agent's queues that nobody changes any more.

    Args:
        server: the Prefect server.
        queues: of the agent.
    """

    def __init__(self, server: Server, queues: Collection[str]) -> None:
        self._server = server
        self._queues = tuple(queues)
        self._held: dict[UUID, str | None] = {}

    async def watch(self) -> None:
        """Check again and again; never returns. A server that is away is no error."""
        while True:
            await anyio.sleep(CHECK_SECONDS)
            with unless_away(log, "abandoned changes not checked"):
                await self.check()

    async def check(self) -> None:
        """Put back what is held as at the last check.

        Raises:
            LaunchError: when the server fails.
        """
        held: dict[UUID, str | None] = {}
        for queue in self._queues:
            for item in await self._server.list_items(pool=queue, state_names=[ItemState.CLAIMED.label]):
                if item.state is None or not is_held_for_change(item):
                    continue
                held[item.id] = item.state.transition_id
                if self._held.get(item.id) == item.state.transition_id:
                    log.warning("%s abandoned-change %s", item.id, item.message)
                    await undo_claim(self._server, item, _WHY)
        self._held = held
