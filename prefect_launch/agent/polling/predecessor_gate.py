"""Gate for items with predecessors: they are passed over until those have completed, and end when one has failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect_launch.errors import ItemGoneError
from prefect_launch.queues.cancel_request import request_cancel
from prefect_launch.queues.predecessors import read_predecessors
from prefect_launch.server.values import Item

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)


class PredecessorGate:
    """Drops the items of a poll that may not start yet, or never.

    Args:
        session: an open connection.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def startable(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that may start, in their order; all their predecessors are read at once.

        Raises:
            LaunchError: when the server does not answer.
        """
        found = await read_predecessors(self._session.server, items)
        for item in items:
            if item.id in found and (why := found[item.id].failure):
                log.info("%s predecessor-failed %s", item.id, why)
                await self._end(item, why)
        return [
            item for item in items if item.id not in found or not (found[item.id].waits_for or found[item.id].failure)
        ]

    async def _end(self, item: Item, why: str) -> None:
        try:
            await request_cancel(self._session.server, item, why)
        except ItemGoneError:
            log.debug("%s is gone", item.id)
