"""The engine's own news: one thread reads its event stream, and wakes those who wait for a container.

A wake-up says "look again", never what happened: whoever waits asks the engine itself. So a stream that breaks loses
nothing: after each connection everybody is woken once. An out-of-memory event is remembered, since the engine may tell
    it late.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from prefect_launch.errors import InfrastructureError

log = logging.getLogger("prefect_launch.agent")

#: Between two attempts to connect while the engine is down.
_RETRY_SECONDS = 1.0


class EventSource(Protocol):
    """An open event stream."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...

    def close(self) -> None: ...


class Waiter:
    """One coroutine's interest in one container."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.oom = False
        self._loop = loop
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Wake it, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.set)

    async def wait(self, timeout: float | None = None) -> None:
        """Return when something may have happened since the last call, or the time has passed."""
        try:
            await asyncio.wait_for(self._told.wait(), timeout)
        except asyncio.TimeoutError:
            return
        finally:
            self._told.clear()


class EngineEvents:
    """Who waits for which container.

    Args:
        connect: opens the event stream; blocks; raises `InfrastructureError` when the engine does not answer.
    """

    def __init__(self, connect: Callable[[], EventSource]) -> None:
        self._connect = connect
        self._waiters: dict[str, list[Waiter]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._source: EventSource | None = None

    @contextmanager
    def waiter(self, container_id: str) -> Iterator[Waiter]:
        """Listen for one container's news as long as the context lasts; must be entered in a running event loop."""
        waiter = Waiter(asyncio.get_running_loop())
        with self._lock:
            self._waiters.setdefault(container_id, []).append(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="docker-events", daemon=True)
                self._thread.start()
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[container_id].remove(waiter)
                if not self._waiters[container_id]:
                    del self._waiters[container_id]

    def close(self) -> None:
        """End the stream and its thread."""
        self._closed.set()
        with self._lock:
            source = self._source
        if source is not None:
            source.close()

    def _read(self) -> None:
        while not self._closed.is_set():
            try:
                source = self._connect()
                with self._lock:
                    self._source = source
                self._tell_all()
                if not self._closed.is_set():
                    for event in source:
                        self._dispatch(event)
            except InfrastructureError:
                pass  # Those who wait ask the engine themselves, and hear of its outage there.
            except Exception:
                # On a thread of its own, nobody else would ever hear of it; whoever waits has the clock as well.
                log.exception("The engine's event stream failed; it is opened again.")
            self._closed.wait(_RETRY_SECONDS)

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        container_id = event.get("Actor", {}).get("ID") or event.get("id", "")
        with self._lock:
            waiters = list(self._waiters.get(container_id, ()))
        for waiter in waiters:
            waiter.oom = waiter.oom or event.get("Action") == "oom"
            waiter.tell()

    def _tell_all(self) -> None:
        with self._lock:
            waiters = [waiter for those in self._waiters.values() for waiter in those]
        for waiter in waiters:
            waiter.tell()
