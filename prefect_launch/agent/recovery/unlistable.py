"""Unlistable items: waiting items with an integer beyond 64 bits, over which the server fails at every list of runs.

The server takes such an integer in the parameters of a schedule, and of a run for which its maker has turned the check
off. A poll still shows the item, due or not: this agent ends it, repairs it, and deactivates the schedule that made it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

import anyio

from prefect_launch.agent.item.finish import fail_item, unsendable_part
from prefect_launch.core.supervision import unless_away
from prefect_launch.queues.claim import claim
from prefect_launch.queues.presence import Holder
from prefect_launch.runners.base import Phase
from prefect_launch.server.values import PAGE

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 30.0
#: Schedules make runs for 100 days ahead.
_AHEAD: Final = timedelta(days=3650)


class UnlistableItems:
    """Ends what cannot be listed on an agent's queues.

    Args:
        session: an open connection.
        queues: names of the agent's queues.
        holder: the agent, as it claims.
    """

    def __init__(self, session: Session, queues: Collection[str], holder: Holder) -> None:
        self._session = session
        self._queues = tuple(queues)
        self._holder = holder

    async def watch(self) -> None:
        """Check every 30 s the items that are not due yet; never returns. Due items are claimed, and fail then."""
        while True:
            await anyio.sleep(CHECK_SECONDS)
            with unless_away(log, "unlistable items not checked"):
                await self.check(datetime.now(timezone.utc))

    async def check_all(self) -> None:
        """Look at what waits, due or not: an agent that starts reads lists before it claims anything.

        Raises:
            LaunchError: when the server does not answer.
        """
        await self.check(None)
        await self.check(datetime.now(timezone.utc))

    async def check(self, after: datetime | None) -> None:
        """Look at the first 200 items of each queue that wait for a time after this one; `None`: of all that wait.

        Raises:
            LaunchError: when the server does not answer.
        """
        until = datetime.now(timezone.utc) + _AHEAD
        for queue in self._queues:
            for item in await self._session.server.poll(queue, limit=PAGE, before=until, after=after):
                fault = unsendable_part(item)
                if fault is None:
                    continue
                log.warning("%s unlistable %s", item.id, fault)
                # Not due yet, but nobody else's then; one that went with its schedule, or that another has, is let go.
                if await claim(self._session.server, item, holder=self._holder) is not None:
                    await fail_item(self._session, item.id, _message(fault), Phase.AGENT)


def _message(fault: str) -> str:
    return (
        f"{fault}: while it waited, no list of runs with it could be read. It is not run. Give whole numbers from"
        " -2**63 to 2**64-1, or a text; of a schedule, correct its parameters and activate it again."
    )
