"""Cancellation in order: work that is done to its end though its caller is cancelled, and tasks that are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from anyio import CancelScope

T = TypeVar("T")


async def finished(
    work: Awaitable[T], *, hurry: Callable[[], object] = lambda: None, seconds: float | None = None
) -> T:
    """Do work to its end; a caller that is cancelled meanwhile waits for that.

    Args:
        work: to do.
        hurry: brings it to its end; is called when the caller is cancelled, or the work fails.
        seconds: how long a cancelled caller waits, before it cancels the work; None: as long as it takes.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except BaseException:
        hurry()
        with CancelScope(shield=True):
            await asyncio.wait({task}, timeout=seconds)
        await ended(task)
        raise


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait until they have ended; those of another event loop have ended with it."""
    going_on = {task for task in tasks if not task.done() and task.get_loop() is asyncio.get_running_loop()}
    for task in going_on:
        task.cancel()
    if going_on:
        with CancelScope(shield=True):
            await asyncio.wait(going_on)
