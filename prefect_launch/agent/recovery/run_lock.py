"""Which agent of a home reports on a run: whoever holds the lock in the run's folder.

The kernel lets go of the lock when its holder ends, however that ends. So an agent that sees a run of another, lost one
knows whether anybody follows it, and may go on with it; and when the lost one comes back, it waits for its turn.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from prefect_launch.agent.item.transitions import log
from prefect_launch.core.file_lock import locked, locked_if_free

_FILE: Final = "agent.lock"


@asynccontextmanager
async def kept(run_dir: Path, agent: str) -> AsyncIterator[bool]:
    """Report on a run, once nobody else does.

    Args:
        run_dir: the run's folder.
        agent: who does it.

    Yields:
        Whether nobody else did. On a disk that has no room for the lock it is not asked.
    """
    at_once = keeper_of(run_dir) is None
    async with AsyncExitStack() as held:
        try:
            descriptor = await held.enter_async_context(locked(run_dir / _FILE))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, agent.encode(), 0)
        except OSError as error:
            log.debug("%s is not locked: %s", run_dir, error)
        yield at_once


def keeper_of(run_dir: Path) -> str | None:
    """Return the name of the agent that reports on a run now; `None` when none does. Looking disturbs no other look."""
    try:
        with locked_if_free(run_dir / _FILE, shared=True) as is_free:
            return None if is_free else (run_dir / _FILE).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        log.debug("%s is not locked: %s", run_dir, error)
        return None
