"""What waits behind a page of items that are not for this agent: it is found, in order, by few questions."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from prefect_launch.agent.polling import candidates
from prefect_launch.agent.polling.candidates import PAGES, REST_SECONDS, SCAN_SECONDS, QueuePager
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench
from tests.support.devices import agent_of, running, wants

PAGE = 20


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "PAGE", PAGE)


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


async def front_of(bench: Bench) -> list[Item]:
    return await bench.poll(PAGE)


async def look(behind: QueuePager, front: list[Item], wanted: UUID | None = None) -> tuple[list[Item], Item | None]:
    """Look once; return all that was shown, and what was found."""
    shown: list[Item] = []

    async def take(page: list[Item]) -> Item | None:
        shown.extend(page)
        return next((item for item in page if item.id == wanted), None)

    return shown, await behind.find(front, take)


def ids(items: list[Item]) -> list[UUID]:
    return [item.id for item in items]


# --- one look ---


async def test_look_shows_each_item_behind_the_front_once_and_in_the_order_of_the_server(bench: Bench) -> None:
    high = await bench.add(PAGE + 5, priority="high")
    usual = await bench.add(PAGE + 3)
    low = await bench.add(10, priority="low")
    front = await front_of(bench)
    shown, found = await look(QueuePager(bench.server, QUEUE), front)
    assert found is None
    assert ids(front + shown) == ids(high + usual + low)


async def test_look_is_a_few_pages_and_the_next_goes_on_from_there(bench: Bench) -> None:
    items = await bench.add(PAGE * (PAGES + 2))
    clock, front = Clock(), await front_of(bench)
    one = QueuePager(bench.server, QUEUE, now=clock)
    first, _ = await look(one, front)
    clock.time += SCAN_SECONDS
    second, _ = await look(one, front)
    assert len(first) < PAGE * PAGES
    assert ids(front + first + second) == ids(items)


async def test_items_that_are_due_at_the_same_time_are_all_shown(bench: Bench) -> None:
    due = datetime.now(timezone.utc) - timedelta(seconds=1)
    same = State(type=StateType.SCHEDULED, name="Scheduled", state_details={"scheduled_time": due.isoformat()})
    items = await bench.add(PAGE + 5)
    for item in items[PAGE - 5 :]:
        assert (await bench.server.propose(item.id, same)).accepted
    front = await front_of(bench)
    shown, _ = await look(QueuePager(bench.server, QUEUE), front)
    assert set(ids(front + shown)) == set(ids(items))
    assert len(front + shown) == len(items)


async def test_more_than_a_page_due_at_the_same_time_do_not_hide_what_is_due_later(bench: Bench) -> None:
    due = datetime.now(timezone.utc) - timedelta(hours=1)
    same = State(type=StateType.SCHEDULED, name="Scheduled", state_details={"scheduled_time": due.isoformat()})
    for item in await bench.add(PAGE + 5):
        assert (await bench.server.propose(item.id, same)).accepted
    (later,) = await bench.add()
    _, found = await look(QueuePager(bench.server, QUEUE), await front_of(bench), later.id)
    assert found is not None


async def test_paused_priority_and_the_limit_of_one_are_kept_behind_the_front_too(bench: Bench) -> None:
    await bench.add(PAGE, priority="critical")
    paused, limited = await bench.add(priority="high"), await bench.add(3)
    low = await bench.add(priority="low")
    pool = bench.server._store.pools[QUEUE]
    pool.queues["high"] = pool.queues["high"].model_copy(update={"is_paused": True})
    pool.queues["default"] = pool.queues["default"].model_copy(update={"concurrency_limit": 2})
    shown, _ = await look(QueuePager(bench.server, QUEUE), await front_of(bench))
    assert ids(shown) == ids(limited[:2] + low)
    assert paused[0].id not in ids(shown)


async def test_what_is_not_due_yet_is_not_shown(bench: Bench) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    later = State(type=StateType.SCHEDULED, name="Scheduled", state_details={"scheduled_time": due.isoformat()})
    items = await bench.add(PAGE + 2)
    await bench.server.propose(items[-1].id, later)
    shown, _ = await look(QueuePager(bench.server, QUEUE), await front_of(bench))
    assert ids(shown) == [items[-2].id]


# --- how often ---


async def test_agent_that_has_seen_all_rests_and_looks_sooner_once_something_has_changed(bench: Bench) -> None:
    await bench.add(PAGE + 1)
    clock, front = Clock(), await front_of(bench)
    one = QueuePager(bench.server, QUEUE, now=clock)

    async def looks_after(seconds: float) -> bool:
        clock.time += seconds
        return bool((await look(one, front))[0])

    assert await looks_after(0)
    assert [await looks_after(REST_SECONDS - 1), await looks_after(1)] == [False, True]
    one.changed()
    assert one.due_at == clock.time + SCAN_SECONDS
    assert [await looks_after(SCAN_SECONDS - 1), await looks_after(1)] == [False, True]
    assert one.due_at == float("inf")
    assert not await looks_after(SCAN_SECONDS)


async def test_agent_rests_ten_times_as_long_as_a_look_through_a_deep_queue_took(bench: Bench) -> None:
    await bench.add(PAGE * 2 + 1)
    clock = Clock()
    one = QueuePager(bench.server, QUEUE, now=clock)

    async def take(page: list[Item]) -> Item | None:
        clock.time += 4.0
        return None

    assert await one.find(await front_of(bench), take) is None
    assert one.due_at == clock.time - 4.0 + 40.0
    one.changed()
    assert one.due_at == clock.time - 4.0 + 40.0


async def test_what_changes_while_a_look_goes_on_leads_to_the_next(bench: Bench) -> None:
    await bench.add(PAGE + 1)
    clock = Clock()
    one = QueuePager(bench.server, QUEUE, now=clock)

    async def take(page: list[Item]) -> Item | None:
        one.changed()
        return None

    assert await one.find(await front_of(bench), take) is None
    assert one.due_at == clock.time + SCAN_SECONDS


async def test_look_that_found_something_is_followed_by_one_at_once_that_begins_with_its_page(bench: Bench) -> None:
    items = await bench.add(PAGE * 3)
    one, front = QueuePager(bench.server, QUEUE, now=Clock()), await front_of(bench)
    _, found = await look(one, front, items[-5].id)
    assert found is not None
    await bench.move(found, ItemState.CLAIMED)
    before = bench.server.calls["poll"]
    shown, found = await look(one, front, items[-4].id)
    assert found is not None
    assert bench.server.calls["poll"] == before + 1
    assert len(shown) < PAGE


async def test_slow_look_is_broken_off_and_gone_on_with_later(bench: Bench) -> None:
    items = await bench.add(PAGE * 4)
    clock, front = Clock(), await front_of(bench)
    one = QueuePager(bench.server, QUEUE, now=clock)
    shown: list[Item] = []

    async def take(page: list[Item]) -> Item | None:
        clock.time += candidates.LONGEST_SECONDS + 1
        shown.extend(page)
        return None

    await one.find(front, take)
    assert len(shown) < PAGE
    for _ in range(4):
        clock.time = max(clock.time, one.due_at)
        await one.find(front, take)
    assert ids(front + shown) == ids(items)


# --- an agent ---


async def test_small_item_behind_many_that_do_not_fit_runs_and_the_first_of_those_comes_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SCAN_SECONDS", 0.1)
    bench.plays(Script(seconds=60))
    (holder,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, 3, device_patience_seconds=60)):
        await running(bench, holder)
        big = await bench.add(PAGE + 3, **wants(3))
        (small,) = await bench.add(**wants(1))
        await running(bench, small)
    late = await bench.add(2, **wants(1))
    async with bench.running(agent_of(bench, 3, device_patience_seconds=0)):
        for item in (small, holder):
            await bench.move(item, ItemState.CANCELLING)
        await running(bench, big[0])
        assert [await bench.states(item) for item in late] == [["Queued"]] * 2


async def test_big_item_behind_many_for_other_agents_is_not_starved_by_small_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SCAN_SECONDS", 0.1)
    monkeypatch.setattr(candidates, "REST_SECONDS", 0.2)
    bench.plays(Script(seconds=0.1))
    await bench.server.beat_worker(QUEUE, "the-big-box", 30)
    for_others = await bench.add(PAGE, **wants(8))
    await bench.add(4, **wants(1))
    async with bench.running(agent_of(bench, 2, device_patience_seconds=0.5)):
        (big,) = await bench.add(**wants(2))
        for _ in range(60):  # always more small items than GPUs
            waiting = await bench.server.count_items(pool=QUEUE, state_types=[StateType.SCHEDULED])
            await bench.add(max(PAGE + 4 - waiting, 0) or 1, **wants(1))
            if (await bench.states(big))[-1] == "Completed":
                break
            await asyncio.sleep(0.1)
        assert (await bench.states(big))[-1] == "Completed"
        assert {(await bench.states(item))[-1] for item in for_others} == {"Queued"}


async def test_agent_asks_seldom_while_many_items_wait_that_do_not_fit(bench: Bench) -> None:
    await bench.server.beat_worker(QUEUE, "the-big-box", 30)
    await bench.add(PAGE * 5, **wants(8))
    async with agent_of(bench, 2, device_patience_seconds=0).connected() as agent:
        for _ in range(2):
            assert await agent.pop_from_queue(QUEUE) is None
        before = bench.server.calls.copy()
        for _ in range(10):
            agent.poller.poll_again()
            assert await agent.pop_from_queue(QUEUE) is None
        assert bench.server.calls - before == {"poll": 20}
        assert len(agent.context.devices.wait_list.waiting) == PAGE * 5


async def test_what_is_behind_is_forgotten_once_the_front_is_all(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    items = await bench.add(PAGE + 5, **wants(2))
    async with agent_of(bench, 2).connected() as agent:
        agent.context.devices.restore(UUID(int=0), {"prefect-launch.devices": '{"gpus":["0"]}'})
        assert await agent.pop_from_queue(QUEUE) is None
        assert len(agent.context.devices.wait_list.waiting) == PAGE + 5
        for item in items[10:]:
            await bench.move(item, ItemState.CANCELLED)
        agent.poller.poll_again()
        assert await agent.pop_from_queue(QUEUE) is None
        assert ids_of(agent.context.devices.wait_list.waiting) == set(ids(items[:10]))


def ids_of(waiting: Any) -> set[UUID]:
    return {one.item_id for one in waiting}
