"""Stopping what runs: asked for, at its time limit, or with its agent; and what the item says then."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, tzinfo

import anyio
import pytest

from prefect_launch.agent.item import attempt
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.base import Phase, RunPlan
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import RESOURCE, Bench


@pytest.mark.parametrize("deaf", [False, True])
async def test_item_whose_time_is_up_is_stopped_and_fails(bench: Bench, deaf: bool) -> None:
    bench.plays(Script(seconds=60, ignores_term=deaf))
    (item,) = await bench.add(timeout=0.2)
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert found.message.startswith("[run] The job timed out after 0.2 s")
    assert (bench.machine.running, bench.machine.runs) == ([], {})


async def test_item_that_ends_in_time_is_not_touched(bench: Bench) -> None:
    (item,) = await bench.add(timeout="1h")
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


async def test_time_that_an_item_ran_without_its_agent_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.plays(Script(seconds=600))
    (item,) = await bench.add(timeout="5m")
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
    monkeypatch.setattr(attempt, "datetime", InFiveMinutes)
    with anyio.fail_after(60):
        await bench.agent().loop(until_empty=True)
    assert "timed out after 5 min" in (await bench.read(item.id)).message


class InFiveMinutes(datetime):
    """The clock in five minutes."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> InFiveMinutes:
        return super().now(tz) + timedelta(minutes=5)


async def test_item_that_was_stopped_at_its_limit_by_an_agent_that_is_gone_fails_in_the_same_way(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(timeout=0.3)
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
    await asyncio.sleep(0.3)
    await InMemoryRunner(bench.folder, bench.machine).stop(f"launch-{item.id}-1", 0)
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert (found.state_type, "timed out after" in found.message) == (StateType.FAILED, True)


async def test_item_that_is_asked_to_stop_at_its_limit_is_cancelled(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(timeout=60)
    async with bench.running(bench.agent(poll_seconds=30)):
        await bench.until(item, StateType.RUNNING)
        await bench.move(item, ItemState.CANCELLING)
        found = await bench.until(item, StateType.CANCELLED)
    assert "run removed, ended by signal SIGTERM" in found.message


async def test_cancelled_item_is_seen_to_be_gone_before_it_is_cancelled(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    left: list[str] = []

    async def look(method: str) -> None:
        found = await bench.server.read_item(item.id) if method == "propose" else None
        if found is not None and found.state_type is StateType.CANCELLING:
            left.extend(bench.machine.runs)

    async with bench.running(bench.agent(poll_seconds=30)):
        await bench.until(item, StateType.RUNNING)
        await bench.move(item, ItemState.CANCELLING)
        bench.server.before_call = look
        await bench.until(item, StateType.CANCELLED)
    assert left == []


async def test_item_that_is_cancelled_before_its_start_says_that_nothing_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = await bench.add()
    create = InMemoryRunner.create

    async def cancelled(runner: InMemoryRunner, plan: RunPlan) -> str:
        handle = await create(runner, plan)
        await bench.move(item, ItemState.CANCELLING)
        running_item = agent.running_items.find(str(item.id))
        assert running_item is not None
        running_item.stop.set()
        return handle

    monkeypatch.setattr(InMemoryRunner, "create", cancelled)
    agent = bench.agent()
    await agent.loop(until_empty=True)
    found = await bench.read(item.id)
    assert (found.state_name, found.message) == ("Cancelled", "Stopped before it was started: run removed.")


async def test_stop_that_the_machine_fails_to_do_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.item.hooks._RETRY_SECONDS", 0.05)
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    agent = bench.agent(poll_seconds=30)
    agent._runners[RESOURCE] = _FailsOnce(bench.folder, bench.machine)
    async with bench.running(agent):
        await bench.until(item, StateType.RUNNING)
        await bench.move(item, ItemState.CANCELLING)
        await bench.until(item, StateType.CANCELLED)


async def test_item_that_is_stopped_with_its_agent_is_the_machines_fault(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(retries=0)
    async with bench.running(bench.agent()) as agent:
        await bench.until(item, StateType.RUNNING)
        running_item = agent.running_items.find(str(item.id))
        assert running_item is not None
        assert running_item.phase is Phase.RUN
        running_item.preempt.set()
        found = await bench.until(item, StateType.CRASHED)
    assert found.message.startswith("[run] Preempted after")


class _FailsOnce(InMemoryRunner):
    failures = 0

    async def stop(self, handle: str, grace_seconds: float) -> None:
        self.failures += 1
        if self.failures == 1:
            raise InfrastructureError("the engine is away")
        await super().stop(handle, grace_seconds)
