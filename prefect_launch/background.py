"""An event loop in a thread of its own, which holds a connection open between calls of synchronous code.

Opening a connection for each call would cost more than the call. The thread is a daemon: it does not keep the process
alive.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Background(Generic[R]):
    """Keeps one async resource open on its own loop and runs functions on it.

    Args:
        open_resource: makes the async context manager of the resource; it is entered on the loop.
        name: the thread's name.
    """

    def __init__(self, open_resource: Callable[[], AbstractAsyncContextManager[R]], name: str) -> None:
        self._open = open_resource
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._ready: Future[R] = Future()
        self._stop = asyncio.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._main,), name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can be used: its thread runs, in this process (a fork has none)."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._hold())
        finally:
            self._loop.close()

    async def _hold(self) -> None:
        try:
            async with self._open() as resource:
                self._ready.set_result(resource)
                await self._stop.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    def call(self, function: Callable[[R], Awaitable[T]]) -> T:
        """Run `function(resource)` on the loop and wait for what it returns.

        Raises:
            Exception: what opening the resource, or the function, raised.
        """
        future = self._submit(function, self._ready.result())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def acall(self, function: Callable[[R], Awaitable[T]]) -> T:
        """Like `call`, for a caller on another event loop, which is not blocked."""
        resource = await asyncio.wrap_future(self._ready)
        return await asyncio.wrap_future(self._submit(function, resource))

    def _submit(self, function: Callable[[R], Awaitable[T]], resource: R) -> Future[T]:
        async def run() -> T:
            return await function(resource)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def close(self) -> None:
        """Close the resource and end the thread."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=5)
