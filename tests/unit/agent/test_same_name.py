"""Agents of one name on several hosts: one after another, each with a home of its own, or by mistake two at once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.item.ownership import holder_of, home_id
from prefect_launch.agent.recovery.lost_agents import LostAgentDetector
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.agent_status import agents
from prefect_launch.queues.presence import Holder, Presence, read_presences, write_presence
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryMachine, InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, holder_called
from tests.unit.agent.test_lost_agents import Clock, Watcher


def agent_in(bench: Bench, home: Path, machine: InMemoryMachine | None = None, **config: Any) -> LaunchAgent:
    """An agent called `box` with this home."""
    settings = {"name": "box", "queues": [QUEUE], "home": home, "poll_seconds": 0.05, **config}
    runner = InMemoryRunner(home, machine or bench.machine)
    return LaunchAgent(bench.api, settings, runners={RESOURCE: runner})


async def held_by_a_life_that_is_gone(bench: Bench, *further: ItemState, **spec: Any) -> tuple[Item, Holder]:
    """An item that an agent called `box` on another host, with another home, has claimed before it was killed."""
    holder = holder_called("box", host="pod-1", home="of-pod-1")
    (item,) = await bench.add(**spec)
    await write_presence(bench.server, Presence.of(holder, (QUEUE,)).beating(7))
    await bench.server.propose(item.id, holder.claimed_state())
    await bench.move(item, *further)
    return item, holder


@asynccontextmanager
async def watching(bench: Bench, name: str = "box") -> AsyncIterator[Watcher]:
    """The watch of an agent of this name on another host, and its clock."""
    clock = Clock()
    async with bench.api.open() as session:
        yield Watcher(LostAgentDetector(session, holder_called(name, host="pod-2"), [QUEUE], clock=clock), clock)


async def beating(bench: Bench, holder: Holder, watcher: Watcher, *, seconds: float) -> None:
    """Let the agents of the name beat, and this life among them, while the watch looks."""
    for beat in range(8, 8 + int(seconds / 15)):
        await bench.server.beat_worker(QUEUE, "box", 15)
        await write_presence(bench.server, Presence.of(holder, (QUEUE,)).beating(beat))
        await watcher.checks(seconds=0)


# --- one after another ---


@pytest.mark.parametrize("on_the_way", [[], [ItemState.BUILDING], [ItemState.PULLING, ItemState.SUBMITTED]])
async def test_pending_item_of_a_life_on_another_host_goes_back_into_its_queue(
    bench: Bench, on_the_way: list[ItemState]
) -> None:
    item, _ = await held_by_a_life_that_is_gone(bench, *on_the_way)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=75)
        assert (await bench.read(item.id)).state_type is StateType.PENDING
        await watcher.checks(seconds=30)
    found = await bench.read(item.id)
    assert (found.state_name, "agent box on pod-1 has claimed it" in found.message) == ("Queued", True)
    assert await read_presences(bench.server) == []


async def test_running_item_of_a_life_on_another_host_has_crashed_and_says_whose_it_was(bench: Bench) -> None:
    item, _ = await held_by_a_life_that_is_gone(bench, ItemState.RUNNING, retries=0)
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    found = await bench.read(item.id)
    assert found.state_type is StateType.CRASHED
    assert found.message.startswith("[run] Agent box on pod-1 was last seen at ")


async def test_agent_that_was_moved_to_another_host_runs_what_its_last_life_had_claimed(bench: Bench) -> None:
    item, _ = await held_by_a_life_that_is_gone(bench)
    agent = agent_in(bench, bench.folder / "pod-2")
    async with bench.running(agent):
        await eventually(lambda: read_presences(bench.server), lambda lives: len(lives) == 2)
        agent.context.lost_seconds = 0.1
        assert (await bench.read(item.id)).state_type is StateType.PENDING
    agent = agent_in(bench, bench.folder / "pod-2")
    async with agent.connected():
        context = agent.context
        watch = LostAgentDetector(context.session, agent.holder, [QUEUE], lost_seconds=0.05)
        for _ in range(2):
            await watch.check()
            await asyncio.sleep(0.06)
        await watch.check()
    await agent_in(bench, bench.folder / "pod-2").loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


async def test_life_that_died_before_its_first_heartbeat_is_settled_by_any_agent_of_the_queue(bench: Bench) -> None:
    item, holder = await held_by_a_life_that_is_gone(bench, ItemState.BUILDING)
    assert holder.agent not in [worker.name for worker in await bench.server.list_workers(QUEUE)]
    async with watching(bench, "other") as watcher:
        await watcher.checks(seconds=75)
        assert (await bench.read(item.id)).state_type is StateType.PENDING
        await watcher.checks(seconds=30)
    assert (await bench.read(item.id)).state_name == "AwaitingRetry"
    assert await read_presences(bench.server) == []


async def test_life_that_left_in_order_is_settled_by_the_next_of_its_name_alone(bench: Bench) -> None:
    item, holder = await held_by_a_life_that_is_gone(bench)
    await write_presence(bench.server, Presence.of(holder, (QUEUE,)).leaving())
    await bench.server.beat_worker(QUEUE, "box", 15)
    async with watching(bench, "other") as watcher:
        for _ in range(10):
            await bench.server.beat_worker(QUEUE, "box", 15)
            await watcher.checks(seconds=0)
    assert (await bench.read(item.id)).state_type is StateType.PENDING
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    assert (await bench.read(item.id)).state_name == "Queued"


async def test_next_life_of_a_home_takes_its_last_one_down_though_an_engine_is_away(bench: Bench) -> None:
    home = bench.folder / "home"
    earlier = agent_in(bench, home).holder
    await write_presence(bench.server, Presence.of(earlier, (QUEUE,)).beating(7))
    bench.machine.reachable = False
    async with bench.running(agent_in(bench, home)) as agent:
        await eventually(
            lambda: read_presences(bench.server),
            lambda lives: [life.holder.instance for life in lives] == [agent.holder.instance],
        )


async def test_box_that_was_renamed_takes_up_what_runs_in_its_home_and_settles_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.plays(Script(seconds=0.6))
    home = bench.folder / "home"
    (running,) = await bench.add()
    monkeypatch.setattr("socket.gethostname", lambda: "old-name")
    await agent_in(bench, home).loop(max_runtime_seconds=0.3)
    assert (await bench.read(running.id)).state_type is StateType.RUNNING
    monkeypatch.setattr("socket.gethostname", lambda: "new-name")
    await agent_in(bench, home).loop(until_empty=True)
    assert (await bench.read(running.id)).state_type is StateType.COMPLETED
    holder = holder_of(await bench.server.read_states(running.id))
    assert holder is not None
    assert (holder.host, holder.home) == ("old-name", home_id(home))


async def test_other_agent_sees_that_one_of_two_lives_of_a_name_is_over(bench: Bench) -> None:
    item, _ = await held_by_a_life_that_is_gone(bench, ItemState.RUNNING, retries=0)
    living = holder_called("box", host="pod-2")
    async with watching(bench, "other") as watcher:
        await beating(bench, living, watcher, seconds=120)
    assert (await bench.read(item.id)).state_type is StateType.CRASHED


# --- two at once ---


async def test_two_living_agents_of_one_name_take_nothing_from_each_other_and_log_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    item, holder = await held_by_a_life_that_is_gone(bench)
    async with watching(bench) as watcher:
        await beating(bench, holder, watcher, seconds=600)
    assert (await bench.read(item.id)).state_type is StateType.PENDING
    assert caplog.text.count("same-name: another agent called box runs on pod-1") == 1
    await write_presence(bench.server, Presence.of(holder_called("box", host="pod-2"), (QUEUE,)).beating(1))
    (listed,) = await bench.api.acall(lambda session: agents(session.server))
    assert sorted(listed.hosts) == ["pod-1", "pod-2"]


async def test_agent_of_the_same_name_on_one_engine_leaves_the_others_run_alone(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(agent_in(bench, bench.folder / "pod-1")):
        await bench.until(item, StateType.RUNNING)
        async with bench.running(agent_in(bench, bench.folder / "pod-2")) as second:
            await eventually(lambda: read_presences(bench.server), lambda lives: len(lives) == 2)
            await eventually(lambda: asyncio.sleep(0, second.shutdown.at_work), bool)
            assert second.thread_ids == []
            bench.machine.finish()
            found = await bench.until(item, StateType.COMPLETED)
    assert found.run_count == 1
    assert bench.machine.started == [f"launch-{item.id}-1"]


# --- what tells one home from another ---


def test_home_keeps_its_id_and_no_two_homes_share_one(tmp_path: Path) -> None:
    first = home_id(tmp_path / "one")
    assert home_id(tmp_path / "one") == first != home_id(tmp_path / "two")
    shutil.move(tmp_path / "one", tmp_path / "moved")
    assert home_id(tmp_path / "moved") == first


def test_home_that_cannot_be_written_has_an_id_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert home_id(tmp_path / "file") == home_id(tmp_path / "file") != ""


def test_lives_of_one_name_and_home_on_one_host_follow_each_other() -> None:
    one = Holder(agent="box", instance="1", host="a", home="h")
    assert one.model_copy(update={"instance": "2"}).is_earlier_life_of(one)
    for change in ({"host": "b"}, {"home": "other"}, {"agent": "crate"}):
        assert not one.model_copy(update={"instance": "2", **change}).is_earlier_life_of(one)
