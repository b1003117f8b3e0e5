"""Checks of whose the items in work are: how long one is good for, items that are put back, or whose end is written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_launch.agent.item import ownership
from prefect_launch.agent.item.ownership import check_ownership
from prefect_launch.agent.recovery.cancellations import CONFIRM_PAUSES_SECONDS
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import Bench, eventually


class HeldRemovals:
    """Removals of runs, which are held up until they may go on."""

    def __init__(self) -> None:
        self.begun, self.may_go_on = asyncio.Event(), asyncio.Event()


@pytest.fixture
def removals(monkeypatch: pytest.MonkeyPatch) -> HeldRemovals:
    held, remove = HeldRemovals(), InMemoryRunner.remove

    async def remove_later(self: InMemoryRunner, handle: str) -> None:
        held.begun.set()
        await held.may_go_on.wait()
        await remove(self, handle)

    monkeypatch.setattr(InMemoryRunner, "remove", remove_later)
    return held


async def test_item_that_was_listed_before_a_slow_read_is_not_taken_for_seen_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.plays(Script(seconds=600))
    first, second = await bench.add(2)
    time = 1_000.0
    monkeypatch.setattr(ownership, "now", lambda: time)

    async def slow(method: str) -> None:
        nonlocal time
        if method == "read_states":
            time += 600.0

    async with bench.running(bench.agent(max_jobs=2)) as agent:
        for item in (first, second):
            await bench.until(item, StateType.RUNNING)
        moved, unmoved = agent.running_items.entries
        await check_ownership(bench.server, [moved, unmoved])
        moved.held_in = None
        bench.server.before_call = slow
        listed_at = time
        await check_ownership(bench.server, [moved, unmoved])
        bench.server.before_call = None
        assert time > listed_at
        assert unmoved.held_at == listed_at
        bench.machine.finish()
        for item in (first, second):
            await bench.until(item, StateType.COMPLETED)


async def test_item_whose_run_is_still_being_removed_is_not_taken_for_another_agents(
    bench: Bench, removals: HeldRemovals, caplog: pytest.LogCaptureFixture
) -> None:
    (item,) = await bench.add()
    async with bench.running(bench.agent()) as agent:
        await asyncio.wait_for(removals.begun.wait(), 60)
        assert (await bench.read(item.id)).state_type is StateType.COMPLETED
        (entry,) = agent.running_items.entries
        await check_ownership(bench.server, [entry])
        assert not entry.stop.is_set()
        removals.may_go_on.set()

        async def left() -> Any:
            return agent.running_items.entries

        await eventually(left, lambda entries: not entries)
    assert "ownership-lost" not in caplog.text


LONG_SECONDS = 600.0


async def test_item_that_somebody_puts_back_while_it_runs_is_stopped_and_started_again_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ownership, "CHECK_SECONDS", LONG_SECONDS)
    bench.plays(Script(seconds=LONG_SECONDS))
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        await bench.until(item, StateType.RUNNING)
        await bench.move(item, ItemState.QUEUED)
        again = await eventually(lambda: bench.read(item.id), lambda found: found.run_count == 2)
        bench.machine.finish()
        await bench.until(item, StateType.COMPLETED)
    assert again.state_type is StateType.RUNNING
    assert await bench.states(item) == ["Queued", "Pending", "Running", "Queued", "Pending", "Running", "Completed"]
    assert caplog.text.count("ownership-lost: stopping its run here") == 1


async def test_item_that_is_retried_while_its_run_is_still_being_removed_is_started_again_at_once(
    bench: Bench, removals: HeldRemovals
) -> None:
    bench.plays(Script(exit_code=3), Script())
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        await asyncio.wait_for(removals.begun.wait(), 60)
        await bench.until(item, StateType.FAILED)
        await bench.move(item, ItemState.QUEUED)
        removals.may_go_on.set()
        await bench.until(item, StateType.COMPLETED)


async def test_item_that_its_own_agent_puts_back_is_not_checked(bench: Bench, removals: HeldRemovals) -> None:
    bench.plays(Script(exit_code=3), Script())
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        await eventually(lambda: asyncio.sleep(0, bench.server.watching), bool)
        before = bench.server.calls["list_items"]
        (item,) = await bench.add(retries={"max": 1, "on": ["failed"], "delay": 0})
        await asyncio.wait_for(removals.begun.wait(), 60)
        await bench.until(item, StateType.SCHEDULED)
        await asyncio.sleep(3 * CONFIRM_PAUSES_SECONDS[0])
        removals.may_go_on.set()
        await bench.until(item, StateType.COMPLETED)
        assert bench.server.calls["list_items"] == before
