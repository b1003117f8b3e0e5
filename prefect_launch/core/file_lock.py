"""File lock between processes, held by the kernel, so that it ends with the process that holds it.

The standard-library-only programs that run with a job (`runners/process/supervisor.py`, `inputs`) lock for
themselves.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from prefect_launch.core.cancellation import finished

_POLL_SECONDS: Final = 0.1


@asynccontextmanager
async def locked(
    file: Path, *, shared: bool = False, on_wait: Callable[[], object] = lambda: None
) -> AsyncIterator[int]:
    """Hold a lock. Waiting for it holds no thread, and can be cancelled.

    Args:
        file: the lock file; it is created, and stays.
        shared: let others that ask for it `shared` hold it too.
        on_wait: is called when somebody else holds it, again and again.

    Yields:
        The descriptor: a process that inherits it holds the lock too, until it ends.
    """
    with ExitStack() as held:
        descriptor = await finished(to_thread.run_sync(held.enter_context, _opened(file)))
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        while not await finished(to_thread.run_sync(_take, descriptor, kind)):
            on_wait()
            await anyio.sleep(_POLL_SECONDS)
        yield descriptor


@contextmanager
def locked_if_free(file: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock as `locked` does, if it is free now; without waiting.

    Yields:
        Whether it is held.
    """
    with _opened(file) as descriptor:
        yield _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
