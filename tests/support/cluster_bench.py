"""Agents whose queue runs on an in-memory cluster, and lives of agents that end at any call, for unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.loop import Loop
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.registry import RUNNERS
from prefect_launch.runners.remote.jobs import RemoteJob
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryApi, InMemoryCluster, InMemoryRemoteRunner
from tests.support.bench import eventually

QUEUE, RESOURCE = "cluster", "in-memory-cluster"


class ClusterBench:
    """A queue of a resource that another package brings, and agents that submit the queue's items to one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = InMemoryApi(entity="acme", project="digits")
        self.api.create_run_queue(QUEUE, RESOURCE, config={"node": "big"})
        self.cluster = InMemoryCluster()

    def agent(self, *, kind: type[InMemoryRemoteRunner] = InMemoryRemoteRunner, **config: Any) -> LaunchAgent:
        """Make an agent, or its next life."""
        settings = {"name": "box", "queues": [QUEUE], "home": self.folder, "poll_seconds": 0.05, **config}
        return LaunchAgent(self.api, settings, runners={RESOURCE: kind(self.folder, self.cluster)})

    @asynccontextmanager
    async def running(
        self, *, kind: type[InMemoryRemoteRunner] = InMemoryRemoteRunner, **config: Any
    ) -> AsyncIterator[LaunchAgent]:
        """Run an agent beside the test; it leaves at the end, and what is in the cluster stays there."""
        agent = self.agent(kind=kind, **config)
        loop = asyncio.create_task(agent.loop())
        try:
            yield agent
            agent.stop()
            await asyncio.wait_for(loop, 60)
        finally:
            loop.cancel()
            await asyncio.wait({loop})

    async def add(self, count: int = 1, **spec: Any) -> list[Item]:
        """Put items on the queue."""
        specs = [{"docker": {"docker_image": "busybox:1"}, **spec} for _ in range(count)]
        runs = await alaunch_add_many(specs, QUEUE, api=self.api)
        return [await self.read(UUID(run.id)) for run in runs]

    async def read(self, item_id: UUID) -> Item:
        """Read an item that is there."""
        found = await self.api.server.read_item(item_id)
        assert found is not None
        return found

    async def until(self, item: Item, name: str) -> Item:
        """Wait until an item is in the state of a name."""
        found: Item = await eventually(lambda: self.read(item.id), lambda found: found.state_name == name)
        return found

    async def states(self, item: Item) -> list[str]:
        """Names of the states that an item was in, oldest first."""
        return [state.name for state in await self.api.server.read_states(item.id)]

    async def log(self, item: Item) -> list[str]:
        """The lines of the item's log, as the UI shows them."""
        records = await self.api.server.read_logs(item.id, limit=100_000)
        return [line for record in records for line in record.message.splitlines()]


#: The in-memory runner as an entry point names it.
_IN_MEMORY = "prefect_launch.testing.remote_runner:InMemoryRemoteRunner"


@contextmanager
def registered_runner(
    folder: Path, monkeypatch: pytest.MonkeyPatch, resource: str = RESOURCE, point: str = _IN_MEMORY
) -> Iterator[None]:
    """Install a package that brings a runner, for as long as the block lasts."""
    package = folder / "package"
    metadata = package / "in_memory_cluster-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: in-memory-cluster\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[prefect_launch.runners]\n{resource} = {point}\n")
    monkeypatch.syspath_prepend(str(package))
    RUNNERS.read_again()
    yield
    RUNNERS.read_again()


# --- an agent that is killed ---

#: Calls that an agent makes beside its work on the item.
_BESIDE = ("beat_", "list_queues", "read_pool", "find_deployment", "watch_", "delete_worker", "count_", "ping")
#: The life that a task belongs to; None: whoever makes a call goes on living.
_this_life: ContextVar[Life | None] = ContextVar("this_life", default=None)


class Life:
    """One life of an agent, which hangs for ever at its n-th step, as a killed one does.

    A step is what is outside of its memory: the beginning and the end of a call to the server or to the cluster, and
    of work on its files.
    """

    def __init__(
        self,
        bench: ClusterBench,
        dies_at: int | None,
        *,
        kind: type[InMemoryRemoteRunner] = InMemoryRemoteRunner,
        max_jobs: int = 1,
    ) -> None:
        self._bench = bench
        self._max_jobs = max_jobs
        self._kind = kind
        self._dies_at = dies_at
        self.calls: list[str] = []
        self.died = asyncio.Event()
        self._buried = asyncio.Event()
        bench.api.server.before_call = self._server_step
        bench.api.server.after_call = self._server_step

    async def live(self) -> None:
        """Run an agent until its queue is empty, or it dies."""
        _this_life.set(self)
        settings = {
            "name": "box",
            "queues": [QUEUE],
            "home": self._bench.folder,
            "poll_seconds": 0.05,
            "max_jobs": self._max_jobs,
        }
        runner = _dying(self._kind)(self._bench.folder, self._bench.cluster)
        agent = LaunchAgent(self._bench.api, settings, runners={RESOURCE: runner})
        async with agent.connected():  # No lock: a process that dies lets go of it.
            await Loop(agent, until_empty=True, max_runtime_seconds=None).run()

    async def step(self, call: str) -> None:
        """Make one step, or die at it."""
        if not call.startswith(_BESIDE):
            self.calls.append(call)
            if len(self.calls) == self._dies_at:
                self.died.set()
        if self.died.is_set():
            await self._buried.wait()
            raise asyncio.CancelledError  # An error would take the place of the one that clears its tasks away.

    async def bury(self, task: asyncio.Task[None]) -> None:
        """Clear away a dead agent's tasks; none of its calls takes effect any more."""
        self.died.set()
        task.cancel()
        self._buried.set()
        await asyncio.wait({task})
        self._bench.api.server.before_call = self._bench.api.server.after_call = None

    async def _server_step(self, call: str) -> None:
        if _this_life.get() is self:
            await self.step(call)


async def _step(call: str) -> None:
    life = _this_life.get()
    if life is not None:
        await life.step(call)


def _dying(kind: type[InMemoryRemoteRunner]) -> type[InMemoryRemoteRunner]:
    """Return a runner of an agent that may die before each of its calls, and after those that change something."""

    class Dying(kind):  # type: ignore[misc, valid-type]
        async def submit(self, plan: RunPlan) -> RemoteJob:
            job: RemoteJob = await super().submit(plan)
            await _step("submitted")
            return job

        async def release(self, handle: str) -> None:
            await super().release(handle)
            await _step("released")

        async def cancel(self, handle: str, grace_seconds: float) -> None:
            await super().cancel(handle, grace_seconds)
            await _step("cancelled")

        async def delete(self, handle: str) -> None:
            await super().delete(handle)
            await _step("deleted")

        async def _call(self, name: str) -> InMemoryCluster:
            await _step(name)
            cluster: InMemoryCluster = await super()._call(name)
            return cluster

    return Dying


@contextmanager
def files_that_are_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count work on files, which is done in threads, as steps of a life too."""
    run_sync, to_thread = anyio.to_thread.run_sync, asyncio.to_thread

    async def stepping_run_sync(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await _step("files")
        return await run_sync(work, *arguments, **options)

    async def stepping_to_thread(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        await _step("files")
        return await to_thread(work, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", stepping_run_sync)
        patch.setattr(asyncio, "to_thread", stepping_to_thread)
        yield
