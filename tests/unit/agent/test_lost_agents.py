"""Agents that are gone, as the others of their queue see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.item.ownership import check_ownership, holder_of
from prefect_launch.agent.recovery.lost_agents import LostAgentDetector
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryMachine, InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, holder_called


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watcher:
    """A watch of the agent `other`, and its clock."""

    def __init__(self, watch: LostAgentDetector, clock: Clock) -> None:
        self.watch = watch
        self._clock = clock

    async def checks(self, *, seconds: float, every: float = 15.0) -> None:
        passed = 0.0
        while passed <= seconds:
            await self.watch.check()
            self._clock.now += every
            passed += every


@asynccontextmanager
async def watching(bench: Bench, name: str = "other") -> AsyncIterator[Watcher]:
    clock = Clock()
    async with bench.api.open() as session:
        yield Watcher(LostAgentDetector(session, holder_called(name), [QUEUE], clock=clock), clock)


async def left_running(bench: Bench, name: str = "box", **spec: Any) -> Item:
    """An item that runs under an agent whose machine is gone: its last heartbeat stays on the list."""
    bench.plays(Script(seconds=60), Script())
    (item,) = await bench.add(**spec)
    async with bench.running(bench.agent(name)):
        await bench.until(item, StateType.RUNNING)
    await bench.server.beat_worker(QUEUE, name, 15)
    return item


async def test_item_of_a_lost_agent_comes_back_and_says_who_was_last_seen_when(bench: Bench) -> None:
    item = await left_running(bench)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    found = await bench.read(item.id)
    assert found.state_name == "AwaitingRetry"
    assert found.message.startswith("Crashed: [run] Agent box on ")
    assert "was last seen at 20" in found.message
    assert any("failure-report" in artifact["key"] for artifact in await bench.server.list_artifacts(item.id))


async def test_item_of_a_lost_agent_that_may_not_come_back_has_crashed(bench: Bench) -> None:
    item = await left_running(bench, retries=0)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    assert (await bench.read(item.id)).state_type is StateType.CRASHED


async def test_agent_is_not_lost_before_its_time(bench: Bench) -> None:
    item = await left_running(bench)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=75)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING


async def test_silence_that_nobody_looked_on_proves_nothing(bench: Bench) -> None:
    item = await left_running(bench)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=600, every=60)  # as when the server was away between
    assert (await bench.read(item.id)).state_type is StateType.RUNNING


async def test_agent_that_still_beats_is_not_lost(bench: Bench) -> None:
    item = await left_running(bench)
    async with watching(bench) as watcher:
        for _ in range(20):
            await watcher.checks(seconds=0)
            await bench.server.beat_worker(QUEUE, "box", 15)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING


async def test_agent_that_left_in_order_keeps_what_it_left_running(bench: Bench) -> None:
    item = await left_running(bench)
    await bench.server.delete_worker(QUEUE, "box")
    async with watching(bench) as watcher:
        await watcher.checks(seconds=300)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING


async def test_item_of_another_agent_is_left_alone(bench: Bench) -> None:
    item = await left_running(bench, "third")
    await bench.server.delete_worker(QUEUE, "third")
    await bench.server.beat_worker(QUEUE, "box", 15)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING


async def test_two_agents_that_tell_of_the_same_loss_put_the_item_back_once(bench: Bench) -> None:
    item = await left_running(bench)
    async with watching(bench, "one") as one, watching(bench, "two") as two:
        await one.checks(seconds=75)
        await two.checks(seconds=75)
        await asyncio.gather(one.checks(seconds=30), two.checks(seconds=30))
    assert (await bench.states(item)).count("AwaitingRetry") == 1


async def test_agent_that_comes_back_stops_what_is_another_attempt_by_now(bench: Bench) -> None:
    bench.plays(Script(seconds=60), Script())
    (item,) = await bench.add(retries={"delay": 0})
    async with bench.running(bench.agent("box")) as agent:
        await bench.until(item, StateType.RUNNING)
        async with watching(bench) as watcher:
            await watcher.watch._settle(QUEUE, (await bench.server.list_workers(QUEUE))[0], ["box"])
        async with bench.running(bench.agent("other", machine=InMemoryMachine())):
            await bench.until(item, StateType.COMPLETED)
        await check_ownership(bench.server, agent.running_items.entries)
        await bench.until_nothing_runs()
    found = await bench.read(item.id)
    assert (found.state_type, found.run_count) == (StateType.COMPLETED, 2)
    assert bench.machine.runs == {}
    assert bench.machine.removed == [f"launch-{item.id}-1"]


async def test_holder_of_an_item_is_read_from_its_claim(bench: Bench) -> None:
    item = await left_running(bench)
    holder = holder_of(await bench.server.read_states(item.id))
    assert holder is not None
    assert holder.agent == "box"
    assert holder_of([]) is None


async def test_item_that_was_being_stopped_by_a_lost_agent_is_cancelled(bench: Bench) -> None:
    item = await left_running(bench)
    await bench.move(item, ItemState.CANCELLING)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    found = await bench.read(item.id)
    assert found.state_type is StateType.CANCELLED
    assert found.message.startswith("Agent box on ")


async def test_agent_that_comes_back_from_its_start_writes_nothing_over_another_agents_claim(bench: Bench) -> None:
    reached, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(InMemoryRunner):
        async def start(self, handle: str) -> None:
            await super().start(handle)
            reached.set()
            await goes_on.wait()

    bench.plays(Script(seconds=60), Script(seconds=0.5))
    (item,) = await bench.add(retries={"delay": 0})
    slow = Slow(bench.folder, bench.machine)
    agent = LaunchAgent(bench.api, {"name": "box", "queues": [QUEUE], "home": bench.folder}, runners={RESOURCE: slow})
    elsewhere = InMemoryMachine(lambda plan: Script(seconds=0.5))
    async with bench.running(agent):
        await reached.wait()
        agent.context.trusted_seconds = 0.0  # It was cut off for long.
        async with watching(bench) as watcher:
            await watcher.watch._settle(QUEUE, (await bench.server.list_workers(QUEUE))[0], ["box"])
        async with bench.running(bench.agent("other", machine=elsewhere)):
            await bench.until(item, StateType.RUNNING)
            goes_on.set()
            await bench.until(item, StateType.COMPLETED)
        await bench.until_nothing_runs()
    assert (await bench.read(item.id)).run_count == 1
    assert (await bench.states(item)).count("Running") == 1
    assert (bench.machine.runs, elsewhere.started) == ({}, [f"launch-{item.id}-1"])
