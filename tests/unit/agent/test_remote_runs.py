"""Runs that a cluster accepts, queues and starts itself: what the agent shows, counts and finds again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.loop import Loop
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ServerUnavailableError, UnsafeSpecError
from prefect_launch.queues.agent_status import queue_activity
from prefect_launch.queues.session import Session
from prefect_launch.queues.wait_reason import WaitCause, why_waiting
from prefect_launch.runners.registry import RUNNERS
from prefect_launch.runners.remote import base
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryApi, InMemoryCluster, InMemoryRemoteRunner, Script
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


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterBench]:
    package = tmp_path / "package"
    metadata = package / "in_memory_cluster-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: in-memory-cluster\nVersion: 1\n")
    point = "prefect_launch.testing.remote_runner:InMemoryRemoteRunner"
    (metadata / "entry_points.txt").write_text(f"[prefect_launch.runners]\n{RESOURCE} = {point}\n")
    monkeypatch.syspath_prepend(str(package))
    RUNNERS.read_again()
    yield ClusterBench(tmp_path / "home")
    RUNNERS.read_again()


async def test_item_waits_in_the_cluster_with_its_reason_then_runs(bench: ClusterBench) -> None:
    bench.cluster.nodes, bench.cluster.reason = 0, "0/3 nodes are available: 3 Insufficient cpu."
    (item,) = await bench.add()
    async with bench.running():
        waits = await bench.until(item, "Submitted")
        assert waits.message == "Waits in in-memory-cluster: 0/3 nodes are available: 3 Insufficient cpu."
        assert (waits.state_type, waits.run_count) == (StateType.PENDING, 0)
        assert bench.cluster.started == []
        bench.cluster.resize(1)
        await bench.until(item, "Completed")
    assert await bench.states(item) == ["Queued", "Pending", "Submitted", "Running", "Completed"]
    assert bench.cluster.jobs == {}


async def test_item_that_the_cluster_starts_at_once_is_never_shown_as_waiting(bench: ClusterBench) -> None:
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Completed")
    assert await bench.states(item) == ["Queued", "Pending", "Running", "Completed"]


async def test_later_reason_is_reported_in_the_log_of_the_item(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_NEXT_REASON_SECONDS", 0.05)
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Submitted")
        bench.cluster.reason = "the image cannot be pulled"
        wanted = "Waits in in-memory-cluster: the image cannot be pulled"
        await eventually(lambda: bench.log(item), lambda lines: wanted in lines)
        # The newest is what its page and `item show` say, and one that no longer holds is not said.
        async with bench.api.open() as session:
            await eventually(lambda: _why(session, item), lambda why: why == (WaitCause.ELSEWHERE, wanted, "", wanted))
        bench.cluster.resize(1)
        await bench.until(item, "Completed")
    [shown] = [one for one in await bench.api.server.list_artifacts(item.id) if one["key"] == "waits-1"]
    assert shown["data"] == f"It waits no longer. The last reason: {wanted}"
    assert (await bench.states(item)).count("Submitted") == 1


async def _why(session: Session, item: Item) -> tuple[object, ...]:
    found = await session.server.read_item(item.id)
    assert found is not None
    why = await why_waiting(session, found)
    assert why is not None
    return (why.cause, why.reason, why.position, str(why))


async def test_items_that_wait_in_the_cluster_take_no_slot_up_to_the_runners_maximum(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryRemoteRunner, "max_submitted", 3)
    bench.cluster.nodes = 0
    items = await bench.add(6)

    async def names() -> Counter[str]:
        return Counter([(await bench.read(item.id)).state_name or "" for item in items])

    async with bench.running(max_jobs=1) as agent:
        await eventually(names, lambda found: found["Submitted"] == 4)
        await asyncio.sleep(0.3)
        assert await names() == {"Submitted": 4, "Queued": 2}  # Three that take no slot, and one that takes the slot.
        assert agent.num_running_jobs == 1
        bench.cluster.resize(6)
        await eventually(names, lambda found: found["Completed"] == 6)
    assert sorted(bench.cluster.started) == sorted(f"launch-{item.id}-1" for item in items)


async def test_queue_says_how_many_of_its_items_wait_in_the_cluster(bench: ClusterBench) -> None:
    bench.cluster.nodes = 1
    bench.cluster.script = lambda plan: Script(seconds=600)
    items = await bench.add(3)
    async with bench.running(max_jobs=3) as agent:
        await eventually(
            lambda: queue_activity(bench.api.server, [QUEUE]),
            lambda found: (found[0].active, found[0].submitted) == (3, 2),
        )
        for item in items:
            assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        for item in items:
            await bench.until(item, "Cancelled")
        assert agent.num_running_jobs == 0


async def test_item_that_is_cancelled_while_it_waits_in_the_cluster_never_runs(bench: ClusterBench) -> None:
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Submitted")
        assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        ended = await bench.until(item, "Cancelled")
    assert ended.message == "Stopped before it was started: job gone from the cluster."
    assert (bench.cluster.jobs, bench.cluster.started) == ({}, [])


async def test_agent_that_stops_its_jobs_takes_back_what_waits_in_the_cluster(bench: ClusterBench) -> None:
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    async with bench.running() as agent:
        await bench.until(item, "Submitted")
        agent.shutdown.leave(stop_jobs=True)
        await bench.until(item, "Queued")
    assert bench.cluster.jobs == {}


async def test_preempted_job_is_told_from_one_that_failed(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=60)
    (item,) = await bench.add(retries={"max": 0})
    async with bench.running():
        await bench.until(item, "Running")
        bench.cluster.preempt(f"launch-{item.id}-1")
        ended = await bench.until(item, "Crashed")
    assert ended.state is not None
    assert (ended.state.data or {})["exit_code"] == 137


async def test_status_of_all_jobs_is_asked_for_in_one_call(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600)
    items = await bench.add(20)
    async with bench.running(max_jobs=20):
        for item in items:
            await bench.until(item, "Running")
        before, began = bench.cluster.calls["poll"], time.monotonic()
        await asyncio.sleep(0.5)
        polls, seconds = bench.cluster.calls["poll"] - before, time.monotonic() - began
        assert polls <= seconds / 0.05 + 1  # Every 0.05 s at most, however many run.
        for item in items:
            assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        for item in items:
            await bench.until(item, "Cancelled")


async def test_cluster_that_is_away_for_a_while_ends_no_run(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=0.4, log=(b"one\n",), late_log=(b"two\n",))
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Running")
        bench.cluster.reachable = False
        await asyncio.sleep(0.8)
        bench.cluster.reachable = True
        await bench.until(item, "Completed")
    assert await bench.log(item) == ["one", "two"]


@pytest.mark.parametrize(("pod", "is_refused"), [({"privileged": True}, True), ({"labels": {"team": "a"}}, False)])
async def test_options_of_the_submitter_are_checked_apart_from_those_of_the_owner(
    bench: ClusterBench, pod: dict[str, Any], is_refused: bool
) -> None:
    # What the owner sets is never held against the submitter.
    bench.api.create_run_queue("free", RESOURCE, config={"pod": {"privileged": True}, "node": "big"})
    spec = {"docker": {"docker_image": "busybox:1"}}
    await alaunch_add_many([spec], "free", api=bench.api)
    asked = {**spec, "resource_args": {RESOURCE: {"pod": pod}}}
    if is_refused:
        with pytest.raises(UnsafeSpecError, match=r"pod\.privileged may be set by the queue's owner only"):
            await alaunch_add_many([asked], QUEUE, api=bench.api)
    else:
        await alaunch_add_many([asked], QUEUE, api=bench.api)


# --- an agent that is killed ---

#: Calls that an agent makes beside its work on the item.
_BESIDE = ("beat_", "list_queues", "read_pool", "find_deployment", "watch_", "delete_worker", "count_items", "ping")
_in_this_life: ContextVar[bool] = ContextVar("in_this_life", default=False)


class _Life:
    """One life of an agent, which hangs for ever at its n-th call to server or cluster, as a killed one does."""

    def __init__(self, bench: ClusterBench, dies_at: int | None, *, can_hold: bool = True) -> None:
        self._bench = bench
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
        settings = {"name": "box", "queues": [QUEUE], "home": self._bench.folder, "poll_seconds": 0.05}
        runner = _DyingRunner(self._bench.folder, self._bench.cluster, self)
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


class _DyingRunner(InMemoryRemoteRunner):
    def __init__(self, home: Path, cluster: InMemoryCluster, life: _Life) -> None:
        super().__init__(home, cluster)
        self._life = life

    async def stop(self, handle: str, grace_seconds: float) -> None:
        await self._life.step("stop")  # What the dead would note on this machine is not noted.
        await super().stop(handle, grace_seconds)

    async def _call(self, name: str) -> InMemoryCluster:
        await self._life.step(name)
        return await super()._call(name)


async def _live(bench: ClusterBench, dies_at: int | None, *, can_hold: bool) -> list[str]:
    """Let an agent die at a call, and the next one finish; return the calls that the first one made."""
    bench.cluster.script = lambda plan: Script(seconds=0.05, log=(b"one\n",), late_log=(b"two\n",))
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    life = _Life(bench, dies_at, can_hold=can_hold)
    first = asyncio.create_task(life.live())
    dying = asyncio.create_task(life.died.wait())
    seen = asyncio.create_task(bench.until(item, "Submitted"))
    await asyncio.wait({first, dying, seen}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    bench.cluster.resize(1)
    await asyncio.wait({first, dying}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    await life.bury(first)
    for task in (dying, seen):
        task.cancel()
    bench.api.server.before_call = bench.api.server.after_call = None
    async with bench.running(can_hold=can_hold):
        ended = await bench.until(item, "Completed")
    assert (bench.cluster.started, ended.run_count) == ([f"launch-{item.id}-1"], 1), life.calls
    assert await bench.log(item) == ["one", "two"], life.calls
    assert bench.cluster.jobs == {}, life.calls
    return life.calls


async def test_agent_that_is_killed_while_the_item_waits_finds_it_again(bench: ClusterBench) -> None:
    bench.cluster.nodes = 0
    bench.cluster.script = lambda plan: Script(seconds=0.3, log=(b"one\n",), late_log=(b"two\n",))
    (item,) = await bench.add()
    life = _Life(bench, None)
    first = asyncio.create_task(life.live())
    await bench.until(item, "Submitted")
    life.died.set()
    await life.bury(first)
    async with bench.running():
        await asyncio.sleep(0.3)
        found = await bench.read(item.id)
        assert (found.state_name, found.state and found.state.data) == ("Submitted", {"wait_reason": "no node is free"})
        bench.cluster.resize(1)
        ended = await bench.until(item, "Completed")
    assert await bench.states(item) == ["Queued", "Pending", "Submitted", "Running", "Completed"]
    assert (bench.cluster.started, ended.run_count) == ([f"launch-{item.id}-1"], 1)
    assert await bench.log(item) == ["one", "two"]


@pytest.mark.parametrize("can_hold", [True, False])
async def test_agent_that_is_killed_at_any_call_runs_the_item_once_and_loses_no_line(
    bench: ClusterBench, tmp_path: Path, can_hold: bool
) -> None:
    calls = await _live(bench, None, can_hold=can_hold)
    for number in range(calls.index("submit") + 1, len(calls) + 1):  # Those before it are as with any runner.
        await _live(ClusterBench(tmp_path / str(number)), number, can_hold=can_hold)
