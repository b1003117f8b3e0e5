"""Queues that limit what one author has in work: agents hold the limit, and the authors take turns."""

from __future__ import annotations

import asyncio
import getpass
from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from prefect_launch.client.api import use_api
from prefect_launch.client.explain import aexplain_launch
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.author_shares import in_turn
from prefect_launch.queues.wait_reason import WaitCause, why_waiting
from prefect_launch.server.values import JOB_FLOW, SCHEDULER_FLOW, Item
from prefect_launch.spec.item_parameters import FORM_LABEL, author_of
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually
from tests.support.enqueueing import nobody

WAITING, RUNNING, COMPLETED = StateType.SCHEDULED, StateType.RUNNING, StateType.COMPLETED
CRITICAL, MEDIUM = UUID(int=1), UUID(int=2)


async def share(bench: Bench, per_author: int | None, **options: Any) -> None:
    """Let one author have so many in work."""
    await asyncio.to_thread(lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, per_author=per_author, **options))


async def running_authors(bench: Bench) -> Counter[str]:
    return Counter(author_of(item) for item in await bench.server.list_items(pool=QUEUE, state_types=[RUNNING]))


def waiting(*authors: str, queue: UUID = MEDIUM, flow: str = JOB_FLOW) -> list[Item]:
    return [
        Item(id=UUID(int=place), name=author, parameters={"author": author}, work_queue_id=queue, flow=flow)
        for place, author in enumerate(authors)
    ]


@pytest.mark.parametrize(
    ("line", "in_work", "turn"),
    [
        ("aaabc", {}, "abcaa"),
        ("aaabbb", {"a": 1}, "babab"),
        ("aabb", {"a": 3}, "bb"),
        ("aaaa", {"a": 2}, "a"),
        ("cab", {"a": 1, "b": 1, "c": 1}, "cab"),
    ],
)
def test_author_with_the_fewest_in_work_is_next_and_the_older_item_of_several(
    line: str, in_work: dict[str, int], turn: str
) -> None:
    assert "".join(item.name for item in in_turn(waiting(*line), in_work, 3)) == turn


def test_authors_take_turns_inside_a_priority_and_sweeps_take_none() -> None:
    line = [
        *waiting("a", "a", queue=CRITICAL),
        *waiting("a", "b"),
        *waiting("a", queue=UUID(int=9), flow=SCHEDULER_FLOW),
    ]
    assert [item.name for item in in_turn(line, {}, 3)] == ["a", "a", "b", "a", "a"]


async def test_author_at_the_limit_hides_nobody_and_the_rest_starts_when_one_has_ended(bench: Bench) -> None:
    await share(bench, 2)
    bench.plays(Script(seconds=60))
    anns = await bench.add(300, author="ann")
    (bobs,) = await bench.add(author="bob")
    async with bench.running(bench.agent(max_jobs=4)):
        await bench.until(bobs, RUNNING)
        await eventually(lambda: running_authors(bench), lambda seen: seen == {"ann": 2, "bob": 1})
        bench.machine.finish()
        for item in anns[:2]:
            await bench.until(item, COMPLETED)
        await eventually(lambda: running_authors(bench), lambda seen: seen == {"ann": 2})


@pytest.mark.parametrize("concurrency", [None, 2], ids=["no limit", "limit of the queue"])
async def test_many_items_of_one_author_hide_no_other_author(bench: Bench, concurrency: int | None) -> None:
    await share(bench, 10, concurrency=concurrency)
    bench.plays(Script(seconds=60))
    await bench.add(1000, author="ann")
    (bobs,) = await bench.add(author="bob")
    await bench.add(author="ann")
    async with bench.running(bench.agent(max_jobs=2)):
        await bench.until(bobs, RUNNING)
        await eventually(lambda: running_authors(bench), lambda seen: seen == {"ann": 1, "bob": 1})
    assert "Running" in await bench.states(bobs)
    # Nothing of it was claimed in vain.
    assert [len(await bench.states(item)) for item in await bench.server.list_items(state_types=[RUNNING])] == [3, 3]


