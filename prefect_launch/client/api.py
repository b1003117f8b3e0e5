"""Client `Api`: the Prefect server, the caller's entity and project, and the job store.

An `Api` is a plain value, so that it can be a flow's parameter. It opens its connection when it is first used and keeps
it on a thread of its own, so that its methods can be called from synchronous and asynchronous code alike.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from prefect_launch.core.event_loop import Background
from prefect_launch.core.names import ENTITY_VARIABLES, PROJECT_VARIABLES, UNNAMED, check_name
from prefect_launch.core.signature import made_of_arguments
from prefect_launch.core.states import StateType
from prefect_launch.errors import InvalidNameError, NotFoundError, QueueError
from prefect_launch.queues.moved import read_current
from prefect_launch.queues.options import QueueOptions, make_config
from prefect_launch.server.http import DEFAULT_PATIENCE_SECONDS
from prefect_launch.server.paging import all_items
from prefect_launch.server.values import PAGE, ItemFilter

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from prefect_launch.client.callable_job import CallableJob
    from prefect_launch.client.delete_job import DeletedJob
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.client.run_queue import RunQueue
    from prefect_launch.jobs.model import Job, JobSummary
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.jobs.store import JobStore
    from prefect_launch.queues.agent_status import AgentInfo, QueueActivity
    from prefect_launch.queues.session import Session
    from prefect_launch.registries.base import Registry
    from prefect_launch.server.protocol import Server
    from prefect_launch.server.secrets import ReadSecret
    from prefect_launch.server.values import Item


T = TypeVar("T")
_Api = TypeVar("_Api", bound="Api")


def machine_registries() -> Registry:
    """Return access to all registries, with this machine's credentials.

    Raises:
        AgentConfigError: when the machine's agent config, which names registries too, is wrong.
    """
    from prefect_launch.registries.client import RemoteRegistries
    from prefect_launch.settings.agent_config import resolve_agent_config

    return RemoteRegistries(resolve_agent_config().keychain(), pauses=())


def _from_environment(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), UNNAMED)


class Api(BaseModel):
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
    def _validate_name(cls, value: str, info: Any) -> str:
        return check_name(info.field_name, value)

    # --- connections ---

    @asynccontextmanager
    async def connect(self, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> AsyncIterator[Server]:
        """Open a client of the server on this event loop.

        Args:
            patience_seconds: how long a request is retried while the server is busy or does not answer.
        """
        from prefect_launch.server.client import connect

        async with connect(self.url, patience_seconds=patience_seconds) as server:
            yield server

    @asynccontextmanager
    async def job_registry(self, server: Server | None = None) -> AsyncIterator[JobRegistry]:
        """Open the job registry on this event loop, with an open server or a new one."""
        if server is None:
            async with self.connect() as own, self.job_registry(own) as registry:
                yield registry
            return
        from prefect_launch.jobs.registry import JobRegistry

        store = await self._load_store(server.client)
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
        """Run an async function of an open session from synchronous code, over the shared connection."""
        return self._connection().call(function)

    async def acall(self, function: Callable[[Session], Awaitable[T]]) -> T:
        """Run an async function of an open session from any event loop, over the shared connection."""
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
        """Access to all registries, with this machine's credentials."""
        return machine_registries()

    def _secrets(self, server: Server) -> ReadSecret:
        """Return a function that reads a Secret block of the server by name."""
        from prefect_launch.server.secrets import read_secret

        return partial(read_secret, client=server.client)

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
        limit: int | None = PAGE,
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
        return [QueuedRun(self, item) for item in items]

    def read_items(
        self,
        *,
        queue: str | None = None,
        states: Iterable[StateType] | None = None,
        names: Iterable[str] | None = None,
        limit: int | None = PAGE,
        moved: bool = False,
    ) -> list[Item]:
        """Like `items`, but returns the items themselves instead of handles on them.

        With `moved`, also those whose place another item has taken.
        """
        wanted = None if states is None else list(states)
        named = None if names is None else list(names)

        async def read(session: Session) -> list[Item]:
            if queue is not None:
                await session.queue(queue)
            found: list[Item] = []
            if limit is not None and limit < 1:
                return found
            page = PAGE if limit is None else min(PAGE, limit)
            filters = ItemFilter(pool=queue, state_types=wanted, names=named, moved=moved)
            async for item in all_items(session.server, page=page, by_id=False, **filters):
                found.append(item)
                if len(found) == limit:
                    break
            return found

        return [item for item in self.call(read) if item.work_pool_name or queue]

    def queued_run(self, *path: str | UUID) -> QueuedRun:
        """Return an item.

        Args:
            path: its id, which is enough; or entity, project, queue and id, as the reference's callers give it.

        Raises:
            InvalidNameError: when the id is no UUID.
            NotFoundError: when there is none, or it is on another queue than the one that is given.
        """
        from prefect_launch.client.queued_run import QueuedRun

        if len(path) not in (1, 4):
            raise InvalidNameError(f"Give an item's id, or its entity, project, queue and id, not {path!r}.")
        item_id = path[-1]
        try:
            wanted = item_id if isinstance(item_id, UUID) else UUID(item_id)
        except ValueError:
            raise InvalidNameError(
                f"Invalid item id {item_id!r}: give the UUID that 'launch_add' or 'prefect-launch item list' shows."
            ) from None
        item = self.call(lambda session: read_current(session.server, wanted))
        where = f" on the queue {path[2]!r}" if len(path) > 1 else ""
        if item is None or (where and item.work_pool_name != path[2]):
            raise NotFoundError(
                f"There is no item {str(wanted)!r}{where} on {self.ui_url}. 'prefect-launch item list' shows them."
            )
        return QueuedRun(self, item)

    # --- jobs and queues ---

    def job(self, name: str, path: str | os.PathLike[str] | None = None) -> CallableJob:
        """Return the job that `entity/project/name:alias`, or a shorter form, names.

        Args:
            name: of the job.
            path: a folder to write its document and its code to, as far as the job keeps it; it must not exist yet, or
                be empty. By default, nothing is written.

        Raises:
            NotFoundError: when there is none; names the nearest one.
            ArtifactError: when its archive is damaged.
            InfrastructureError: when the storage or the disk fails.
        """
        from prefect_launch.client.callable_job import CallableJob

        job = CallableJob.of(self.call(lambda session: session.jobs.resolve(name)), self)
        if path is not None:
            job.download(path)
        return job

    def jobs(self, entity: str | None = None, project: str | None = None) -> list[JobSummary]:
        """List jobs by name, all or of one entity or project."""
        return self.call(lambda session: session.jobs.list(entity, project))

    def job_aliases(self, job: Job) -> tuple[str, ...]:
        """List the current aliases of this version of a job, `latest` included."""
        return self.call(lambda session: session.jobs.aliases(job))

    def delete_job(self, name: str, *, force: bool = False) -> DeletedJob:
        """Delete a job with all its versions, or the one that an alias or a version in the name means.

        A number of a version is not used again. The job's files stay in the store: other jobs may have the same.

        Args:
            name: `entity/project/name`, or a shorter form; with `:alias` or `:v3`, only that version.
            force: also while items that wait name it: an agent without a copy of the job fails them.

        Raises:
            NotFoundError: when there is none.
            LaunchError: when items that wait name it.
        """
        from prefect_launch.client.delete_job import delete_job

        return self.call(lambda session: delete_job(session, name, force=force))

    def set_job_alias(self, job: str, alias: str) -> Job:
        """Point an alias to a version of a job, wherever it pointed before; returns that version.

        Raises:
            NotFoundError: for an unknown job, alias or version.
            InvalidNameError: for `latest`, which always means the highest version, and for a name of a version.
        """
        return self.call(lambda session: session.jobs.set_alias(job, alias))

    def delete_job_alias(self, job: str, alias: str) -> str:
        """Delete an alias of a job; its version stays. Returns the job's path.

        Raises:
            NotFoundError: when the job has no such alias.
            InvalidNameError: for `latest`.
        """
        return self.call(lambda session: session.jobs.delete_alias(job, alias))

    def deploy_job(self, job: str, queue: str, *, name: str | None = None) -> tuple[Job, UUID, str]:
        """Create or update the deployment of a job on a queue.

        Args:
            job: the job; the deployment starts the version that this name means now.
            queue: where its items go.
            name: of the deployment; by default the job's.

        Returns:
            The job, the deployment's id and its name.

        Raises:
            LaunchError: as `prefect_launch.queues.deployment.deploy_job` does.
        """
        from prefect_launch.queues.deployment import deploy_job

        return self.call(lambda session: deploy_job(session, job, queue, name=name))

    # --- queues ---

    @made_of_arguments(QueueOptions)
    def create_run_queue(self, options: QueueOptions) -> RunQueue:
        """Create a queue; the arguments are the attributes of `QueueOptions`.

        Raises:
            QueueError: when it exists already, or its configuration is wrong.
            InvalidNameError: for a bad name.
            NotFoundError: for an unknown resource or option.
        """
        return self.write_run_queue(options, replace=False)

    @made_of_arguments(QueueOptions)
    def upsert_run_queue(self, options: QueueOptions) -> RunQueue:
        """Create or update a queue; takes the arguments of `create_run_queue`."""
        return self.write_run_queue(options, replace=True)

    def write_run_queue(self, options: QueueOptions, *, replace: bool) -> RunQueue:
        """Create a queue from its options; with `replace`, update an existing one of that name.

        Raises:
            LaunchError: as `create_run_queue`.
        """
        from prefect_launch.client.run_queue import RunQueue
        from prefect_launch.queues.pool import check_concurrency, check_queue_name, create_queue
        from prefect_launch.runners.registry import runner_class

        name = check_queue_name(options.name)
        concurrency = check_concurrency(options.concurrency)
        owner = check_name("entity", options.entity or self.entity)
        made = make_config(dataclasses.replace(options, entity=owner))

        async def write(session: Session) -> Any:
            await runner_class(made.resource).check_on_server(made.resource_args, session.server)
            return await create_queue(session, name, made, concurrency=concurrency, replace=replace)

        return RunQueue(self, self.call(write))

    def edit_run_queue(self, options: QueueOptions) -> RunQueue:
        """Give a queue these options; without a `concurrency` it has no limit of active items any more.

        Raises:
            NotFoundError: when there is none of that name.
            LaunchError: as `create_run_queue`; the queue is unchanged then.
        """
        before = self.run_queue(options.name)
        queue = self.write_run_queue(options, replace=True)
        if options.concurrency is None and before.concurrency_limit is not None:
            queue.set_concurrency_limit(None)
        return queue

    def run_queue(self, *path: str) -> RunQueue:
        """Return a queue.

        Args:
            path: its name, which is enough; or its entity and its name, as the reference's callers give it.

        Raises:
            NotFoundError: when there is none, or it is of another entity; names the nearest one.
        """
        from prefect_launch.client.run_queue import RunQueue

        if len(path) not in (1, 2):
            raise InvalidNameError(f"Give a queue's name, or its entity and its name, not {path!r}.")
        name = path[-1]

        async def read(session: Session) -> Any:
            session.forget_queue(name)
            await session.queue(name)
            return await session.server.read_pool(name)

        queue = RunQueue(self, self.call(read))
        if len(path) > 1 and queue.entity != path[0]:
            raise NotFoundError(f"The queue {name!r} is of the entity {queue.entity!r}, not of {path[0]!r}.")
        return queue

    def run_queues(self) -> list[RunQueue]:
        """List the queues, by name; work pools of the type that have no launch configuration are left out."""
        from prefect_launch.client.run_queue import RunQueue

        found = []
        for pool in self.call(lambda session: session.server.list_pools()):
            try:
                found.append(RunQueue(self, pool))
            except QueueError:
                continue
        return sorted(found, key=lambda queue: queue.name)

    def update_run_queue(self, name: str, **changes: Any) -> None:
        """Change a queue's `is_paused` or `concurrency_limit`.

        Raises:
            NotFoundError: when there is none of that name.
        """

        async def update(session: Session) -> None:
            await session.queue(name)
            await session.server.update_pool(name, **changes)

        self.call(update)

    def delete_run_queue(self, name: str) -> int:
        """Delete a queue with its waiting items; returns how many those were.

        Raises:
            NotFoundError: when there is none of that name.
        """
        from prefect_launch.queues.pool import delete_queue

        return self.call(lambda session: delete_queue(session, name))

    def queue_activity(self, queues: Iterable[str]) -> list[QueueActivity]:
        """Return the waiting and active items of each of these queues, and its agents."""
        from prefect_launch.queues.agent_status import queue_activity

        names = list(queues)
        return self.call(lambda session: queue_activity(session.server, names))

    def agents(self) -> list[AgentInfo]:
        """List the agents of all queues, by name."""
        from prefect_launch.queues.agent_status import agents

        return self.call(lambda session: agents(session.server))

    def drain_agent(self, name: str, *, undo: bool = False) -> AgentInfo:
        """Drain an agent on any machine: it takes no more items, and exits when its jobs are done.

        Args:
            name: of the agent.
            undo: let it take items again instead.

        Returns:
            The agent, as it was before.

        Raises:
            NotFoundError: when there is no agent of that name.
            LaunchError: when it is offline, or it has no drain request.
        """
        from prefect_launch.queues.agent_status import drain_agent

        return self.call(lambda session: drain_agent(session.server, name, undo=undo))


_chosen: ContextVar[Api | None] = ContextVar("prefect_launch_api", default=None)


@contextmanager
def use_api(api: _Api) -> Iterator[_Api]:
    """Use this `Api` for calls inside the block that name none; `launch_add` has no argument for it."""
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
