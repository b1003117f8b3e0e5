"""Event stream of the server: it is opened again whenever it ends or breaks."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from prefect_launch.core.backoff import Backoff
from prefect_launch.errors import LaunchError

log = logging.getLogger(__name__)

T = TypeVar("T")

_RECONNECT_FIRST_SECONDS: Final = 0.5
_RECONNECT_MAX_SECONDS: Final = 10.0


async def follow(connect: Callable[[], AsyncIterator[T]], on_event: Callable[[T], None]) -> None:
    """Report every event of a server's stream; never returns, and connects again when the connection ends.

    Args:
        connect: opens the stream, such as `Server.watch_items`.
        on_event: is called with each event, on the event loop.
    """
    pauses = Backoff(_RECONNECT_FIRST_SECONDS, _RECONNECT_MAX_SECONDS)
    while True:
        stream = connect()
        while (event := await _next(stream)) is not None:
            pauses.reset()
            on_event(event)
        await pauses.sleep()


async def _next(stream: AsyncIterator[T]) -> T | None:
    """Return the next event of a stream; `None` when it has ended or broken."""
    try:
        return await anext(stream, None)
    except (OSError, LaunchError) as error:
        log.debug("event stream ended: %s", error)
    except Exception as error:  # noqa: BLE001 - whatever a WebSocket raises: polling continues without events
        log.debug("event stream broke: %r", error)
    return None
