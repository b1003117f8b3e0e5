"""One agent of a name at a time on one machine: two would take up each other's runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.errors import AgentConfigError

#: An agent that is just leaving has let go by then.
WAIT_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.2


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
    folder = home / "agents"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _take(descriptor, folder, name, wait_seconds)
        yield
    finally:
        os.close(descriptor)


async def _take(descriptor: int, folder: Path, name: str, wait_seconds: float) -> None:
    with anyio.move_on_after(wait_seconds):
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                await anyio.sleep(_LOOK_SECONDS)
    raise AgentConfigError(
        f"An agent called {name!r} runs on this machine already (it holds {folder / name}.lock)."
        " Stop it, or give this one another name (name: …, or --name)."
    )
