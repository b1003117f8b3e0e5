"""Wait of an async test until something is so: what another task, a thread or a process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

LIMIT_SECONDS = 60.0


async def until(look: Callable[[], T | None], seconds: float = LIMIT_SECONDS) -> T:
    """Look again and again until something true is seen, and return it."""
    with anyio.fail_after(seconds):
        while not (seen := look()):  # noqa: ASYNC110 - not every writer can set an event
            await anyio.sleep(0.01)
    return seen
