"""The claim: an item becomes one agent's, and one that has ended is never run again."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ServerUnavailableError
from prefect_launch.queues.claim import claim, is_over_limit, release_claim, undo_claim
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench, holder_called

ENDS = (ItemState.COMPLETED, ItemState.FAILED, ItemState.CRASHED)


async def test_waiting_item_is_claimed_and_names_its_holder(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    mine = await claim(bench.server, polled, holder=holder_called("box-1"))
    assert mine is not None
    assert (mine.state_name, mine.message) == ("Pending", "Claimed by agent box-1 on here.")


async def test_item_claimed_by_two_agents_becomes_one_agents(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    claims = await asyncio.gather(*(claim(bench.server, polled, holder=holder_called(f"box-{n}")) for n in range(4)))
    assert sum(mine is not None for mine in claims) == 1


@pytest.mark.parametrize("end", ENDS)
async def test_item_that_ran_and_ended_since_the_poll_gets_its_end_back(bench: Bench, end: ItemState) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    await bench.move(polled, ItemState.CLAIMED, ItemState.RUNNING, end)
    assert await claim(bench.server, polled, holder=holder_called("late")) is None
    assert (await bench.read(polled.id)).state_name == end.label


@pytest.mark.parametrize("end", ENDS)
async def test_item_that_ended_before_it_ran_gets_its_end_back(bench: Bench, end: ItemState) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    await bench.move(polled, ItemState.CLAIMED, end)
    assert await claim(bench.server, polled, holder=holder_called("late")) is None
    assert (await bench.read(polled.id)).state_name == end.label


async def test_retried_item_that_ended_again_before_it_ran_gets_its_end_back(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.FAILED, ItemState.QUEUED)
    (polled,) = await bench.poll()
    await bench.move(polled, ItemState.CLAIMED, ItemState.CRASHED)
    assert await claim(bench.server, polled, holder=holder_called("late")) is None
    assert (await bench.read(polled.id)).state_name == "Crashed"


async def test_retried_item_is_claimed(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED, ItemState.QUEUED)
    (polled,) = await bench.poll()
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is not None


async def test_given_back_item_is_claimed_from_an_old_poll_too(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    first = await claim(bench.server, polled, holder=holder_called("box-1"))
    assert first is not None
    await release_claim(bench.server, first, "not now", due=polled.next_scheduled_start_time)
    assert await claim(bench.server, polled, holder=holder_called("box-2")) is not None


@pytest.mark.parametrize("news_seconds", [10.0, 0.0])
@pytest.mark.parametrize("runs", [(), (ItemState.RUNNING,)])
async def test_item_that_was_put_back_for_another_time_is_claimed_from_a_new_poll_alone(
    bench: Bench, runs: tuple[ItemState, ...], news_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.queues.claim._NEWS_SECONDS", news_seconds)
    await bench.add()
    (polled,) = await bench.poll()
    assert polled.next_scheduled_start_time is not None
    await bench.move(polled, ItemState.CLAIMED, *runs)
    due = polled.next_scheduled_start_time + timedelta(seconds=1)
    retry = State.of(ItemState.AWAITING_RETRY, "Once more.").model_copy(
        update={"state_details": {"scheduled_time": due.isoformat()}, "data": {"exit_code": 3}}
    )
    await bench.server.propose(polled.id, retry)
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is None
    now = await bench.read(polled.id)
    assert now.state is not None
    assert (now.state_name, now.message, now.next_scheduled_start_time) == ("AwaitingRetry", "Once more.", due)
    assert now.state.data == {"exit_code": 3}
    claimed = await claim(bench.server, now, holder=holder_called("box-1"))
    assert claimed is not None
    assert claimed.run_count == len(runs)


async def test_item_that_was_changed_since_the_poll_is_claimed_as_changed(bench: Bench) -> None:
    spec = {"docker": {"docker_image": "busybox:1"}, "overrides": {"run_config": {"lr": 1}}}
    (run,) = await alaunch_add_many([spec], QUEUE, api=bench.api)
    (polled,) = await bench.poll()
    await asyncio.to_thread(run.edit, {"lr": 2})
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is None
    (polled,) = await bench.poll()
    mine = await claim(bench.server, polled, holder=holder_called("box-1"))
    assert mine is not None
    assert mine.parameters["overrides"]["run_config"] == {"lr": 2}


async def test_end_that_is_put_back_keeps_its_message_and_data(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    await bench.move(polled, ItemState.CLAIMED, ItemState.RUNNING)
    failed = State.of(ItemState.FAILED, "exit code 3").model_copy(update={"data": {"exit_code": 3}})
    await bench.server.propose(polled.id, failed)
    assert await claim(bench.server, polled, holder=holder_called("late")) is None
    state = (await bench.read(polled.id)).state
    assert state is not None
    assert (state.message, state.data) == ("exit code 3", {"exit_code": 3})


async def test_claim_whose_answer_was_lost_counts_as_won(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    lost: list[str] = []

    async def lose_first_answer(method: str) -> None:
        if method == "propose" and not lost:
            lost.append(method)
            raise ServerUnavailableError("the answer was lost")

    bench.server.after_call = lose_first_answer
    mine = await claim(bench.server, polled, holder=holder_called("box-1"))
    assert mine is not None
    assert await bench.states(polled) == ["Queued", "Pending"]


async def test_server_that_goes_away_after_the_claim_is_waited_for(bench: Bench) -> None:
    polled = await _polled_after_a_run(bench)

    async def go_down_once(method: str) -> None:
        if method == "propose":
            bench.server.after_call = None
            bench.server.down()
            asyncio.get_running_loop().call_later(0.2, bench.server.up)

    bench.server.after_call = go_down_once
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is not None


async def test_item_that_was_deleted_since_the_poll_is_lost(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    await bench.server.delete_item(polled.id)
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is None


async def test_item_cancelled_right_after_the_claim_ends_as_cancelled(bench: Bench) -> None:
    polled = await _polled_after_a_run(bench)

    async def cancel_before_the_read(method: str) -> None:
        if method == "read_item":
            bench.server.before_call = None
            await bench.move(polled, ItemState.CANCELLING)

    bench.server.before_call = cancel_before_the_read
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is None
    assert (await bench.read(polled.id)).state_type is StateType.CANCELLED


async def test_claim_that_took_long_is_read_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.queues.claim._NEWS_SECONDS", 0.0)
    await bench.add()
    (polled,) = await bench.poll()

    async def cancel_after_the_claim(method: str) -> None:
        if method == "propose":
            bench.server.after_call = None
            await bench.move(polled, ItemState.CANCELLING)

    bench.server.after_call = cancel_after_the_claim
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is None
    assert (await bench.read(polled.id)).state_type is StateType.CANCELLED


async def test_claim_that_an_earlier_request_made_is_read_again(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()

    async def lose_the_answer(method: str) -> None:
        if method == "propose":
            bench.server.after_call = None
            await bench.server.label_item(polled.id, {"changed": "meanwhile"})
            raise ServerUnavailableError("the answer was lost")

    bench.server.after_call = lose_the_answer
    mine = await claim(bench.server, polled, holder=holder_called("box-1"))
    assert mine is not None
    assert mine.labels["changed"] == "meanwhile"


async def test_item_that_is_deleted_while_it_is_taken_back_is_lost(bench: Bench) -> None:
    await bench.add()
    (polled,) = await bench.poll()
    await bench.move(polled, ItemState.CLAIMED, ItemState.FAILED)

    async def delete_after_the_claim(method: str) -> None:
        if method == "read_states":
            bench.server.after_call = None
            await bench.server.delete_item(polled.id)

    bench.server.after_call = delete_after_the_claim
    assert await claim(bench.server, polled, holder=holder_called("box-1")) is None


async def test_item_cancelled_as_it_is_claimed_ends_as_cancelled(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()

    async def cancel_after_the_claim(method: str) -> None:
        if method == "propose":
            bench.server.after_call = None
            await bench.move(item, ItemState.CANCELLING)

    bench.server.after_call = cancel_after_the_claim
    await bench.agent(poll_seconds=30).loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.CANCELLED


async def test_claim_over_the_queues_limit_is_seen(bench: Bench) -> None:
    first, second = await bench.add(2)
    await bench.move(first, ItemState.CLAIMED)
    await bench.move(second, ItemState.CLAIMED)
    mine = await bench.read(second.id)
    assert await is_over_limit(bench.server, mine, pool_limit=1, queue_limit=None)
    assert await is_over_limit(bench.server, mine, pool_limit=None, queue_limit=1)
    assert not await is_over_limit(bench.server, mine, pool_limit=2, queue_limit=2)


async def test_undone_claim_of_waiting_item_puts_it_back_into_the_queue(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)
    await undo_claim(bench.server, await bench.read(item.id), "lost")
    assert [found.id for found in await bench.poll()] == [item.id]


async def test_undone_claim_of_item_that_had_ended_gives_it_its_end(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED, ItemState.CLAIMED)
    await undo_claim(bench.server, await bench.read(item.id), "lost")
    assert (await bench.read(item.id)).state_name == "Failed"
    assert await bench.server.count_items(pool=QUEUE, state_types=[StateType.SCHEDULED]) == 0


async def _polled_after_a_run(bench: Bench) -> Item:
    """Return an item that waits to run once more, as a poll shows it."""
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED, ItemState.QUEUED)
    (polled,) = await bench.poll()
    return polled
