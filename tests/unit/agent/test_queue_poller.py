"""How an agent comes by items: order, fairness, limits, and what it asks the server for it."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from prefect_launch.agent.polling.candidates import POLL_FACTOR, SURE_SECONDS, WINDOW_SECONDS, Candidates
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.agent.polling.share import CONTENDED_SECONDS, Fleet, Share
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import NotFoundError, ServerUnavailableError
from prefect_launch.queues.presence import Holder, Presence
from prefect_launch.queues.session import Session
from prefect_launch.server.values import Item, ItemChange, State
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, holder_called
from tests.support.virtual_time import virtual_time


async def poller_of(bench: Bench, *queues: str, holder: str = "box") -> QueuePoller:
    async with bench.api.open() as session:
        poller = QueuePoller(
            Session(bench.server, session.jobs, session.digest_cache), queues or (QUEUE,), holder_called(holder)
        )
        await poller.read_limits()
        return poller


def share_of(own: Holder, *others: Holder, elsewhere: Presence | None = None) -> Share:
    fleet = Fleet(own.instance)
    fleet.note([*(Presence.of(one, (QUEUE,)) for one in others), *([elsewhere] if elsewhere else [])])
    return Share(fleet, QUEUE)


async def drain(candidates: Candidates, *, slots: int) -> list[Item]:
    found: list[Item] = []
    while (item := await candidates.next(slots=slots, skip=[one.id for one in found])) is not None:
        found.append(item)
    return found


# --- candidates ---


async def test_agent_that_is_alone_takes_first_in_first_out(bench: Bench) -> None:
    items = await bench.add(12)
    found = await drain(Candidates(bench.server, QUEUE), slots=12)
    assert [item.id for item in found] == [item.id for item in items]


async def test_agent_that_lost_a_claim_shuffles_inside_one_priority(bench: Bench) -> None:
    urgent = await bench.add(3, priority="critical")
    usual = await bench.add(20)
    candidates = Candidates(bench.server, QUEUE)
    candidates.note_lost_claim()
    found = [item.id for item in await drain(candidates, slots=23)]
    assert set(found[:3]) == {item.id for item in urgent}
    assert set(found[3:]) == {item.id for item in usual}
    assert found[3:] != [item.id for item in usual]


async def test_agents_that_lose_claims_to_each_other_take_different_items(bench: Bench) -> None:
    await bench.add(64)
    holders = [holder_called(name) for name in ("box", "bay", "bin", "bow")]
    elsewhere = Presence.of(holder_called("other-queue"), ("another",))
    taken: list[UUID] = []
    for holder in holders:
        candidates = Candidates(bench.server, QUEUE, share=share_of(holder, *holders, elsewhere=elsewhere))
        candidates.note_lost_claim()
        for _ in range(4):
            item = await candidates.next(slots=4, skip=())
            assert item is not None
            taken.append(item.id)
    assert len(set(taken)) == 16


@pytest.mark.parametrize(("is_limited", "window"), [(False, SURE_SECONDS), (True, WINDOW_SECONDS)])
async def test_agent_polls_no_more_often_for_an_item_when_there_are_others(
    bench: Bench, is_limited: bool, window: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.add(64)
    holders = [holder_called(name) for name in ("box", "bay", "bin", "bow")]
    candidates = Candidates(bench.server, QUEUE, share=share_of(*holders), is_limited=lambda: is_limited)
    candidates.note_lost_claim()
    with virtual_time(monkeypatch):
        await candidates.next(slots=4, skip=())
        await asyncio.sleep(window * len(holders) - 0.1)
        await candidates.next(slots=1, skip=())
        assert bench.server.calls["poll"] == 1
        await asyncio.sleep(0.2)
        await candidates.next(slots=1, skip=())
        assert bench.server.calls["poll"] == 2


async def test_items_of_an_agent_that_takes_none_are_taken_by_the_others(bench: Bench) -> None:
    items = await bench.add(20)
    box, bay = holder_called("box"), holder_called("bay")
    candidates = Candidates(bench.server, QUEUE, share=share_of(box, bay))
    candidates.note_lost_claim()
    assert {item.id for item in await drain(candidates, slots=20)} == {item.id for item in items}


async def test_agent_that_loses_no_more_claims_takes_first_in_first_out_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = await bench.add(12)
    candidates = Candidates(bench.server, QUEUE)
    candidates.note_lost_claim()
    monkeypatch.setattr("prefect_launch.agent.polling.share.CONTENDED_SECONDS", 0.0)
    assert [item.id for item in await drain(candidates, slots=12)] == [item.id for item in items]


async def test_poll_asks_for_four_items_a_free_slot(bench: Bench) -> None:
    await bench.add(20)
    asked: list[int] = []
    poll = bench.server.poll

    class Watched(type(bench.server)):  # type: ignore[misc]
        async def poll(self, pool: str, **kwargs: object) -> list[Item]:
            asked.append(kwargs["limit"])  # type: ignore[arg-type]
            return await poll(pool, **kwargs)  # type: ignore[arg-type]

    await Candidates(Watched(), QUEUE, is_limited=lambda: True).next(slots=3, skip=())
    assert asked == [3 * POLL_FACTOR]


async def test_item_that_the_stream_tells_another_has_claimed_is_not_tried_for(bench: Bench) -> None:
    first, second, third = await bench.add(3)
    poller = await poller_of(bench)
    assert (await taken_by(poller)).id == first.id
    await bench.move(second, ItemState.CLAIMED)
    poller.note_claim(ItemChange(str(second.id), QUEUE, StateType.PENDING))
    proposed = bench.server.calls["propose"]
    assert (await taken_by(poller)).id == third.id
    assert bench.server.calls["propose"] == proposed + 1


@pytest.mark.parametrize("others", [0, 3])
async def test_agent_shares_once_the_stream_tells_that_another_takes_what_it_would_try_for(
    bench: Bench, others: int
) -> None:
    """A lost claim costs a refused write, and until one comes, each agent polls twice a second for its next item."""
    items = await bench.add(64)
    holders = [holder_called(name) for name in ("box", "bay", "bin", "bow")][: 1 + others]
    share = share_of(*holders)
    candidates = Candidates(bench.server, QUEUE, share=share)
    await candidates.next(slots=4, skip=())
    candidates.drop(str(items[0].id))  # Its own claim.
    assert share.agents == 1
    candidates.drop(str(items[1].id))
    assert share.agents == 1 + others


async def test_agent_that_shares_takes_first_in_first_out_again_while_others_take_their_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.add(64)
    share = share_of(holder_called("box"), holder_called("bay"))
    candidates = Candidates(bench.server, QUEUE, share=share)
    with virtual_time(monkeypatch):
        candidates.note_lost_claim()
        await asyncio.sleep(CONTENDED_SECONDS - 1)
        await candidates.next(slots=4, skip=())
        candidates.drop(str(candidates._items[-1].id))
        await asyncio.sleep(2)
        assert share.agents == 1


def queued(item: Item, *, is_new: bool = True) -> ItemChange:
    return ItemChange(str(item.id), QUEUE, StateType.SCHEDULED, item.work_queue_name or "", is_new)


async def test_new_items_behind_those_of_the_last_poll_cost_no_poll_each_and_come_next(bench: Bench) -> None:
    items = await bench.add(3)
    poller, taken = await poller_of(bench), list[UUID]()
    for _ in range(2):
        taken.append((await taken_by(poller)).id)
        items += await bench.add()
        poller.note_queued(queued(items[-1]))
    assert bench.server.calls["poll"] == 1
    taken += [(await taken_by(poller)).id for _ in range(3)]
    assert taken == [item.id for item in items]
    assert bench.server.calls["poll"] == 2


async def test_new_item_of_another_priority_is_polled_for_at_once(bench: Bench) -> None:
    await bench.add(3)
    poller = await poller_of(bench)
    await taken_by(poller)
    (urgent,) = await bench.add(priority="high")
    poller.note_queued(queued(urgent))
    assert (await taken_by(poller)).id == urgent.id


async def test_new_item_is_polled_for_when_less_urgent_ones_are_left_of_the_last_poll(bench: Bench) -> None:
    await bench.add(2)
    await bench.add(priority="low")
    poller = await poller_of(bench)
    await taken_by(poller)
    (new,) = await bench.add()
    poller.note_queued(queued(new))
    found = [(await taken_by(poller)).id for _ in range(2)]
    assert found[1] == new.id


async def test_item_that_is_put_back_with_its_place_in_line_is_polled_for_at_once(bench: Bench) -> None:
    first, *_ = await bench.add(3)
    poller = await poller_of(bench)
    await taken_by(poller)
    due = first.next_scheduled_start_time
    assert due is not None
    details = {"scheduled_time": due.isoformat()}
    await bench.server.propose(first.id, State.of(ItemState.QUEUED).model_copy(update={"state_details": details}))
    poller.note_queued(queued(first, is_new=False))
    assert (await taken_by(poller)).id == first.id


async def test_new_item_is_polled_for_at_once_on_a_queue_with_a_limit(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.update_run_queue, QUEUE, concurrency_limit=9)
    await bench.add(3)
    poller = await poller_of(bench)
    await taken_by(poller)
    poller.note_queued(queued(*await bench.add()))
    await taken_by(poller)
    assert bench.server.calls["poll"] == 2


async def test_item_that_was_polled_before_its_queue_was_paused_is_not_taken(bench: Bench) -> None:
    await bench.add(2)
    poller = await poller_of(bench)
    watching = asyncio.create_task(poller.watch_limits(poller.poll_again))
    await taken_by(poller)
    before = bench.server.calls["list_queues"]
    await bench.server.update_pool(QUEUE, is_paused=True)
    poller.check_limits()

    async def reads() -> int:
        return bench.server.calls["list_queues"] - before

    await eventually(reads, lambda count: count == 2)  # At the event, and a moment later, when it is mostly committed.
    assert await poller.pop(QUEUE, slots=3) is None
    watching.cancel()


async def taken_by(poller: QueuePoller) -> Item:
    item = await poller.pop(QUEUE, slots=3)
    assert item is not None
    return item


async def test_items_of_one_poll_are_used_for_several_claims(bench: Bench) -> None:
    await bench.add(4)
    candidates = Candidates(bench.server, QUEUE)
    await drain(candidates, slots=4)
    assert bench.server.calls["poll"] == 1


async def test_busy_agent_that_is_alone_polls_once_for_sixteen_items(bench: Bench) -> None:
    items = await bench.add(32)
    candidates = Candidates(bench.server, QUEUE)
    found = [await candidates.next(slots=1, skip=()) for _ in range(16)]
    assert [item.id for item in found if item] == [item.id for item in items[:16]]
    assert bench.server.calls["poll"] == 1


async def test_busy_agent_that_shares_asks_for_enough_to_find_as_many_of_its_own(bench: Bench) -> None:
    items = await bench.add(64)
    box, *others = (holder_called(name) for name in ("box", "bay", "bin", "bow"))
    fleet = Fleet(box.instance)
    fleet.note(Presence.of(one, (QUEUE,)) for one in others)
    own = {item.id for item in items if fleet.turn(QUEUE, str(item.id)) == 0}
    candidates = Candidates(bench.server, QUEUE, share=Share(fleet, QUEUE))
    candidates.note_lost_claim()
    found = [await candidates.next(slots=1, skip=()) for _ in own]
    assert {item.id for item in found if item} == own  # Of all that wait: so many were asked for.
    assert bench.server.calls["poll"] == 1


@pytest.mark.parametrize(("is_limited", "window"), [(False, SURE_SECONDS), (True, WINDOW_SECONDS)])
async def test_poll_that_is_old_is_not_used(
    bench: Bench, is_limited: bool, window: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await bench.add(2)
    candidates = Candidates(bench.server, QUEUE, is_limited=lambda: is_limited)
    with virtual_time(monkeypatch):
        await candidates.next(slots=2, skip=())
        await bench.move(second, ItemState.CLAIMED)
        await asyncio.sleep(window + 0.1)
        found = await candidates.next(slots=2, skip=())
    assert found is not None
    assert found.id == first.id


async def test_item_that_comes_while_more_urgent_is_told_goes_first(bench: Bench) -> None:
    await bench.add(3)
    candidates = Candidates(bench.server, QUEUE)
    await candidates.next(slots=1, skip=())
    (urgent,) = await bench.add(priority="critical")
    candidates.forget()
    found = await candidates.next(slots=1, skip=())
    assert found is not None
    assert found.id == urgent.id


@pytest.mark.parametrize(("is_limited", "polls"), [(False, 1), (True, 2)])
async def test_freed_slot_asks_an_empty_queue_again_only_when_it_has_a_limit(
    bench: Bench, is_limited: bool, polls: int
) -> None:
    await bench.add()
    candidates = Candidates(bench.server, QUEUE, is_limited=lambda: is_limited)
    await candidates.next(slots=2, skip=())
    candidates.note_freed_slot()
    await candidates.next(slots=2, skip=())
    assert bench.server.calls["poll"] == polls


async def test_freed_slot_asks_again_for_what_was_passed_over(bench: Bench) -> None:
    await bench.add_scheduler()
    candidates = Candidates(bench.server, QUEUE)
    assert await candidates.next(slots=2, skip=(), schedulers=False) is None
    candidates.note_freed_slot()
    assert await candidates.next(slots=2, skip=()) is not None


async def test_schedulers_are_passed_over_when_none_may_be_started(bench: Bench) -> None:
    for _ in range(6):
        await bench.add_scheduler()
    (job,) = await bench.add()
    found = await Candidates(bench.server, QUEUE).next(slots=1, skip=(), schedulers=False)
    assert found is not None
    assert found.id == job.id


# --- intake ---


async def test_item_that_ended_or_went_elsewhere_after_the_poll_is_passed_over(bench: Bench) -> None:
    first, cancelled, claimed, last = await bench.add(4)
    poller = await poller_of(bench)
    await bench.server.update_pool(QUEUE, concurrency_limit=None)
    await poller.read_limits()
    assert (found := await poller.pop(QUEUE)) is not None
    assert found.id == first.id
    await bench.move(cancelled, ItemState.CANCELLED)
    await bench.move(claimed, ItemState.CLAIMED)
    assert (found := await poller.pop(QUEUE)) is not None
    assert found.id == last.id
    assert (await bench.read(cancelled.id)).state_type is StateType.CANCELLED


async def test_queues_have_their_turn_one_after_another(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.create_run_queue, "second", RESOURCE)
    await bench.add(2)
    await bench.add(2, queue="second")
    poller = await poller_of(bench, QUEUE, "second")
    taken = [await poller.next(slots=1, skip=()) for _ in range(5)]
    assert [found[1] for found in taken if found] == [QUEUE, "second", QUEUE, "second"]
    assert taken[4] is None


async def test_empty_queue_keeps_nobody_waiting(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.create_run_queue, "second", RESOURCE)
    await bench.add(2, queue="second")
    poller = await poller_of(bench, QUEUE, "second")
    found = [await poller.next(slots=1, skip=()) for _ in range(2)]
    assert [one[1] for one in found if one] == ["second", "second"]


async def test_queue_that_the_agent_does_not_have_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="gpuu"):
        await (await poller_of(bench)).pop("gpuu")


async def test_server_that_is_away_is_reported(bench: Bench) -> None:
    poller = await poller_of(bench)
    bench.server.down()
    with pytest.raises(ServerUnavailableError):
        await poller.pop(QUEUE)


async def test_item_over_the_limit_is_given_back(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.update_run_queue, QUEUE, concurrency_limit=1)
    await bench.add(2)
    poller, other = await poller_of(bench), await poller_of(bench, holder="other")
    met: list[str] = []

    async def other_is_faster(method: str) -> None:
        if method == "propose" and not met:
            met.append(method)
            assert await other.pop(QUEUE, slots=1) is not None

    bench.server.before_call = other_is_faster
    assert await poller.pop(QUEUE, slots=2) is None
    assert await bench.server.count_items(pool=QUEUE, state_types=[StateType.PENDING]) == 1
    assert await bench.server.count_items(pool=QUEUE, state_types=[StateType.SCHEDULED]) == 1


async def test_many_agents_never_hold_more_than_the_limit(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.update_run_queue, QUEUE, concurrency_limit=2)
    await bench.add(20)
    pollers = [await poller_of(bench, holder=f"box-{n}") for n in range(4)]
    taken = await asyncio.gather(*(poller.pop(QUEUE, slots=4) for poller in pollers))
    assert 1 <= sum(item is not None for item in taken) <= 2
    held = await bench.server.count_items(pool=QUEUE, state_types=[StateType.PENDING])
    assert held == sum(item is not None for item in taken)


async def test_paused_queue_gives_nothing(bench: Bench) -> None:
    await bench.add()
    await asyncio.to_thread(bench.api.update_run_queue, QUEUE, is_paused=True)
    assert await (await poller_of(bench)).pop(QUEUE) is None
