"""Items that are due later: an agent takes each when its time has come, not at its next poll, and never spins."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_launch.agent.polling.candidates import Candidates
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ServerUnavailableError
from prefect_launch.queues.session import Session
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryServer, Script
from tests.contract.server_place import make_place
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, holder_called

#: Far beyond what a test waits for: what starts was not found by a poll.
LONG_SECONDS = 60.0
#: Far less than that, and more than a busy machine takes.
LATE_SECONDS = 4.0


def seconds_until_due(seconds: float) -> State:
    due = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    retry = State.of(ItemState.AWAITING_RETRY)
    return retry.model_copy(update={"state_details": {"scheduled_time": due.isoformat()}})


async def add_for_later(bench: Bench, seconds: float, **spec: Any) -> Item:
    """Put an item on the queue that is due in some seconds."""
    (item,) = await bench.add(**spec)
    await bench.move(item, ItemState.CLAIMED)
    assert (await bench.server.propose(item.id, seconds_until_due(seconds))).accepted
    return await bench.read(item.id)


def looking_ahead(bench: Bench) -> Candidates:
    return Candidates(bench.server, QUEUE, ahead_seconds=LONG_SECONDS)


async def lateness(bench: Bench, item: Item) -> float:
    """How many seconds after its due time an item was claimed; it is waited for."""
    due = item.next_scheduled_start_time
    await bench.until(item, StateType.COMPLETED)
    claimed = [state for state in await bench.server.read_states(item.id) if state.name == "Pending"][-1]
    assert due is not None
    assert claimed.timestamp is not None
    return (claimed.timestamp - due).total_seconds()


# --- what a poll shows ---


async def test_item_is_given_when_it_is_due_and_not_before(bench: Bench) -> None:
    item = await add_for_later(bench, 1)
    candidates = looking_ahead(bench)
    assert await candidates.next(slots=1, skip=()) is None
    assert 0 < candidates.due_at - time.monotonic() <= 1
    await asyncio.sleep(candidates.due_at - time.monotonic())
    found = await candidates.next(slots=1, skip=())
    assert found is not None
    assert found.id == item.id
    assert candidates.due_at == float("inf")


async def test_idle_agent_asks_once_and_one_that_knows_of_a_later_item_twice(bench: Bench) -> None:
    candidates = looking_ahead(bench)
    assert await candidates.next(slots=1, skip=()) is None
    assert bench.server.calls["poll"] == 1
    await add_for_later(bench, 30)
    candidates.forget()
    assert await candidates.next(slots=1, skip=()) is None
    assert bench.server.calls["poll"] == 3


async def test_later_items_that_are_more_urgent_hide_nothing_that_is_due(bench: Bench) -> None:
    for _ in range(5):
        await add_for_later(bench, 30, priority="critical")
    usual = await bench.add(2)
    candidates = looking_ahead(bench)
    found = [await candidates.next(slots=1, skip=()) for _ in range(2)]
    assert [item.id for item in found if item] == [item.id for item in usual]


async def test_later_item_takes_no_place_under_the_limit_of_a_queue(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.update_run_queue, QUEUE, concurrency_limit=1)
    await add_for_later(bench, 30, priority="critical")
    (usual,) = await bench.add()
    found = await looking_ahead(bench).next(slots=4, skip=())
    assert found is not None
    assert found.id == usual.id


async def test_polls_for_items_that_are_not_due_yet_are_not_too_near_to_each_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.polling.candidates._SHORTEST_WAIT_SECONDS", 5.0)
    await add_for_later(bench, 1)
    candidates = looking_ahead(bench)
    before = time.monotonic()
    assert await candidates.next(slots=1, skip=()) is None
    assert candidates.due_at >= before + 5


async def test_fresh_item_of_a_server_whose_clock_is_ahead_is_given_when_this_clock_is_there() -> None:
    server = InMemoryServer(now=lambda: datetime.now(timezone.utc) + timedelta(seconds=1))
    place = await make_place(server, QUEUE)
    item = await place.add()
    candidates = Candidates(server, QUEUE, ahead_seconds=LONG_SECONDS)
    assert await candidates.next(slots=1, skip=()) is None
    await asyncio.sleep(candidates.due_at - time.monotonic())
    found = await candidates.next(slots=1, skip=())
    assert found is not None
    assert found.id == item.id


async def test_intake_knows_the_earliest_time_of_all_queues(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.create_run_queue, "second", RESOURCE)
    await add_for_later(bench, 30)
    await add_for_later(bench, 1, queue="second")
    async with bench.api.open() as session:
        poller = QueuePoller(
            Session(bench.server, session.jobs, session.digest_cache),
            [QUEUE, "second"],
            holder_called("box"),
            poll_seconds=LONG_SECONDS,
        )
        assert poller.seconds_until_due() == float("inf")
        assert await poller.next(slots=1, skip=()) is None
        assert 0 < poller.seconds_until_due() <= 1
        await asyncio.sleep(poller.seconds_until_due())
        assert 10 < poller.seconds_until_due() < 30  # what is due is no reason to wake again


# --- the loop ---


async def test_retry_starts_when_it_is_due_long_before_the_next_poll(bench: Bench) -> None:
    bench.plays(Script(exit_code=3), Script())
    (item,) = await bench.add(retries={"max": 1, "on": ["failed"], "delay": 0.5})
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        waits = await eventually(lambda: bench.read(item.id), lambda found: found.state_name == "AwaitingRetry")
        assert 0 <= await lateness(bench, waits) < LATE_SECONDS


async def test_agent_that_starts_after_an_item_was_put_off_takes_it_in_time(bench: Bench) -> None:
    items = [await add_for_later(bench, 0.6 + number * 0.3) for number in range(3)]
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS, max_jobs=3)):
        late = [await lateness(bench, item) for item in items]
    assert all(0 <= one < LATE_SECONDS for one in late), late


async def test_items_of_an_agent_that_is_full_wait_without_a_poll(bench: Bench) -> None:
    bench.plays(Script(seconds=LONG_SECONDS), Script())
    (first,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        await bench.until(first, StateType.RUNNING)
        before = bench.server.calls["poll"]
        later = await add_for_later(bench, 0.2)
        await past_due(later, 0.4)
        assert bench.server.calls["poll"] == before
        bench.machine.finish()
        await lateness(bench, later)  # it runs in the end


async def past_due(item: Item, seconds: float) -> None:
    """Wait until the due time of an item is past for some seconds."""
    due = item.next_scheduled_start_time
    assert due is not None
    await asyncio.sleep((due - datetime.now(timezone.utc)).total_seconds() + seconds)


async def test_item_that_is_due_and_cannot_be_claimed_is_not_asked_for_again_and_again(bench: Bench) -> None:
    """It is in the queue, its time has come, and each claim of it is lost."""
    item = await add_for_later(bench, 0.2)
    asked = 0

    async def other_is_faster(method: str) -> None:
        nonlocal asked
        if method == "propose" and not asked:
            asked = bench.server.calls["poll"]
            await bench.server.propose(item.id, State.of(ItemState.CLAIMED), force=True)

    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        bench.server.before_call = other_is_faster
        await eventually(lambda: bench.read(item.id), lambda found: found.state_type is StateType.PENDING)
        await asyncio.sleep(0.6)
        assert bench.server.calls["poll"] - asked <= 2


async def test_due_item_under_a_limit_that_is_reached_is_not_asked_for_again_and_again(bench: Bench) -> None:
    (held,) = await bench.add()
    later = await add_for_later(bench, 1.0)
    await bench.move(held, ItemState.CLAIMED)
    async with bench.running(bench.agent("box", poll_seconds=LONG_SECONDS)):
        await eventually(lambda: asyncio.sleep(0, bench.server.calls["poll"]), lambda count: count >= 2)
        await bench.server.update_pool(QUEUE, concurrency_limit=1)
        before = bench.server.calls["poll"]
        await past_due(later, 0.5)
        assert bench.server.calls["poll"] - before <= 2
    assert (await bench.read(later.id)).state_name == "AwaitingRetry"


async def test_retry_starts_when_it_is_due_though_its_event_came_while_it_was_in_work(bench: Bench) -> None:
    async def no_events(method: str) -> None:
        if method == "watch_pools":
            raise ServerUnavailableError("away")

    bench.plays(Script(exit_code=3), Script())
    (item,) = await bench.add(retries={"max": 1, "on": ["failed"], "delay": 0.5})
    bench.server.before_call = no_events
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        await bench.until(item, StateType.COMPLETED)
