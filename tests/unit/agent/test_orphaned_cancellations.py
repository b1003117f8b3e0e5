"""Items that were asked to stop, and that nobody has in work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from prefect_launch.agent.recovery import cancellations as stray_stops
from prefect_launch.agent.recovery.cancellations import OrphanedCancellations
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench


async def put_back_in_the_ui(bench: Bench) -> Item:
    """An item that has failed and waits again, with what it once ran in on record."""
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED)
    await bench.server.record_infrastructure(item.id, "gone-long-ago")
    await bench.server.propose(item.id, State(type=StateType.SCHEDULED, name="AwaitingRetry"))
    return item


def orphaned(bench: Bench, held: Callable[[], set[object]] = set) -> OrphanedCancellations:
    return OrphanedCancellations(bench.server, [QUEUE], held)  # type: ignore[arg-type]


async def test_waiting_item_that_once_ran_is_cancelled_at_once_by_an_agent_that_is_busy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stray_stops, "GATHER_SECONDS", 0.05)
    bench.plays(Script(seconds=60))
    (running,) = await bench.add()
    async with bench.running(bench.agent(max_jobs=1)):
        await bench.until(running, StateType.RUNNING)
        item = await put_back_in_the_ui(bench)
        verdict = await bench.server.propose(item.id, State.of(ItemState.CANCELLING))
        assert verdict.state is not None
        assert verdict.state.type is StateType.CANCELLING
        found = await bench.until(item, StateType.CANCELLED)
    assert "nothing of it was running" in found.message
    assert (await bench.read(running.id)).state_type is StateType.RUNNING


async def test_agents_that_end_the_same_item_end_it_once(bench: Bench) -> None:
    item = await put_back_in_the_ui(bench)
    await bench.move(item, ItemState.CANCELLING)
    await asyncio.gather(orphaned(bench).check([item.id]), orphaned(bench).check())
    assert (await bench.states(item)).count("Cancelled") == 1


@pytest.mark.parametrize("way", [[ItemState.CLAIMED], [ItemState.CLAIMED, ItemState.RUNNING]])
async def test_item_that_an_agent_has_is_left_to_it(bench: Bench, way: list[ItemState]) -> None:
    (item,) = await bench.add()
    await bench.move(item, *way, ItemState.CANCELLING)
    await orphaned(bench).check()
    assert (await bench.read(item.id)).state_type is StateType.CANCELLING


async def test_waiting_items_cost_one_question_that_writes_nothing(bench: Bench) -> None:
    items = await bench.add(5)
    calls: list[str] = []

    async def note(method: str) -> None:
        calls.append(method)

    bench.server.before_call = note
    await orphaned(bench).check([item.id for item in items])
    assert calls == ["list_items"]
