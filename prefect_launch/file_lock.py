"""A lock between processes: a file that is locked by the kernel, so that it ends with its holder, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

_POLL_SECONDS: Final = 0.1


@asynccontextmanager
async def locked(file: Path, *, shared: bool = False) -> AsyncIterator[int]:
    """Hold a lock. Waiting for it takes no thread, and can be cancelled.

    Args:
        file: what is locked; it is made, and stays.
        shared: let others that ask for it `shared` hold it too.

    Yields:
        The descriptor: a process that inherits it holds the lock too, until it ends.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
