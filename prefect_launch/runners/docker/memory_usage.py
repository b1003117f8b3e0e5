"""The most memory that a container was seen to hold, sampled: nothing tells it once the container has ended.

A sample is one short call to the engine; they come fast at first and every 10 s later, so a job costs next to nothing.
A peak between two samples is missed, and a job of less than half a second has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from prefect_launch.core.supervision import restarted
from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.docker.engine import Engine

_FIRST_SECONDS: Final = 0.5
_MAX_SECONDS: Final = 10.0


class PeakMemory:
    """One container's samples.

    Attributes:
        seen_bytes: the largest; `None` while there is none.
    """

    def __init__(self) -> None:
        self.seen_bytes: int | None = None

    async def sample(self, engine: Engine, container_id: str) -> None:
        """Take samples, until cancelled."""
        pause = _FIRST_SECONDS
        while True:
            await anyio.sleep(pause)
            pause = min(pause * 2, _MAX_SECONDS)
            try:
                now = await engine.memory(container_id)
            except InfrastructureError:
                continue  # The engine is away, or does not count memory: whoever waits for the end says so.
            if now is not None:
                self.seen_bytes = max(now, self.seen_bytes or 0)


@asynccontextmanager
async def sampled_memory(engine: Engine, container_id: str) -> AsyncIterator[PeakMemory]:
    """Sample a container's memory for as long as the block lasts."""
    peak = PeakMemory()
    sampling = asyncio.create_task(
        restarted(f"memory of {container_id[:12]}", lambda: peak.sample(engine, container_id))
    )
    try:
        yield peak
    finally:
        sampling.cancel()
        await asyncio.wait({sampling})
