"""Agents whose queue runs on an in-memory cluster, and lives of agents that end at any call, for unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.loop import Loop
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.errors import ServerUnavailableError
from prefect_launch.runners.registry import RUNNERS
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryApi, InMemoryCluster, InMemoryRemoteRunner
from prefect_launch.testing.remote_runner import InMemoryUnholdingRunner
from tests.support.bench import eventually

QUEUE, RESOURCE = "cluster", "in-memory-cluster"


class ClusterBench:
    """A queue of a resource that another package brings, and agents that submit the queue's items to one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = InMemoryApi(entity="acme", project="digits")
        self.api.create_run_queue(QUEUE, RESOURCE, config={"node": "big"})
        self.cluster = InMemoryCluster()

    def agent(self, *, can_hold: bool = True, **config: Any) -> LaunchAgent:
        """Make an agent, or its next life."""
        kind = InMemoryRemoteRunner if can_hold else InMemoryUnholdingRunner
        settings = {"name": "box", "queues": [QUEUE], "home": self.folder, "poll_seconds": 0.05, **config}
        return LaunchAgent(self.api, settings, runners={RESOURCE: kind(self.folder, self.cluster)})

    @asynccontextmanager
    async def running(self, *, can_hold: bool = True, **config: Any) -> AsyncIterator[LaunchAgent]:
        """Run an agent beside the test; it leaves at the end, and what is in the cluster stays there."""
        agent = self.agent(can_hold=can_hold, **config)
        loop = asyncio.create_task(agent.loop())
        try:
            yield agent
            agent.stop()
            await asyncio.wait_for(loop, 10)
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
_BESIDE = ("beat_", "list_queues", "read_pool", "find_deployment", "watch_", "delete_worker", "count_items", "ping")
_in_this_life: ContextVar[bool] = ContextVar("in_this_life", default=False)


class Life:
    """One life of an agent, which hangs for ever at its n-th call to server or cluster, as a killed one does."""

    def __init__(self, bench: ClusterBench, dies_at: int | None, *, can_hold: bool = True, max_jobs: int = 1) -> None:
        self._bench = bench
        self._max_jobs = max_jobs
        self._can_hold = can_hold
        self._dies_at = dies_at
        self.calls: list[str] = []
        self.died = asyncio.Event()
        self._buried = asyncio.Event()
        bench.api.server.before_call = self.step
        bench.api.server.after_call = self.step

    async def live(self) -> None:
        """Run an agent until its queue is empty, or it dies."""
        _in_this_life.set(True)
        settings = {
            "name": "box",
            "queues": [QUEUE],
            "home": self._bench.folder,
            "poll_seconds": 0.05,
            "max_jobs": self._max_jobs,
        }
        runner = DyingRunner(self._bench.folder, self._bench.cluster, self)
        runner.can_hold = self._can_hold  # type: ignore[misc]
        agent = LaunchAgent(self._bench.api, settings, runners={RESOURCE: runner})
        async with agent.connected():  # No lock: a process that dies lets go of it.
            await Loop(agent, until_empty=True, max_runtime_seconds=None).run()

    async def step(self, call: str) -> None:
        """Make one call outside, or die at it."""
        if not _in_this_life.get():
            return
        if not call.startswith(_BESIDE):
            self.calls.append(call)
            if len(self.calls) == self._dies_at:
                self.died.set()
        if self.died.is_set():
            await self._buried.wait()
            raise ServerUnavailableError("it is dead")

    async def bury(self, task: asyncio.Task[None]) -> None:
        """Clear away a dead agent's tasks; none of its calls takes effect any more."""
        task.cancel()
        self._buried.set()
        await asyncio.wait({task})


class DyingRunner(InMemoryRemoteRunner):
    """A runner of an agent that dies at a call."""

    def __init__(self, home: Path, cluster: InMemoryCluster, life: Life) -> None:
        super().__init__(home, cluster)
        self._life = life

    async def stop(self, handle: str, grace_seconds: float) -> None:
        await self._life.step("stop")  # What the dead would note on this machine is not noted.
        await super().stop(handle, grace_seconds)

    async def _call(self, name: str) -> InMemoryCluster:
        await self._life.step(name)
        return await super()._call(name)
