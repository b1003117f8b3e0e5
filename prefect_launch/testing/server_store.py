"""What the in-memory Prefect server holds, and how a call reaches it.

A call's body is plain code: it runs under one lock, so each call is atomic as it is on the real server, from whatever
thread or event loop it comes. What goes out is a copy.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID
from weakref import WeakSet

import anyio.lowlevel

from prefect_launch.core.validation import check_server_json
from prefect_launch.errors import ServerUnavailableError
from prefect_launch.server.values import Deployment, Item, LogRecord, Pool, PriorityQueue, State, Worker

#: Awaited with the name of the method at a call.
Hook = Callable[[str], Awaitable[None]]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Calls")


@dataclass
class StoredPool:
    """A work pool, its work queues and the agents that beat for it, each by name."""

    pool: Pool
    queues: dict[str, PriorityQueue]
    workers: dict[str, Worker] = field(default_factory=dict)


@dataclass
class StoredDeployment:
    """A deployment, with what is not read back."""

    deployment: Deployment
    flow: str
    description: str
    enforce: bool


@dataclass
class StoredItem:
    """A flow run and the states that it was in."""

    item: Item
    flow: str
    history: list[State] = field(default_factory=list)


class Watcher:
    """One listener to the event stream, on the event loop that it was made on; told from any thread."""

    def __init__(self, pool_ids: Collection[UUID] = (), *, variable: str | None = None) -> None:
        self.pool_ids = frozenset(pool_ids)
        self.variable = variable
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[str | None] = asyncio.Queue()

    def tell(self, item_id: str | None) -> None:
        """Hand over an item's id, or a variable's name; `None` ends the stream."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.put_nowait, item_id)

    async def next(self) -> str | None:
        """Wait for the next id."""
        return await self._told.get()


class Store:
    """Everything the server knows.

    Args:
        now: the server's clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.lock = threading.RLock()
        self.up = True
        self.flow_ids: dict[str, UUID] = {}
        self.pools: dict[str, StoredPool] = {}
        self.deployments: dict[UUID, StoredDeployment] = {}
        self.items: dict[UUID, StoredItem] = {}
        self.logs: dict[UUID, list[LogRecord]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.heartbeats: dict[UUID, datetime] = {}
        self.variables: dict[str, tuple[Any, tuple[str, ...]]] = {}
        self.watchers: WeakSet[Watcher] = WeakSet()

    def pool_of(self, item: Item) -> StoredPool | None:
        """Return the pool that an item is in."""
        return self.pools.get(item.work_pool_name) if item.work_pool_name else None

    def tell(self, item: Item) -> None:
        """Tell those who watch the item's pool."""
        stored = self.pool_of(item)
        for watcher in list(self.watchers):
            if stored is not None and stored.pool.id in watcher.pool_ids:
                watcher.tell(str(item.id))


class Calls:
    """What all calls have in common: they are counted, may be held up, and fail while the server is down."""

    _store: Store
    api_url: str
    calls: Counter[str]
    before_call: Hook | None
    after_call: Hook | None

    async def _enter(self, method: str) -> None:
        self.calls[method] += 1
        if self.before_call is not None:
            await self.before_call(method)
        await anyio.lowlevel.checkpoint()
        self._check_up()

    async def _leave(self, method: str) -> None:
        if self.after_call is not None:
            await self.after_call(method)

    async def _told(self, watcher: Watcher) -> AsyncIterator[str]:
        await self._enter("watch_pools" if watcher.variable is None else "watch_variable")
        yield ""
        while (told := await watcher.next()) is not None:
            yield told

    def _check_up(self) -> None:
        if not self._store.up:
            raise ServerUnavailableError(
                f"The Prefect server at {self.api_url} does not answer (it is down). Start it with"
                " 'prefect server start', or set PREFECT_API_URL to the address of the one to use."
            )


def call(body: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a call to the server of the code that answers it."""
    name = body.__name__.lstrip("_")

    async def asked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        await self._enter(name)
        with self._store.lock:
            self._check_up()
            answer = copy.deepcopy(body(self, *args, **kwargs))
        await self._leave(name)
        return answer

    functools.update_wrapper(asked, body)
    return asked


def as_json(value: Any) -> Any:
    """Return a value as it is after the way to the server.

    Raises:
        SpecError: for what the transport does not let out, since the server could not send it again.
    """
    check_server_json(value, "What is sent to the Prefect server")
    return json.loads(json.dumps(value))
