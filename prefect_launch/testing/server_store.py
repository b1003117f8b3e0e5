"""State of the in-memory Prefect server, how a call reaches it, and what it refuses to keep.

A call's body is plain code: it runs under one lock, so each call is atomic as it is on the real server, from whatever
thread or event loop it comes. What goes out is a copy. JSON schemas are checked by the functions that the real server
uses (`prefect.utilities.schema_tools`).
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from uuid import UUID
from weakref import WeakSet

import anyio.lowlevel
from prefect.utilities.schema_tools.validation import ValidationError, is_valid_schema, validate
from prefect.utilities.templating import find_placeholders

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.validation import check_server_json
from prefect_launch.errors import QueueError, ServerUnavailableError, SpecError
from prefect_launch.server.values import Deployment, Item, ItemChange, LogRecord, Pool, PriorityQueue, State, Worker

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
    enforce: bool


@dataclass
class StoredItem:
    """A flow run, the states that it was in, and its inputs by key."""

    item: Item
    flow: str
    history: list[State] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)


class Watcher:
    """One listener to the event stream, on the event loop that it was made on; any thread may notify it."""

    def __init__(
        self,
        pool_ids: Collection[UUID] = (),
        *,
        names: Collection[str] = (),
        tag: str | None = None,
        item_ids: Collection[UUID] = (),
        state_types: Collection[StateType] = (),
    ) -> None:
        self.pool_ids = frozenset(pool_ids)
        self.item_ids = frozenset(item_ids)
        self.names = frozenset(names)
        self.tag = tag
        self.state_types = frozenset(state_types or StateType)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | ItemChange | None] = asyncio.Queue()

    @property
    def call(self) -> str:
        """Name of the call that it answers."""
        if self.tag is not None:
            return "watch_items"
        return "watch_settings" if self.names else "watch_pools"

    def notify(self, event: str | ItemChange | None) -> None:
        """Hand over an item's change or id, or the name of a setting; `None` ends the stream."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Any:
        """Wait for the next event."""
        return await self._events.get()


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

    def notify_setting(self, name: str) -> None:
        """Notify those who watch the variable or pool of a name."""
        for watcher in list(self.watchers):
            if name in watcher.names:
                watcher.notify(name)

    def notify(self, item: Item, *, pools: bool) -> None:
        """Notify those who watch the item, or a tag of it; with `pools`, those who watch its pool, too."""
        stored = self.pool_of(item)
        for watcher in list(self.watchers):
            of_pool = pools and stored is not None and stored.pool.id in watcher.pool_ids
            is_named = watcher.tag in item.tags or item.id in watcher.item_ids
            if of_pool:
                watcher.notify(
                    ItemChange(
                        str(item.id),
                        item.work_pool_name or "",
                        item.state_type,
                        item.work_queue_name or "",
                        is_new=len(self.items[item.id].history) == 1 and item.state_name == ItemState.QUEUED.label,
                    )
                )
            elif is_named and item.state_type in watcher.state_types:
                watcher.notify(str(item.id))


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

    async def _stream(self, watcher: Watcher, first: Any = "") -> AsyncIterator[Any]:
        await self._enter(watcher.call)
        yield first
        while (event := await watcher.next()) is not None:
            yield event

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


# --- what the server refuses, in its own words ---

#: The server's limit for the parameters of a run.
_MAX_PARAMETER_BYTES: Final = 524_288
_KNOWN_SCHEMAS: Final = 32
_KEYS = "The `base_job_template` must contain both a `job_configuration` key and a `variables` key."
_UNDECLARED = (
    "The variables specified in the job configuration template must be present as properties in the variables schema."
    " Your job configuration uses the following undeclared variable(s): "
)


def refused(reason: str) -> SpecError:
    """Make the error of `prefect_launch.server.http` for what the server refuses."""
    return SpecError(f"The Prefect server refuses this: {reason}")


def queue_refused(name: str, reason: str) -> QueueError:
    """Make the error of `prefect_launch.server.client` for a queue that the server refuses."""
    return QueueError(f"The Prefect server refuses the queue {name!r}: {reason}")


def check_template_defaults(name: str, template: Mapping[str, Any]) -> None:
    """Raise `QueueError` for an invalid schema of variables, or a default outside it. (A change is not checked
    so.)"""
    schema = dict(template.get("variables") or {})
    if not schema:
        return
    try:
        is_valid_schema(schema, preprocess=False)
    except ValueError as error:
        raise queue_refused(name, str(error)) from error
    try:
        validate(_defaults(schema), schema, raise_on_error=True, ignore_required=True, allow_none_with_default=True)
    except ValidationError as error:
        text = f"Validation failed for work pool's job variable defaults: {error}"
        raise queue_refused(name, text) from error


def check_parameter_schema(parameters: Mapping[str, Any], schema: Mapping[str, Any], *, enforce: bool) -> None:
    """Raise `SpecError` for a deployment with an invalid schema, or whose own parameters break it."""
    fault = _schema_fault(json.dumps(dict(parameters)), json.dumps(dict(schema)), enforce)
    if fault is not None:
        raise refused(f"body: Value error, {fault}")


@lru_cache(maxsize=_KNOWN_SCHEMAS)
def _schema_fault(parameters: str, schema: str, enforce: bool) -> str | None:
    """Remembered: the deployments of all queues have one schema, and to check it takes 40 ms."""
    try:
        is_valid_schema(json.loads(schema), preprocess=False)
        if enforce:
            validate(json.loads(parameters), json.loads(schema), raise_on_error=True, ignore_required=True)
    except ValueError as error:
        text = str(error).removeprefix("Invalid schema: ")
        return f"The provided schema is not a valid json schema. Schema error: {text}"
    except ValidationError as error:
        return str(error)
    return None


def check_size(parameters: Mapping[str, Any]) -> None:
    """Raise `SpecError` for parameters of a run beyond the server's limit."""
    size = len(json.dumps(parameters, separators=(",", ":")).encode())
    if size > _MAX_PARAMETER_BYTES:
        raise refused(
            "body.parameters: Value error, Flow run parameters must be less than"
            f" {_MAX_PARAMETER_BYTES:,} bytes when serialized (got {size:,} bytes)."
        )


def parameter_fault(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the parameters of a run under the schema of its deployment."""
    try:
        validate(dict(parameters), dict(schema), raise_on_error=True)
    except ValidationError as error:
        return str(error)
    return None


def variable_fault(template: Mapping[str, Any], variables: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the template variables of a run under the template of its work pool."""
    schema = dict(template.get("variables") or {})
    if not schema:
        return None
    try:
        is_valid_schema(schema, preprocess=False)
        given = {**_defaults(schema), **variables}
        validate(given, schema, raise_on_error=True, allow_none_with_default=True)
    except (ValidationError, ValueError) as error:
        return str(error)
    return None


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    return {name: each["default"] for name, each in properties.items() if "default" in each}


def check_placeholders(name: str, template: Mapping[str, Any]) -> None:
    """Raise `QueueError` for a template that lacks a part, or has a placeholder that is no variable."""
    if not template:
        return
    if not template.get("job_configuration") or not template.get("variables"):
        raise queue_refused(name, f"body.base_job_template: Value error, {_KEYS}")
    used = {found.name for found in find_placeholders(template["job_configuration"])}
    unknown = used - set(template["variables"].get("properties") or {})
    if unknown:
        raise queue_refused(name, f"body.base_job_template: Value error, {_UNDECLARED}{' ,'.join(sorted(unknown))}.")
