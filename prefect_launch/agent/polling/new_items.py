"""New items, as events tell of them: when an agent polls for each.

Agents that all poll for each new item cost the server a poll each, and all but one get nothing. So they take turns, in
an order that each works out alone (`prefect_launch.agent.polling.share`): the item's owner polls at once. The others
poll when the stream has told of no claim by their turn, so that no item waits for long for an owner that is full, or
gone. An agent that is alone polls at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prefect_launch.agent.polling.events import SECOND_POLL_SECONDS
from prefect_launch.agent.polling.share import Fleet
from prefect_launch.server.values import ItemChange

#: From one agent's turn to the next one's, and the most that turns add up to.
TURN_SECONDS: Final = 0.05
_LAST_TURN_SECONDS: Final = 0.35


class NewItems:
    """Items that events have named, until somebody claims them.

    Args:
        fleet: the agents of the queues.
        poll: makes this agent poll for the item, if it has a free slot.
    """

    def __init__(self, fleet: Fleet, poll: Callable[[ItemChange], None]) -> None:
        self._fleet = fleet
        self._poll = poll
        self._unclaimed: set[str] = set()

    def note_queued(self, change: ItemChange) -> None:
        """Note that an item waits; poll at once, or in turn, and again if nobody has claimed it then."""
        turn = self._fleet.turn(change.queue, change.item_id)
        if turn == 0:
            self._poll(change)
        self._unclaimed.add(change.item_id)
        pause = SECOND_POLL_SECONDS + min(turn * TURN_SECONDS, _LAST_TURN_SECONDS)
        asyncio.get_running_loop().call_later(pause, self._poll_if_unclaimed, change)

    def note_claimed(self, item_id: str) -> None:
        """Note that this agent or another has claimed an item."""
        self._unclaimed.discard(item_id)

    def _poll_if_unclaimed(self, change: ItemChange) -> None:
        if change.item_id in self._unclaimed:
            self._unclaimed.discard(change.item_id)
            self._poll(change)
