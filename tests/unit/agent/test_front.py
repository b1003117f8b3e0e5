"""The front of a deep queue: what is asked for instead of all that is due, and that the answer is the same."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_launch.agent.polling import front
from prefect_launch.agent.polling.candidates import Candidates
from prefect_launch.core.states import ItemState
from prefect_launch.server.values import Item, State
from tests.support.bench import QUEUE, Bench

DEEP = 230


class Watched:
    """A server that notes up to when each poll asks."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.polls: list[tuple[int, datetime]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    async def poll(self, pool: str, **wanted: Any) -> list[Item]:
        self.polls.append((wanted["limit"], wanted["before"]))
        found: list[Item] = await self._server.poll(pool, **wanted)
        return found


@pytest.fixture(autouse=True)
def _slow_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "SLOW_SECONDS", -1.0)


async def deep(bench: Bench) -> tuple[Watched, Candidates, list[Item]]:
    """Return a queue of which a bound is known, and its items."""
    items = await bench.add(DEEP)
    server = Watched(bench.server)
    candidates = Candidates(server, QUEUE)
    for _ in range(2):
        candidates.forget()
        await candidates.next(slots=1, skip=())
    assert [limit for limit, _ in server.polls] == [16, front.PAGE]
    server.polls.clear()
    return server, candidates, items


async def first(candidates: Candidates) -> Item:
    candidates.forget()
    found = await candidates.next(slots=1, skip=())
    assert found is not None
    return found


async def test_poll_of_a_deep_queue_asks_for_what_is_due_up_to_a_bound(bench: Bench) -> None:
    server, candidates, items = await deep(bench)
    last = (await bench.read(items[front.PAGE - 1].id)).next_scheduled_start_time
    assert (await first(candidates)).id == items[0].id
    assert server.polls == [(16, last)]


async def test_queue_that_is_not_slow_gets_no_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "SLOW_SECONDS", 60.0)
    await bench.add(DEEP)
    server = Watched(bench.server)
    candidates = Candidates(server, QUEUE)
    for _ in range(3):
        await first(candidates)
    assert [limit for limit, _ in server.polls] == [16, 16, 16]


async def test_whole_pages_are_not_asked_for_again_and_again_where_another_cause_makes_polls_slow(bench: Bench) -> None:
    await bench.add(20)
    server = Watched(bench.server)
    candidates = Candidates(server, QUEUE)
    for _ in range(4):
        await first(candidates)
    assert [limit for limit, _ in server.polls] == [16, front.PAGE, 16, 16]


async def test_queue_that_was_empty_and_slow_to_tell_is_polled_again_once_something_is_due(bench: Bench) -> None:
    server = Watched(bench.server)
    candidates = Candidates(server, QUEUE)
    for _ in range(3):
        candidates.forget()
        assert await candidates.next(slots=1, skip=()) is None
    assert len(server.polls) == 1
    (item,) = await bench.add()
    assert (await first(candidates)).id == item.id


async def test_new_item_that_is_more_urgent_goes_first_though_it_is_due_behind_the_bound(bench: Bench) -> None:
    _, candidates, _ = await deep(bench)
    (urgent,) = await bench.add(priority="critical")
    assert (await first(candidates)).id == urgent.id


async def test_item_that_is_put_back_at_its_old_place_goes_first(bench: Bench) -> None:
    server, candidates, items = await deep(bench)
    await bench.move(items[-1], ItemState.CLAIMED)
    due = datetime.now(timezone.utc) - timedelta(hours=1)
    back = State.of(ItemState.QUEUED).model_copy(update={"state_details": {"scheduled_time": due.isoformat()}})
    assert (await bench.server.propose(items[-1].id, back)).accepted
    assert (await first(candidates)).id == items[-1].id
    assert len(server.polls) == 1


async def test_bound_up_to_which_few_are_left_is_followed_by_the_next(bench: Bench) -> None:
    server, candidates, items = await deep(bench)
    for item in items[:190]:
        await bench.move(item, ItemState.CLAIMED)
    assert (await first(candidates)).id == items[190].id
    assert [limit for limit, _ in server.polls] == [16, front.PAGE]


async def test_bound_that_is_old_is_not_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server, candidates, items = await deep(bench)
    monkeypatch.setattr(front, "BOUND_SECONDS", 0.0)
    assert (await first(candidates)).id == items[0].id
    assert [limit for limit, _ in server.polls] == [front.PAGE]


async def test_items_of_a_more_urgent_queue_that_is_paused_end_the_use_of_the_bound(bench: Bench) -> None:
    server, candidates, items = await deep(bench)
    await bench.add(2, priority="critical")
    queues = bench.server._store.pools[QUEUE].queues
    queues["critical"] = queues["critical"].model_copy(update={"is_paused": True})
    assert (await first(candidates)).id == items[0].id
    assert [limit for limit, _ in server.polls] == [16, front.PAGE]
