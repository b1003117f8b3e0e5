"""Calls of coroutines from synchronous code: one at a time, or on a loop that keeps a connection open between them.

`Background` runs its loop in a daemon thread, which does not keep the process alive; opening a connection for each call
would cost more than the call. It is not an `anyio` portal: a portal's cancel scope would also cancel the clean-up of a
call, and a cancelled build or push must end in order.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Time for a cancelled call to clean up what it has begun (a build, a push) before its caller continues.
_END_SECONDS: Final = 10.0

#: How late a signal is handled that comes just before the main thread blocks. It interrupts no system call, and Python
#: runs its handler when that thread wakes.
SIGNAL_SECONDS: Final = 0.5


class Background(Generic[R]):
    """Keeps one async resource open on its own loop and runs functions on it."""

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

        Interrupted (Ctrl-C), it cancels the function and waits until that has ended; interrupted again, it does not.

        Raises:
            Exception: what opening the resource, or the function, raised.
        """
        work = _Work(self._loop, partial(function, self._ready.result()))
        try:
            work.begin()
            wait_all([work.result])
            return work.result.result()
        except BaseException:
            work.cancel()
            wait([work.result], timeout=_END_SECONDS)
            raise

    async def acall(self, function: Callable[[R], Awaitable[T]]) -> T:
        """Like `call`, for a caller on another event loop, which is not blocked."""
        resource = await asyncio.wrap_future(self._ready)
        work = _Work(self._loop, partial(function, resource))
        result = asyncio.wrap_future(work.result)
        try:
            work.begin()
            return await asyncio.shield(result)
        except BaseException:
            work.cancel()
            await asyncio.wait({result}, timeout=_END_SECONDS)
            if result.done() and not result.cancelled():
                result.exception()  # Nobody else reads how it ended; asyncio would complain.
            raise

    def close(self) -> None:
        """Close the resource and end the thread."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=5)


class _Work(Generic[T]):
    """One function that runs on the loop of another thread.

    Attributes:
        result: what it returns, or raises. A function that is cancelled has its result when it has ended, not before.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], Awaitable[T]]) -> None:
        self.result: Future[T] = Future()
        self._loop = loop
        self._function = function
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """Start it."""
        self._loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """Cancel it once it has started; do nothing when it has ended."""
        with suppress(RuntimeError):  # The loop has ended, and all on it.
            self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._finish)

    async def _run(self) -> T:
        return await self._function()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.result.cancel()
            self.result.set_running_or_notify_cancel()
        elif error := task.exception():
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, in the caller's context; on a thread when a loop runs in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    thread = ThreadPoolExecutor(1, "prefect-launch-sync")
    try:
        result = thread.submit(contextvars.copy_context().run, asyncio.run, work)
        wait_all([result])
        return result.result()
    finally:
        thread.shutdown(wait=False)  # An interrupted caller does not wait for the work.


def wait_all(futures: Collection[Future[Any]]) -> None:
    """Wait until all futures are done. A signal meanwhile is handled within `SIGNAL_SECONDS`."""
    while wait(futures, timeout=SIGNAL_SECONDS).not_done:
        pass
