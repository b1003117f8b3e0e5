"""Race of work against events: it is awaited until it is done, or somebody asks for something else meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from prefect_launch.core.cancellation import ended

T = TypeVar("T")


@asynccontextmanager
async def racing(work: Awaitable[T], *events: asyncio.Event) -> AsyncIterator[asyncio.Future[T]]:
    """Begin work, and enter the block once it is done or one of the events is set.

    Args:
        work: to do. What is left of it at the end of the block is cancelled, and has ended then.
        events: that end the waiting.

    Yields:
        The work: done, or still under way.
    """
    task = asyncio.ensure_future(work)
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait({task, *waits}, return_when=asyncio.FIRST_COMPLETED)
        yield task
    finally:
        for wait in waits:
            wait.cancel()
        await ended(task)
