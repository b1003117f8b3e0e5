"""A lost agent's run that is within reach: another agent of its home goes on with it, and nothing runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.item.ownership import hold_run_lock, run_lock_holder
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.agent_status import AgentStatus, RunningItemSummary, post_status, read_statuses
from prefect_launch.runners.base import Found
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryMachine, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually
from tests.support.impatient import at_work

LOST_SECONDS = 0.3


def adopter(
    bench: Bench, name: str = "adopter", *, machine: InMemoryMachine | None = None
) -> AbstractAsyncContextManager[LaunchAgent]:
    """An agent at work, which calls others lost soon."""
    return at_work(bench.agent(name, machine=machine), lost_seconds=LOST_SECONDS)


async def orphaned(bench: Bench, script: Script, **spec: Any) -> Item:
    """An item at work under an agent that ended without a word: its last heartbeat stays on the list."""
    bench.plays(script)
    (item,) = await bench.add(**spec)
    await bench.leave_running(bench.agent("box"), item)
    await bench.server.beat_worker(QUEUE, "box", 15)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    return item


async def holds(agent: LaunchAgent, item: Item) -> None:
    """Wait until an agent has an item in work."""
    await eventually(lambda: asyncio.sleep(0, agent.running_items.held), lambda held: item.id in held)


def done(bench: Bench, item: Item) -> None:
    """The item's one attempt has come to its own end."""
    assert bench.machine.started == [f"launch-{item.id}-1"]
    assert bench.machine.runs == {}


async def test_run_of_a_lost_agent_is_adopted(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60, log=(b"one\n",), late_log=(b"two\n",), exit_code=7), retries=0)
    async with adopter(bench) as agent:
        await holds(agent, item)
        bench.machine.finish()
        ended = await bench.until(item, *(StateType.FAILED, StateType.CRASHED))
    assert (ended.state_type, ended.run_count) == (StateType.FAILED, 1)
    assert "exit code 7" in ended.message
    assert await bench.log(item) == "one\ntwo"
    done(bench, item)


async def test_run_that_has_ended_keeps_its_end(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=0.4, outputs={"outputs.json": b'{"acc": 1}'}))
    await eventually(lambda: asyncio.sleep(0, bench.machine.running), lambda running: not running)
    async with adopter(bench):
        ended = await bench.until(item, *(StateType.COMPLETED, StateType.SCHEDULED))
    assert (ended.state_type, ended.run_count) == (StateType.COMPLETED, 1)
    assert any(artifact["type"] == "table" for artifact in await bench.server.list_artifacts(item.id))
    done(bench, item)


async def test_adopted_run_that_is_cancelled_is_stopped_by_its_new_agent(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60))
    async with adopter(bench) as agent:
        await holds(agent, item)
        await bench.move(item, ItemState.CANCELLING)
        await bench.until(item, StateType.CANCELLED)
    done(bench, item)


async def test_of_two_agents_one_adopts_the_run_and_the_other_takes_over_from_it(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60))
    async with adopter(bench, "second") as second:
        async with adopter(bench, "first") as first:
            both = await eventually(
                lambda: asyncio.sleep(0, first.running_items.held | second.running_items.held),
                lambda held: item.id in held,
            )
            assert both == {item.id}
        await bench.server.beat_worker(QUEUE, "first", 15)  # it did not leave in order
        await holds(second, item)
        bench.machine.finish()
        ended = await bench.until(item, *(StateType.COMPLETED, StateType.SCHEDULED))
    assert (ended.state_type, ended.run_count) == (StateType.COMPLETED, 1)
    done(bench, item)


async def test_lost_agent_that_comes_back_waits_for_its_turn_and_reports_nothing_twice(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60, log=(b"one\n",), outputs={"outputs.json": b'{"acc": 1}'}))
    async with adopter(bench) as agent:
        await holds(agent, item)
        async with bench.running(bench.agent("box")) as back:
            await holds(back, item)
            bench.machine.finish()
            await bench.until(item, StateType.COMPLETED)
            await eventually(lambda: asyncio.sleep(0, back.running_items.held), lambda held: not held)
    assert await bench.states(item) == ["Queued", "Pending", "Running", "Completed"]
    assert await bench.log(item) == "one"
    assert len([one for one in await bench.server.list_artifacts(item.id) if one["type"] == "table"]) == 1
    done(bench, item)