async def test_item_behind_a_crowd_waits_for_its_predecessor_and_its_paused_priority(bench: Bench) -> None:
    await share(bench, 1)
    bench.plays(Script(seconds=60))
    first, *_ = await bench.add(300, author="ann")
    (after,) = await bench.add(author="bob", after=[str(first.id)])
    (low,) = await bench.add(author="carl", priority="low")
    queues = bench.server._store.pools[QUEUE].queues
    queues["low"] = queues["low"].model_copy(update={"is_paused": True})
    (last,) = await bench.add(author="dora")
    async with bench.running(bench.agent(max_jobs=8)):
        await bench.until(last, RUNNING)
        await eventually(lambda: running_authors(bench), lambda seen: seen == {"ann": 1, "dora": 1})
    assert {(await bench.read(item.id)).state_type for item in (after, low)} == {WAITING}


async def test_agents_that_claim_at_the_same_moment_do_not_exceed_the_limit(bench: Bench) -> None:
    await share(bench, 3)
    bench.plays(Script(seconds=0.05))
    items = await bench.add(20, author="ann")
    agents = [bench.agent(f"box-{number}", home=bench.folder / str(number), max_jobs=4) for number in range(4)]
    most = 0
    async with bench.running(agents[0]), bench.running(agents[1]), bench.running(agents[2]), bench.running(agents[3]):
        while {(await bench.read(item.id)).state_type for item in items} != {COMPLETED}:
            most = max(most, sum((await running_authors(bench)).values()))
            await asyncio.sleep(0.005)
    assert most == 3


async def test_agent_that_has_lost_a_claim_starts_the_oldest_items_of_an_author_still(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.polling.share.random.shuffle", list[Item].reverse)
    await share(bench, 2)
    items = await bench.add(40, author="ann")
    agent = bench.agent()
    async with agent.connected():
        await agent.poller.read_limits()
        agent.poller._candidates[QUEUE].note_lost_claim()
        taken = [await agent.poller.pop(QUEUE, slots=10) for _ in range(3)]
    assert {item.id for item in taken if item is not None} == {item.id for item in items[:2]}


async def test_item_that_was_claimed_over_the_limit_keeps_its_place_in_line(bench: Bench) -> None:
    await share(bench, 1)
    first, second, third = await bench.add(3, author="ann")
    await bench.move(first, ItemState.CLAIMED)
    polled = (await bench.poll())[0]
    agent = bench.agent()
    async with agent.connected():
        await agent.poller.read_limits()
        # Between this agent's look at what is in work and its claim, another one has claimed the first.
        assert await agent.poller._claim(QUEUE, polled) is None

    assert [item.id for item in await bench.poll()] == [second.id, third.id]
    told = await bench.read(second.id)
    assert (told.state_name, told.message) == ("Queued", "ann has 1 of 1 in work on this queue.")


async def test_items_without_an_author_have_one_share_and_those_of_a_form_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", nobody)
    await share(bench, 1)
    bench.plays(Script(seconds=60))
    await bench.add(3)
    async with bench.running(bench.agent(max_jobs=4)):
        await eventually(lambda: running_authors(bench), lambda seen: seen == {"": 1})
    form = Item(id=UUID(int=1), name="x", labels={FORM_LABEL: "1"}, parameters={"launch": {"author": "ann"}, "lr": 1})
    assert author_of(form) == "ann"


async def test_queue_without_the_option_costs_no_request_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.add(2, author="ann")

    async def refuse(*_: object, **__: object) -> list[Item]:
        raise AssertionError("asked for a list")

    agent = bench.agent()
    async with agent.connected():
        await agent.poller.read_limits()
        monkeypatch.setattr(bench.server, "list_items", refuse)
        assert await agent.poller.pop(QUEUE) is not None


async def test_item_says_that_its_author_has_all_that_one_may_have(bench: Bench) -> None:
    await share(bench, 1)
    bench.plays(Script(seconds=60))
    items = await bench.add(3, author="ann")
    async with bench.running(bench.agent(max_jobs=4)), bench.api.open() as session:
        await bench.until(items[0], RUNNING)
        reason = await why_waiting(session, items[2])
        assert reason is not None
        assert (reason.cause, reason.reason) == (
            WaitCause.SHARE,
            "ann has 1 of 1 in work on this queue; 1 of ann's wait before it.",
        )
        with use_api(bench.api):
            before = await aexplain_launch(docker_image="busybox:1", queue_name=QUEUE, author="ann")
            other = await aexplain_launch(docker_image="busybox:1", queue_name=QUEUE, author="bob")
    assert before.waiting is not None
    assert other.waiting is not None
    assert before.waiting.reason == "ann has 1 of 1 in work on this queue; 2 of ann's wait before it."
    assert other.waiting.cause is WaitCause.TURN
