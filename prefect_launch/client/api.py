"""`Api`: where the Prefect server is, and who asks. The start of everything.

An `Api` is a plain value, so that it can be a flow's parameter. It opens its connection when it is first used and keeps
it on a thread of its own, so that its methods can be called from synchronous and asynchronous code alike.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from prefect_launch.client.api_jobs import JobCalls
from prefect_launch.client.api_queues import QueueCalls
from prefect_launch.core.event_loop import Background
from prefect_launch.core.names import ENTITY_VARIABLES, PROJECT_VARIABLES, UNNAMED, check_name
from prefect_launch.core.states import StateType
from prefect_launch.errors import InvalidNameError, NotFoundError
from prefect_launch.server.http import DEFAULT_PATIENCE_SECONDS

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.jobs.store import JobStore
    from prefect_launch.queues.session import Session
    from prefect_launch.registries.base import Registry
    from prefect_launch.server.protocol import Server
    from prefect_launch.server.secrets import ReadSecret
    from prefect_launch.server.values import Item

T = TypeVar("T")
_Api = TypeVar("_Api", bound="Api")

_PAGE = 200


def machine_registries() -> Registry:
    """Return all registries, as this machine is logged in now.

    Raises:
        AgentConfigError: when the machine's agent config, which names registries too, is wrong.
    """
    from prefect_launch.registries.client import RemoteRegistries
    from prefect_launch.settings.agent_config import resolve_agent_config

    return RemoteRegistries(resolve_agent_config().keychain, pauses=())


def _from_environment(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), UNNAMED)


class Api(QueueCalls, JobCalls, BaseModel):
    """The Prefect server, as prefect-launch uses it.

    Attributes:
        url: address of the server's API; by default Prefect's own setting (`PREFECT_API_URL`, or the active profile).
        entity: who owns what is made and what a short job name means; by default `LAUNCH_ENTITY`, `WANDB_ENTITY` or
            `default`.
        project: the project, likewise; by default `LAUNCH_PROJECT`, `WANDB_PROJECT` or `default`.
        job_store: name of the `launch-job-store` block document that keeps jobs; by default the document `default` when
            there is one, else a local folder.
    """

    model_config = ConfigDict(frozen=True)

    url: str | None = None
    entity: str = Field(default_factory=lambda: _from_environment(*ENTITY_VARIABLES))
    project: str = Field(default_factory=lambda: _from_environment(*PROJECT_VARIABLES))
    job_store: str | None = None

    _background: Background[Session] | None = PrivateAttr(None)
    _background_url: str | None = PrivateAttr(None)

    @field_validator("entity", "project")
    @classmethod
    def _is_name(cls, value: str, info: Any) -> str:
        return check_name(info.field_name, value)

    # --- connections ---

    @asynccontextmanager
    async def connect(self, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> AsyncIterator[Server]:
        """Open the door to the server on this event loop.

        Args:
            patience_seconds: for how long a request is tried again while the server is busy or away.
        """
        from prefect_launch.server.client import connect

        async with connect(self.url, patience_seconds=patience_seconds) as server:
            yield server

    @asynccontextmanager
    async def job_registry(self, server: Server | None = None) -> AsyncIterator[JobRegistry]:
        """Open the job registry on this event loop, over a server that is open or one of its own."""
        if server is None:
            async with self.connect() as own, self.job_registry(own) as registry:
                yield registry
            return
        from prefect_launch.jobs.registry import JobRegistry

        client: PrefectClient = server.client  # type: ignore[attr-defined]
        store = await self._load_store(client)
        yield JobRegistry(server, store, entity=self.entity, project=self.project)

    async def _load_store(self, client: PrefectClient) -> JobStore:
        from prefect_launch.jobs.store import JobStore

        try:
            return cast("JobStore", await JobStore.aload(self.job_store or "default", client=client))
        except ValueError as error:
            if self.job_store is None:
                return JobStore()
            raise NotFoundError(
                f"There is no job store {self.job_store!r} on {self.ui_url} ({error})."
                " Save a 'launch-job-store' block of"
                " that name first."
            ) from error

    @asynccontextmanager
    async def open(self, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> AsyncIterator[Session]:
        """Open the server and the job registry on this event loop."""
        from prefect_launch.queues.session import Session
        from prefect_launch.registries.digest_cache import DigestCache

        async with self.connect(patience_seconds=patience_seconds) as server, self.job_registry(server) as jobs:
            yield Session(server, jobs, DigestCache(self._registries), self._secrets(server))

    def call(self, function: Callable[[Session], Awaitable[T]]) -> T:
        """Run an async function of an open session from synchronous code, over the connection that is kept."""
        return self._connection().call(function)

    async def acall(self, function: Callable[[Session], Awaitable[T]]) -> T:
        """Run an async function of an open session from any event loop, over the connection that is kept."""
        return await self._connection().acall(function)

    def _connection(self) -> Background[Session]:
        address = self._address()
        if self._background is None or not self._background.alive or self._background_url != address:
            if self._background is not None:
                self._background.close()
            self._background = Background(self.open, name="prefect-launch-api")
            self._background_url = address
        return self._background

    def _registries(self) -> Registry:
        """Who is asked about images: all registries, as this machine is logged in now."""
        return machine_registries()

    def _secrets(self, server: Server) -> ReadSecret:
        """Return what reads a Secret block of the server by its name."""
        from prefect_launch.server.secrets import read_secret

        client: PrefectClient = server.client  # type: ignore[attr-defined]
        return partial(read_secret, client=client)

    def _address(self) -> str | None:
        from prefect.settings import PREFECT_API_URL

        address: str | None = self.url or PREFECT_API_URL.value()
        return address

    @property
    def ui_url(self) -> str:
        """Address of the server's UI."""
        return (self._address() or "").rstrip("/").removesuffix("/api")

    # --- items ---

    def items(
        self,
        *,
        queue: str | None = None,
        states: Iterable[StateType] | None = None,
        names: Iterable[str] | None = None,
        limit: int | None = _PAGE,
    ) -> list[QueuedRun]:
        """List items, newest first.

        Args:
            queue: only of this queue.
            states: only in states of these types.
            names: only with one of these names.
            limit: how many at most; `None` for all.
        """
        from prefect_launch.client.queued_run import QueuedRun

        items = self.read_items(queue=queue, states=states, names=names, limit=limit)
        return [QueuedRun.of(self, item) for item in items]

    def read_items(
        self,
        *,
        queue: str | None = None,
        states: Iterable[StateType] | None = None,
        names: Iterable[str] | None = None,
        limit: int | None = _PAGE,
    ) -> list[Item]:
        """Like `items`, but returns the items as they are now instead of handles on them."""
        wanted = None if states is None else list(states)
        named = None if names is None else list(names)

        async def read(session: Session) -> list[Item]:
            if queue is not None:
                await session.queue(queue)
            found: list[Item] = []
            while limit is None or len(found) < limit:
                size = _PAGE if limit is None else min(_PAGE, limit - len(found))
                page = await session.server.list_items(
                    pool=queue, state_types=wanted, names=named, limit=size, offset=len(found)
                )
                found.extend(page)
                if len(page) < size:
                    break
            return found

        return [item for item in self.call(read) if item.work_pool_name or queue]

    def queued_run(self, item_id: str | UUID) -> QueuedRun:
        """Return the item of that id.

        Raises:
            InvalidNameError: when the id is no UUID.
            NotFoundError: when there is none.
        """
        from prefect_launch.client.queued_run import QueuedRun

        try:
            wanted = item_id if isinstance(item_id, UUID) else UUID(item_id)
        except ValueError:
            raise InvalidNameError(
                f"Invalid item id {item_id!r}: give the UUID that 'launch_add' or 'prefect-launch item list' shows."
            ) from None
        item = self.call(lambda session: session.server.read_item(wanted))
        if item is None:
            raise NotFoundError(
                f"There is no item {str(wanted)!r} on {self.ui_url}. 'prefect-launch item list' shows them."
            )
        return QueuedRun.of(self, item)


_chosen: ContextVar[Api | None] = ContextVar("prefect_launch_api", default=None)


@contextmanager
def use_api(api: _Api) -> Iterator[_Api]:
    """Let the calls inside the block that name no `Api` use this one; `launch_add` has no argument for it."""
    token = _chosen.set(api)
    try:
        yield api
    finally:
        _chosen.reset(token)


def default_api() -> Api:
    """Return the `Api` of calls that name none: that of `use_api`, or one a process, to keep its connection."""
    return _chosen.get() or _of_process()


@lru_cache(maxsize=1)
def _of_process() -> Api:
    return Api()
