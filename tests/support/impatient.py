"""An agent at work that calls others lost after seconds instead of minutes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect_launch.agent.loop import Loop

if TYPE_CHECKING:
    from prefect_launch.agent.agent import LaunchAgent


@asynccontextmanager
async def at_work(agent: LaunchAgent, *, lost_seconds: float) -> AsyncIterator[LaunchAgent]:
    """Run an agent's loop for as long as the block lasts; it leaves in order.

    Args:
        agent: not connected yet.
        lost_seconds: for how long another's heartbeats must have stood still.
    """
    async with agent.connected():
        agent.context.lost_seconds = lost_seconds
        working = asyncio.create_task(Loop(agent, until_empty=False, max_runtime_seconds=None).run())
        try:
            yield agent
            agent.stop()
            await working
        finally:
            working.cancel()
            await asyncio.wait({working})
