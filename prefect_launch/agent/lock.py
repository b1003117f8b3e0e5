"""One agent of a name at a time on one machine: two would take up each other's runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.file_lock import locked
from prefect_launch.errors import AgentConfigError

#: An agent that is just leaving has let go by then.
WAIT_SECONDS: Final = 15.0


@asynccontextmanager
async def only_agent(home: Path, name: str, *, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[None]:
    """Hold the name of an agent on this machine; the kernel frees it when the process ends, however it ends.

    Args:
        home: the folder of prefect-launch on this machine.
        name: of the agent.
        wait_seconds: for how long an agent that holds it is waited for.

    Raises:
        AgentConfigError: when another agent holds it.
    """
    file = home / "agents" / f"{name}.lock"
    async with AsyncExitStack() as stack:
        with anyio.move_on_after(wait_seconds) as wait:
            await stack.enter_async_context(locked(file))
        if wait.cancelled_caught:
            raise AgentConfigError(
                f"An agent called {name!r} runs on this machine already (it holds {file})."
                " Stop it, or give this one another name (name: …, or --name)."
            )
        yield
