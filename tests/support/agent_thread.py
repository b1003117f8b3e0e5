"""An agent in this process, its loop on a thread beside the test: for what is asked of it while it works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.live import DEADLINE_SECONDS, until

if TYPE_CHECKING:
    from prefect_launch import LaunchAgent


@contextmanager
def running(agent: LaunchAgent) -> Iterator[LaunchAgent]:
    """Run an agent's loop for as long as the block lasts; what it has started goes on after that."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def work() -> None:
        loops.append(asyncio.get_running_loop())
        await agent.loop()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    try:
        yield agent
    finally:
        until(lambda: loops)[0].call_soon_threadsafe(agent.stop)
        thread.join(DEADLINE_SECONDS)
