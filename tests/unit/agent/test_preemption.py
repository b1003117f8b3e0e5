"""Preemption: a critical item without a place sends one low item that can resume back into its queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.claim import claim
from prefect_launch.queues.sent_back import may_be_sent_back, order_back, take_turn
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, holder_called

WAITING, RUNNING, COMPLETED = StateType.SCHEDULED, StateType.RUNNING, StateType.COMPLETED
LOOK_SECONDS = 1.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.item.preemption.WAITED", timedelta(0))


async def preempt(bench: Bench, **options: Any) -> None:
    await asyncio.to_thread(lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, preempt=True, **options))
    bench.plays(Script(seconds=60))


async def add_low(bench: Bench, **spec: Any) -> Item:
    (item,) = await bench.add(**{"priority": "low", "resumable": True, **spec})
    return item


async def add_critical(bench: Bench) -> Item:
    (item,) = await bench.add(priority="critical", name="urgent")
    return item


async def started_in_turn(bench: Bench, *items: Item) -> None:
    for item in items:
        await bench.until(item, RUNNING)


async def test_youngest_low_item_makes_place_and_starts_again_later(bench: Bench) -> None:
    await preempt(bench)
    async with bench.running(bench.agent(max_jobs=2)):
        older = await add_low(bench)
        await bench.until(older, RUNNING)
        younger = await add_low(bench)
        await bench.until(younger, RUNNING)
        urgent = await add_critical(bench)

        await bench.until(urgent, RUNNING)
        sent_back = await bench.until(younger, WAITING)
        assert sent_back.message.startswith("Sent back after ")
        assert f"for urgent ({str(urgent.id)[-8:]}): it starts again later" in sent_back.message
        assert sent_back.infrastructure_pid is None
        assert (await bench.read(older.id)).state_type is RUNNING

        bench.machine.finish()
        again = await bench.until(younger, RUNNING)
        assert again.run_count == 2
        bench.machine.finish()
        await bench.until(younger, COMPLETED)
    ran = ["Pending", "Running"]
    assert await bench.states(younger) == ["Queued", *ran, "Queued", *ran, "Completed"]
    assert "Queued" not in (await bench.states(older))[1:]
    assert not [one for one in await bench.server.list_artifacts(younger.id) if "failure" in str(one["key"])]


async def test_item_that_was_sent_back_is_claimed_from_a_new_poll_alone(bench: Bench) -> None:
    await preempt(bench)
    low = await add_low(bench)
    (polled,) = await bench.poll()
    async with bench.running(bench.agent(max_jobs=1)):
        await bench.until(low, RUNNING)
        urgent = await add_critical(bench)
        await bench.until(urgent, RUNNING)
        await bench.until(low, WAITING)
    assert await claim(bench.server, polled, holder=holder_called("late")) is None
    (polled,) = await bench.poll()
    assert polled.next_scheduled_start_time is not None
    assert polled.expected_start_time is not None
    assert polled.next_scheduled_start_time - polled.expected_start_time < timedelta(microseconds=17)
    claimed = await claim(bench.server, polled, holder=holder_called("late"))
    assert claimed is not None
    assert (claimed.id, claimed.run_count) == (low.id, 1)


async def test_item_that_was_sent_back_starts_before_the_low_ones_that_came_after_it(bench: Bench) -> None:
    await preempt(bench)
    async with bench.running(bench.agent(max_jobs=1)):
        first = await add_low(bench)
        await bench.until(first, RUNNING)
        later = await add_low(bench)
        urgent = await add_critical(bench)
        await bench.until(urgent, RUNNING)
        await bench.until(first, WAITING)

        bench.machine.finish()
        await eventually(lambda: bench.read(first.id), lambda item: item.run_count == 2)
        assert (await bench.read(later.id)).run_count == 0


async def test_item_makes_place_when_the_queue_is_full(bench: Bench) -> None:
    await preempt(bench, concurrency=1)
    async with bench.running(bench.agent(max_jobs=4)):
        low = await add_low(bench)
        await bench.until(low, RUNNING)
        urgent = await add_critical(bench)
        await bench.until(urgent, RUNNING)
        await bench.until(low, WAITING)


@pytest.mark.parametrize(
    ("options", "spec"),
    [({"preempt": False}, {}), ({}, {"resumable": False}), ({}, {"priority": "medium"}), ({}, {"resumable": None})],
    ids=["not on this queue", "not resumable", "not low", "silent"],
)
async def test_nothing_makes_place_unless_queue_and_item_say_so(
    bench: Bench, options: dict[str, Any], spec: dict[str, Any]
) -> None:
    await preempt(bench)
    await asyncio.to_thread(lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, **{"preempt": True, **options}))
    async with bench.running(bench.agent(max_jobs=1)):
        low = await add_low(bench, **spec)
        await bench.until(low, RUNNING)
        urgent = await add_critical(bench)
        await asyncio.sleep(LOOK_SECONDS)
        assert (await bench.read(urgent.id)).state_type is WAITING
    assert await bench.states(low) == ["Queued", "Pending", "Running"]


async def test_two_agents_send_back_one_item_for_each_critical_one(bench: Bench) -> None:
    await preempt(bench)
    names = ("one", "two")
    agents = [bench.agent(name, home=bench.folder / name, max_jobs=2) for name in names]
    async with bench.running(agents[0]), bench.running(agents[1]):
        low = [await add_low(bench) for _ in range(4)]
        await started_in_turn(bench, *low)
        critical = [await add_critical(bench), await add_critical(bench)]
        await started_in_turn(bench, *critical)

        async def states() -> Counter[StateType | None]:
            return Counter([(await bench.read(item.id)).state_type for item in low])

        await eventually(states, lambda seen: seen == {WAITING: 2, RUNNING: 2})
        await asyncio.sleep(LOOK_SECONDS)
        assert await states() == {WAITING: 2, RUNNING: 2}


async def test_item_whose_place_another_critical_one_has_taken_gets_one_in_its_turn(
    bench: Bench,
) -> None:
    await preempt(bench)
    async with bench.running(bench.agent(max_jobs=2)):
        other = await add_critical(bench)
        low = await add_low(bench)
        await started_in_turn(bench, other, low)
        urgent = await add_critical(bench)
        assert await take_turn(bench.server, urgent, other)
        await bench.until(low, WAITING)
        await bench.until(urgent, RUNNING)


async def test_item_makes_no_place_in_a_turn_that_was_taken_before_the_critical_one_ran(bench: Bench) -> None:
    await preempt(bench)
    other, low = await add_critical(bench), await add_low(bench)
    assert await take_turn(bench.server, other, low)
    async with bench.running(bench.agent(max_jobs=2)):
        await started_in_turn(bench, other, low)
        urgent = await add_critical(bench)
        assert await take_turn(bench.server, urgent, other)
        await asyncio.sleep(LOOK_SECONDS)
        assert (await bench.read(low.id)).state_type is RUNNING


async def test_no_place_is_made_while_one_is_being_made(bench: Bench) -> None:
    await preempt(bench)
    bench.plays(Script(seconds=60, ignores_term=True))
    async with bench.running(bench.agent(max_jobs=2)):
        low = [await add_low(bench), await add_low(bench)]
        await started_in_turn(bench, *low)
        urgent = await add_critical(bench)
        await order_back(bench.server, await bench.read(low[0].id), urgent)
        await asyncio.sleep(LOOK_SECONDS)
        assert {(await bench.read(item.id)).state_type for item in low} == {RUNNING}


async def test_order_of_an_agent_that_died_is_carried_out_by_its_next_life(bench: Bench) -> None:
    await preempt(bench)
    low = await add_low(bench)
    await bench.leave_running(bench.agent(), low)
    urgent = await add_critical(bench)
    assert await take_turn(bench.server, urgent, low)
    await order_back(bench.server, await bench.read(low.id), urgent)

    async with bench.running(bench.agent()):
        await bench.until(urgent, RUNNING)
        assert (await bench.until(low, WAITING)).message.startswith("Sent back")
    assert await bench.states(low) == ["Queued", "Pending", "Running", "Queued"]


async def test_agent_that_died_before_the_order_has_sent_nothing_back(bench: Bench) -> None:
    await preempt(bench)
    low = await add_low(bench)
    await bench.leave_running(bench.agent(), low)
    urgent = await add_critical(bench)
    assert await take_turn(bench.server, urgent, low)

    async with bench.running(bench.agent()):
        await asyncio.sleep(LOOK_SECONDS)
        assert (await bench.read(low.id)).state_type is RUNNING
        bench.machine.finish()
        await bench.until(low, COMPLETED)
        await bench.until(urgent, RUNNING)


async def test_item_that_is_cancelled_as_it_makes_place_is_cancelled(bench: Bench) -> None:
    await preempt(bench)
    low = await add_low(bench)
    await bench.leave_running(bench.agent(), low)
    await order_back(bench.server, await bench.read(low.id), await add_critical(bench))
    await bench.move(low, ItemState.CANCELLING)
    async with bench.running(bench.agent()):
        await bench.until(low, StateType.CANCELLED)


def test_item_is_sent_back_three_times_and_not_soon_again() -> None:
    now = datetime.now(timezone.utc)

    def states(times: int, ran: float) -> list[State]:
        queued = State.of(ItemState.QUEUED)
        running = State(type=RUNNING, name="Running", timestamp=now - timedelta(minutes=ran))
        return [queued, *[State.of(ItemState.CLAIMED), running, queued] * times, State.of(ItemState.CLAIMED), running]

    assert may_be_sent_back(states(0, 0), now)
    assert not may_be_sent_back(states(1, 9), now)
    assert may_be_sent_back(states(1, 11), now)
    assert may_be_sent_back(states(2, 11), now)
    assert not may_be_sent_back(states(3, 60), now)


async def test_item_that_was_sent_back_just_now_makes_no_place_again(bench: Bench) -> None:
    await preempt(bench)
    async with bench.running(bench.agent(max_jobs=1)):
        low = await add_low(bench)
        await bench.until(low, RUNNING)
        first = await add_critical(bench)
        await bench.until(first, RUNNING)
        bench.machine.finish()
        await eventually(lambda: bench.read(low.id), lambda item: item.run_count == 2)
        second = await add_critical(bench)
        await asyncio.sleep(LOOK_SECONDS)
        assert (await bench.read(second.id)).state_type is WAITING
        assert (await bench.read(low.id)).state_type is RUNNING
