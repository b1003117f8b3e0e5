"""Wake events of an agent: the server's events, its own finished work, and a clock as the fallback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.errors import LaunchError
from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

#: The server sends an event before it commits; a second poll finds what the first came too early for.
SECOND_POLL_SECONDS: Final = 0.15
_RECONNECT_FIRST_SECONDS: Final = 0.5
_RECONNECT_MAX_SECONDS: Final = 10.0


class WakeEvent:
    """An event that many tasks can set, and that the loop waits for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the loop."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait until it is set, or the time is up."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        self._event.clear()


async def listen(server: Server, pool_ids: Collection[UUID], on_event: Callable[[str], None]) -> None:
    """Report every item of these queues that is queued or asked to stop, for ever; connect again when the connection
    ends.

    Args:
        server: the Prefect server.
        pool_ids: ids of the queues' work pools.
        on_event: is called with the item's id, on the event loop.
    """
    await follow(lambda: server.watch_pools(pool_ids), on_event)


async def follow(connect: Callable[[], AsyncIterator[str]], on_event: Callable[[str], None]) -> None:
    """Report every event of a stream of the server's, for ever; connect again when the connection ends.

    Args:
        connect: opens the stream.
        on_event: is called with each event, on the event loop.
    """
    pause = _RECONNECT_FIRST_SECONDS
    while True:
        stream = connect()
        while (event := await _next(stream)) is not None:
            pause = _RECONNECT_FIRST_SECONDS
            on_event(event)
        await anyio.sleep(pause)
        pause = min(pause * 2, _RECONNECT_MAX_SECONDS)


async def _next(stream: AsyncIterator[str]) -> str | None:
    """Return the next event of a stream; `None` when it has ended or broken."""
    try:
        return await anext(stream, None)
    except (OSError, LaunchError) as error:
        log.debug("event stream ended: %s", error)
    except Exception as error:  # noqa: BLE001 - whatever a WebSocket raises: polling goes on without events
        log.debug("event stream broke: %r", error)
    return None
