"""Items of a sweep that is paused: no agent claims them, each says why it waits, and they start when it goes on."""

from __future__ import annotations

from uuid import UUID

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.sweep_status import SweepStatuses
from prefect_launch.queues.wait_reason import WaitCause, why_waiting
from prefect_launch.server.values import Item, State
from tests.support.bench import Bench

PAUSED = State(type=StateType.PAUSED, name="Paused")


async def running_sweep(bench: Bench) -> Item:
    """A sweep whose flow run is running; nobody runs it."""
    sweep = await bench.add_scheduler()
    await bench.move(sweep, ItemState.CLAIMED, ItemState.RUNNING)
    return sweep


async def test_waiting_items_of_a_paused_sweep_are_passed_over_and_start_when_it_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.queues.sweep_status.KNOWN_SECONDS", 0.05)
    sweep = await running_sweep(bench)
    await bench.server.propose(sweep.id, PAUSED)
    held = await bench.add(count=3, sweep_id=str(sweep.id))
    others = await bench.add(count=2)
    async with bench.running(bench.agent()):
        for item in others:
            await bench.until(item, StateType.COMPLETED)
        for item in held:
            assert [state.name for state in await bench.server.read_states(item.id)] == ["Queued"]
        await bench.server.propose(sweep.id, State.of(ItemState.RUNNING))
        for item in held:
            await bench.until(item, StateType.COMPLETED)


async def test_what_is_held_counts_in_no_place_in_line(bench: Bench) -> None:
    sweep = await running_sweep(bench)
    await bench.server.propose(sweep.id, PAUSED)
    first, *_ = await bench.add(count=2)
    await bench.add(count=2, sweep_id=str(sweep.id))
    await bench.add(after=[str(first.id)])
    (last,) = await bench.add()

    async with bench.api.open() as session:
        waiting = await why_waiting(session, last)

    assert waiting is not None
    assert waiting.position == "3rd of 6"


async def test_item_of_a_crashed_sweep_waits_for_the_sweep_to_be_resumed_or_stopped(bench: Bench) -> None:
    sweep = await running_sweep(bench)
    await bench.move(sweep, ItemState.CRASHED)
    (item,) = await bench.add(sweep_id=str(sweep.id))
    async with bench.agent().connected() as agent:
        assert await agent.pop_from_queue("gpu") is None
    assert (await bench.read(item.id)).state_name == "Queued"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (PAUSED, "Its sweep sweep ({id}) is paused. 'prefect-launch sweep resume {id}' resumes it."),
        (
            State.of(ItemState.CRASHED),
            "The process of its sweep sweep ({id}) is gone. 'prefect-launch sweep resume {id}' resumes it, and"
            " 'prefect-launch sweep stop {id}' cancels its trials.",
        ),
    ],
)
async def test_item_says_that_its_sweep_holds_it(bench: Bench, state: State, words: str) -> None:
    sweep = await running_sweep(bench)
    (item,) = await bench.add(sweep_id=str(sweep.id))
    async with bench.api.open() as session:
        before = await why_waiting(session, item)
        assert before is not None
        assert before.cause is WaitCause.NO_AGENT
        await bench.server.propose(sweep.id, state)
        found = await why_waiting(session, item)
    assert found is not None
    assert (found.cause, found.reason) == (WaitCause.PAUSED, words.format(id=str(sweep.id)[-8:]))


async def test_sweep_is_read_once_in_ten_seconds_and_sooner_for_a_new_item_of_a_paused_one(bench: Bench) -> None:
    clock = [100.0]
    sweep = await running_sweep(bench)
    statuses = SweepStatuses(bench.server, lambda: clock[0])

    async def reads(item: int) -> int:
        before = bench.server.calls["read_item"]
        await statuses.of(sweep.id, UUID(int=item))
        return bench.server.calls["read_item"] - before

    assert [await reads(item) for item in (1, 2, 1)] == [1, 0, 0]
    await bench.server.propose(sweep.id, PAUSED)
    clock[0] += 9.9
    assert await reads(1) == 0
    clock[0] += 0.1
    assert [await reads(item) for item in (1, 2, 1, 2)] == [1, 0, 0, 0]
    clock[0] += 1.0
    assert [await reads(item) for item in (1, 3, 3, 1)] == [0, 1, 0, 0]
    clock[0] += 1.0
    assert [await reads(item) for item in (1, 2, 3)] == [0, 0, 0]
    await bench.server.delete_item(sweep.id)
    clock[0] += 10.0
    assert "was deleted" in (await statuses.of(sweep.id)).refusal