@pytest.mark.parametrize("hears", [True, False])
async def test_adopted_run_that_is_cancelled_is_not_touched_by_the_lost_agent_that_came_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    item = await orphaned(bench, Script(seconds=60))
    async with adopter(bench) as agent:
        await holds(agent, item)
        async with bench.running(bench.agent("box")) as back:
            await holds(back, item)
            running_item = back.running_items.find(str(item.id))
            if not hears:  # its stream of events is down
                monkeypatch.setattr(running_item, "stop", asyncio.Event())
            await bench.move(item, ItemState.CANCELLING)
            await bench.until(item, StateType.CANCELLED)
            await eventually(lambda: asyncio.sleep(0, back.running_items.held), lambda held: not held)
    assert await bench.states(item) == ["Queued", "Pending", "Running", "Cancelling", "Cancelled"]
    done(bench, item)


async def test_adopted_run_is_not_reported_as_lost_by_an_agent_that_cannot_reach_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.status.WRITE_SECONDS", 0.1)
    item = await orphaned(bench, Script(seconds=60), retries=0)

    async def told() -> list[str]:
        statuses = await read_statuses(bench.server)
        return [one.id for one in statuses["adopter"].running] if "adopter" in statuses else []

    async def beat() -> None:
        while True:
            await bench.server.beat_worker(QUEUE, "adopter", 15)
            await asyncio.sleep(LOST_SECONDS / 10)

    async with adopter(bench):
        await eventually(told, lambda ids: str(item.id) in ids)
        beating = asyncio.create_task(beat())
        async with adopter(bench, "far", machine=InMemoryMachine()):
            checks = bench.server.calls["list_workers"]  # two agents check; the eighth of one would report it as lost
            await eventually(
                lambda: asyncio.sleep(0, bench.server.calls["list_workers"]), lambda now: now > checks + 40
            )
            bench.machine.finish()
            ended = await bench.until(item, StateType.COMPLETED, StateType.CRASHED)
        beating.cancel()
    assert (ended.state_type, ended.run_count) == (StateType.COMPLETED, 1)


async def test_notice_of_an_agent_that_is_on_no_list_any_more_keeps_nothing(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60), retries=0)
    running = (RunningItemSummary.of(item),)
    left = AgentStatus(name="old", host="vm", queues=(QUEUE,), slots=1, state="running", running=running)
    await post_status(bench.server, left)
    async with adopter(bench, machine=InMemoryMachine()):
        await bench.until(item, StateType.CRASHED)


async def test_adopted_run_of_an_agent_that_hangs_is_reported_as_lost(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60), retries=0)
    await bench.server.beat_worker(QUEUE, "first", 15)
    (run,) = bench.machine.runs.values()
    async with hold_run_lock(run.plan.run_dir, "first"), adopter(bench):
        await bench.until(item, StateType.CRASHED)


async def test_disk_that_fails_once_does_not_end_the_watch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    item = await orphaned(bench, Script(seconds=60), retries=0)
    async with adopter(bench) as agent:
        await eventually(lambda: asyncio.sleep(0, agent.shutdown.at_work), bool)
        runner = agent.context.runner(RESOURCE)
        find, calls = runner.find, [0]

        async def fail_once(labels: Mapping[str, str]) -> list[Found]:
            calls[0] += 1
            if calls[0] == 1:
                raise OSError("the disk is away")
            return await find(labels)

        monkeypatch.setattr(runner, "find", fail_once)
        await holds(agent, item)
        bench.machine.finish()
        ended = await bench.until(item, StateType.COMPLETED, StateType.CRASHED)
    assert ended.state_type is StateType.COMPLETED
    assert calls[0] > 1


async def test_run_of_an_agent_that_hangs_is_reported_as_lost(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60), retries=0)
    (run,) = bench.machine.runs.values()
    async with hold_run_lock(run.plan.run_dir, "box"), adopter(bench):
        ended = await bench.until(item, StateType.CRASHED)
    assert "was last seen at" in ended.message


async def test_run_out_of_reach_is_reported_as_lost(bench: Bench) -> None:
    item = await orphaned(bench, Script(seconds=60), retries=0)
    async with adopter(bench, machine=InMemoryMachine()):
        ended = await bench.until(item, StateType.CRASHED)
    assert "was last seen at" in ended.message


async def test_run_is_kept_by_one_agent_at_a_time(bench: Bench) -> None:
    folder = bench.folder / "run"
    async with hold_run_lock(folder, "first") as at_once:
        assert at_once
        assert run_lock_holder(folder) == "first"
        second = asyncio.create_task(hold_run_lock(folder, "second").__aenter__())
        await asyncio.sleep(0.05)
        assert not second.done()
    assert await second is False
