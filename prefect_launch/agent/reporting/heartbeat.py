"""Telling the server that the agent is alive, and what it works on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from prefect_launch.errors import LaunchError
from prefect_launch.queues.presence import Presence, post_presence
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

log = logging.getLogger("prefect_launch.agent")

#: The server calls a worker offline after three intervals.
WORKER_SECONDS: Final = 15
#: A run whose heartbeats stop for three of these is lost.
ITEM_SECONDS: Final = 30
#: After so many heartbeats in a row that failed, others take the agent for offline: the log says so.
_MISSED: Final = 3


async def beat(server: Server, presence: Presence, items: Callable[[], Sequence[Item]]) -> None:
    """Beat for the agent every 15 s, for this life of it (which is shown already) and its items every 30 s; for ever.

    Args:
        server: the door; one that is away is no fault.
        presence: of this life, with the queues that it takes items of.
        items: gives the items in work.
    """
    items_due, presence_due = 0.0, time.monotonic() + ITEM_SECONDS
    missed, beats = 0, 0
    while True:
        try:
            for queue in presence.queues:
                await server.beat_worker(queue, presence.holder.agent, WORKER_SECONDS)
            if time.monotonic() >= presence_due:
                beats += 1
                await post_presence(server, presence.beating(beats))
                presence_due = time.monotonic() + ITEM_SECONDS
            alive = items()
            if alive and time.monotonic() >= items_due:
                await server.beat_items(alive)
                items_due = time.monotonic() + ITEM_SECONDS
            missed = 0
        except LaunchError as error:
            missed += 1
            log.log(logging.WARNING if missed == _MISSED else logging.DEBUG, "heartbeat failed: %s", error)
        await anyio.sleep(WORKER_SECONDS)
