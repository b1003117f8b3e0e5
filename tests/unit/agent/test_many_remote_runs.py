"""Hundreds of runs in a cluster at once: each runs exactly once, whatever gets lost, and one agent follows them all."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.item.logs import LOGGER
from prefect_launch.agent.item.ownership import check_ownership
from prefect_launch.core.states import ItemState
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from prefect_launch.testing.remote_runner import InMemoryRemoteRunner, InMemoryUnholdingRunner
from tests.support.bench import eventually
from tests.support.cluster_bench import QUEUE, ClusterBench, Life, registered_runner

MANY = 200


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterBench]:
    with registered_runner(tmp_path, monkeypatch):
        yield ClusterBench(tmp_path / "home")


async def until_all(bench: ClusterBench, items: list[Item], name: str) -> None:
    """Wait until so many items are in the state of a name."""
    for _ in range(6_000):
        found = await bench.api.server.count_items(pool=QUEUE, state_names=[name])
        # An item ends before its job is removed, and an agent that leaves lets others remove it.
        if found == len(items) and not (name == "Completed" and bench.cluster.jobs):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{found} of {len(items)} are {name} after ten minutes")


async def assert_each_ran_once(bench: ClusterBench, items: list[Item]) -> None:
    """See that each job was started once, its log is whole, and nothing is left in the cluster."""
    assert sorted(bench.cluster.started) == sorted(f"launch-{item.id}-1" for item in items)
    assert {(await bench.read(item.id)).run_count for item in items} == {1}
    for item in items:
        records = await bench.api.server.read_logs(item.id, limit=100)
        lines = [line for record in records if record.name == LOGGER for line in record.message.splitlines()]
        assert lines == ["one", "two"]
    assert bench.cluster.jobs == {}


async def test_each_of_many_jobs_at_once_runs_exactly_once_though_answers_are_lost(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(11)
    answer = InMemoryRemoteRunner._answer

    def losing(runner: InMemoryRemoteRunner, value: object) -> object:
        bench.cluster.lost_answers = int(chance.random() < 0.05)
        return answer(runner, value)

    monkeypatch.setattr(InMemoryRemoteRunner, "_answer", losing)
    bench.cluster.nodes = 50
    bench.cluster.script = lambda plan: Script(seconds=0.05, log=(b"one\n",), late_log=(b"two\n",))
    items = await bench.add(MANY)
    async with bench.running(max_jobs=MANY, poll_seconds=1.0):
        await until_all(bench, items, "Completed")
    await assert_each_ran_once(bench, items)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [InMemoryRemoteRunner, InMemoryUnholdingRunner])
async def test_jobs_run_exactly_once_over_agents_that_are_killed_at_random_and_a_cluster_that_is_away(
    bench: ClusterBench, seed: int, kind: type[InMemoryRemoteRunner]
) -> None:
    chance = random.Random(seed)
    bench.cluster.nodes = 10
    bench.cluster.script = lambda plan: Script(seconds=0.1, log=(b"one\n",), late_log=(b"two\n",))
    items = await bench.add(30)
    for _ in range(6):
        life = Life(bench, chance.randint(20, 300), kind=kind, max_jobs=20)
        living = asyncio.create_task(life.live())
        dying = asyncio.create_task(life.died.wait())
        await asyncio.wait({living, dying}, timeout=chance.uniform(0.5, 3.0), return_when=asyncio.FIRST_COMPLETED)
        bench.cluster.reachable = chance.random() < 0.7
        await life.bury(living)
        dying.cancel()
    async with bench.running(kind=kind, max_jobs=20):
        bench.cluster.reachable = True
        await until_all(bench, items, "Completed")
    await assert_each_ran_once(bench, items)


async def test_restarted_agent_finds_many_running_jobs_by_few_calls_and_follows_each_to_its_end(
    bench: ClusterBench,
) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600, log=(b"one\n",), late_log=(b"two\n",))
    items = await bench.add(MANY)
    threads = threading.active_count()  # Tests before this one may have left some that idle.
    async with bench.running(max_jobs=MANY, poll_seconds=1.0):
        await until_all(bench, items, "Running")
        assert threading.active_count() - threads < MANY / 2  # The pool of the event loop, however many jobs run.
    before, reads = Counter(bench.cluster.calls), bench.api.server.calls["read_item"]
    async with bench.running(max_jobs=MANY, poll_seconds=1.0) as agent:
        await eventually(lambda: _in_work(agent), lambda count: count == MANY)
        calls = bench.cluster.calls - before
        assert bench.api.server.calls["read_item"] == reads
        assert (calls["submit"], calls["cancel"], calls["delete"]) == (0, 0, 0)
        assert calls["list"] <= 4
        for job in list(bench.cluster.jobs.values()):
            job.finish()
        await until_all(bench, items, "Completed")
    await assert_each_ran_once(bench, items)


async def test_ownership_of_many_items_is_checked_by_one_list_and_the_states_of_those_that_moved(
    bench: ClusterBench,
) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600)
    items = await bench.add(20)
    async with bench.running(max_jobs=20) as agent:
        await until_all(bench, items, "Running")
        entries = agent.running_items.entries
        await check_ownership(bench.api.server, entries)
        before = bench.api.server.calls["read_states"]
        await check_ownership(bench.api.server, entries)
        assert bench.api.server.calls["read_states"] == before
        # Somebody else has it by now: it is put back by hand, and claimed.
        await bench.api.server.propose(items[0].id, State.of(ItemState.CRASHED), force=True)
        await check_ownership(bench.api.server, entries)
        assert [one.id for one in entries if one.stop.is_set()] == [items[0].id]
        for job in list(bench.cluster.jobs.values()):
            job.finish()
        await until_all(bench, items[1:], "Completed")


async def test_job_that_was_deleted_by_hand_while_no_agent_was_there_is_lost_and_runs_again(
    bench: ClusterBench,
) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600)
    (item,) = await bench.add(retries={"max": 1, "on": ["lost"], "delay": 0})
    async with bench.running():
        await bench.until(item, "Running")
    bench.cluster.lose(f"launch-{item.id}-1")
    bench.cluster.script = lambda plan: Script(log=(b"again\n",))
    async with bench.running():
        ended = await bench.until(item, "Completed")
    assert ended.run_count == 2
    states = await bench.api.server.read_states(item.id)
    assert any("removed" in (state.message or "") or "gone" in (state.message or "") for state in states)


async def test_many_silent_jobs_are_stopped_at_once_and_none_is_left(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600)
    items = await bench.add(50)
    async with bench.running(max_jobs=50, poll_seconds=1.0):
        await until_all(bench, items, "Running")
        for item in items:
            assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        await until_all(bench, items, "Cancelled")
    assert bench.cluster.jobs == {}


async def _in_work(agent: LaunchAgent) -> int:
    return len(agent.thread_ids)
