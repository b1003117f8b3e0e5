"""Wake events of an agent: the server's events, its own finished work, and a clock as the fallback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.server.event_stream import follow
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import ItemChange

#: The server sends an event before it commits; a second poll finds what the first came too early for.
SECOND_POLL_SECONDS: Final = 0.15


class WakeEvent:
    """An event that many tasks can set, and that the loop waits for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the loop."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until it is set, or the time is up; return whether it was set."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        was_set = self._event.is_set()
        self._event.clear()
        return was_set

    def set_twice(self) -> None:
        """Set it for an event of the server's: now, and a moment later, when the change is mostly committed."""
        self._event.set()
        asyncio.get_running_loop().call_later(SECOND_POLL_SECONDS, self._event.set)


async def listen(server: Server, pool_ids: Collection[UUID], on_event: Callable[[ItemChange], None]) -> None:
    """Report every item of these queues that is queued, claimed, or asked to stop; never return.

    Connects again when the connection ends.

    Args:
        server: the Prefect server.
        pool_ids: ids of the queues' work pools.
        on_event: is called with each change, on the event loop.
    """
    await follow(lambda: server.watch_pools(pool_ids), on_event)
