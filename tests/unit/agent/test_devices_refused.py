"""Items that do not fit on this machine, or not while somebody else's process holds a GPU of it."""

from __future__ import annotations

import logging
import time

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.errors import AgentConfigError
from prefect_launch.queues.agent_status import read_statuses
from prefect_launch.queues.wait_reason import why_waiting
from prefect_launch.testing import InMemoryGpus, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually
from tests.support.devices import agent_of, gpus_of, now_async, running, visible, wants

# --- what never fits ---


async def test_items_that_never_fit_wait_and_one_line_says_why(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    items = await bench.add(40, **wants(3))
    (small,) = await bench.add(**wants(1))
    with caplog.at_level(logging.INFO, logger="prefect_launch.agent"):
        async with bench.running(agent_of(bench, 2, device_patience_seconds=0)) as agent:
            await bench.until(small, StateType.COMPLETED)
            await eventually(now_async(lambda: len(agent.context.devices.wait_list.waiting)), lambda count: count == 40)
            await eventually(lambda: read_statuses(bench.server), lambda told: told["box"].waits)
            first, last = [await why_waiting(agent.context.session, item) for item in (items[0], items[-1])]
    assert [await bench.states(item) for item in items] == [["Queued"]] * 40
    assert caplog.text.count("It asks for 3 GPUs, and this agent has GPUs 0,1.") == 1
    assert [("cannot run this" in await bench.log(item)) for item in items].count(True) == 20
    for told in (first, last):
        assert told is not None
        assert "It asks for 3 GPUs, and this agent has GPUs 0,1." in told.reason


async def test_item_that_never_fits_fails_when_its_queue_says_so_and_there_is_no_other_agent(bench: Bench) -> None:
    bench.api.upsert_run_queue(QUEUE, RESOURCE, fail_impossible_after="0.1s")
    (item,) = await bench.add(**wants(3))
    (small,) = await bench.add(**wants(1))
    await agent_of(bench, 2).loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert found.message.startswith(
        "[agent] It asks for 3 GPUs, and this agent has GPUs 0,1. No other agent was online"
    )
    assert (await bench.read(small.id)).state_type is StateType.COMPLETED


# --- a driver that does not answer ---


async def test_backlog_waits_for_a_driver_that_does_not_answer_and_runs_when_it_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.api.upsert_run_queue(QUEUE, RESOURCE, fail_impossible_after="0.1s")
    gpus = InMemoryGpus(1)
    gpus.away = "this machine's NVIDIA driver does not answer: Unknown Error"
    items = await bench.add(10, **wants(1))
    (plain,) = await bench.add()
    bench.plays(Script(seconds=60), Script(seconds=0.01))
    with caplog.at_level(logging.INFO, logger="prefect_launch.agent"):
        async with bench.running(agent_of(bench, gpus)) as agent:
            await running(bench, plain)
            assert visible(bench, plain) == ""  # it must not see what others get later
            looks = gpus.reads
            await eventually(now_async(lambda: gpus.reads), lambda count: count > looks)
            assert [await bench.states(item) for item in items] == [["Queued"]] * 10
            assert "does not answer: Unknown Error" in agent.context.devices.describe()
            assert all("does not answer" in one.reason for one in agent.context.devices.wait_list.waiting)
            gpus.away = ""
            for item in items:
                await bench.until(item, StateType.COMPLETED)
    assert caplog.text.count("waits-for-devices") == 1
    assert (caplog.text.count("GPUs away"), caplog.text.count("GPUs back")) == (1, 1)


async def test_driver_that_goes_away_later_fails_nothing(bench: Bench) -> None:
    bench.api.upsert_run_queue(QUEUE, RESOURCE, fail_impossible_after="0.1s")
    gpus = InMemoryGpus(2)
    async with bench.running(agent_of(bench, gpus)):
        gpus.away = "the driver does not answer"
        (item,) = await bench.add(**wants(2))
        looks = gpus.reads
        await eventually(now_async(lambda: gpus.reads), lambda count: count > looks + 1)
        assert await bench.states(item) == ["Queued"]
        gpus.away = ""
        await bench.until(item, StateType.COMPLETED)


async def test_agent_whose_named_cards_cannot_be_seen_yet_starts_and_waits_for_them(bench: Bench) -> None:
    gpus = InMemoryGpus(2)
    gpus.away = "the driver does not answer"
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, gpus, gpus=[1])):
        await eventually(now_async(lambda: gpus.reads), lambda count: count > 1)
        gpus.away = ""
        await running(bench, item)
        assert gpus_of(bench, item) == ["1"]


async def test_card_that_is_there_again_is_given_out(bench: Bench) -> None:
    gpus = InMemoryGpus(2)
    both, gpus.gpus = gpus.gpus, gpus.gpus[:1]
    (item,) = await bench.add(**wants(2))
    async with bench.running(agent_of(bench, gpus)):
        await eventually(now_async(lambda: gpus.reads), lambda count: count > 1)
        assert await bench.states(item) == ["Queued"]
        gpus.gpus = both
        await bench.until(item, StateType.COMPLETED)


async def test_item_that_never_fits_here_is_left_to_an_agent_that_can(bench: Bench) -> None:
    (item,) = await bench.add(**wants(3))
    bench.api.upsert_run_queue(QUEUE, RESOURCE, fail_impossible_after="0.2s")
    await bench.server.beat_worker(QUEUE, "big", 15)
    async with bench.running(agent_of(bench, 1, name="small")) as small:
        await eventually(lambda: bench.log(item), lambda log: "The agent small cannot run this" in log)
        since = small.context.devices.wait_list.since(item.id) or 0.0
        await eventually(now_async(lambda: time.monotonic() - since), lambda waited: waited > 0.4)
        assert await bench.states(item) == ["Queued"]
        async with bench.running(agent_of(bench, 4, name="big")):
            found = await bench.until(item, StateType.COMPLETED)
    assert (await bench.log(item)).count("cannot run this") == 1
    assert "agent big" in ((await bench.server.read_states(found.id))[1].message or "")


async def test_item_that_fits_no_agent_of_its_queue_fails_though_several_are_online(bench: Bench) -> None:
    bench.api.upsert_run_queue(QUEUE, RESOURCE, fail_impossible_after="0.3s")
    async with bench.running(agent_of(bench, 1, name="one")), bench.running(agent_of(bench, 2, name="two")):
        await eventually(lambda: read_statuses(bench.server), lambda told: {"one", "two"} <= set(told))
        (item,) = await bench.add(**wants(3))
        (fits,) = await bench.add(**wants(2))
        found = await bench.until(item, StateType.FAILED)
        assert "No other agent was online that has as much" in found.message
        await bench.until(fits, StateType.COMPLETED)


async def test_agent_whose_driver_does_not_answer_may_be_able_to_run_what_no_other_agent_can(bench: Bench) -> None:
    bench.api.upsert_run_queue(QUEUE, RESOURCE, fail_impossible_after="0.2s")
    cards = InMemoryGpus(4)
    cards.away = "the driver does not answer"
    async with bench.running(agent_of(bench, cards, name="away")):
        await eventually(lambda: read_statuses(bench.server), lambda told: "away" in told)
        async with bench.running(agent_of(bench, 1, name="one")) as one:
            (item,) = await bench.add(**wants(3))
            await eventually(lambda: bench.log(item), lambda log: "The agent one cannot run this" in log)
            since = one.context.devices.wait_list.since(item.id) or 0.0
            await eventually(now_async(lambda: time.monotonic() - since), lambda waited: waited > 0.4)
            assert await bench.states(item) == ["Queued"]
            cards.away = ""
            await bench.until(item, StateType.COMPLETED)


async def test_agent_that_shows_no_card_but_must_have_some_does_not_start(bench: Bench) -> None:
    with pytest.raises(AgentConfigError, match="names the GPU '2'"):
        await agent_of(bench, 2, gpus=[0, 2]).loop(until_empty=True)


async def test_agent_gives_out_only_the_cards_that_it_is_told_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with agent_of(bench, 4, gpus=[1, "GPU-00000003"]).connected() as agent:
        assert [gpu.index for gpu in agent.context.devices.allocations.capacity.gpus] == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    async with agent_of(bench, 4).connected() as agent:
        assert [gpu.index for gpu in agent.context.devices.allocations.capacity.gpus] == ["0", "2"]


# --- other people's processes ---


async def test_card_of_a_foreign_process_is_skipped_and_the_status_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.plays(Script(seconds=60))
    gpus = InMemoryGpus(2)
    gpus.users = {"0": (77,)}
    (item,) = await bench.add(**wants(1))
    with caplog.at_level(logging.INFO, logger="prefect_launch.agent"):
        async with bench.running(agent_of(bench, gpus)) as agent:
            await running(bench, item)
            assert gpus_of(bench, item) == ["1"]
            agent.print_status()
    assert "GPU 0 is skipped while a foreign process 77 holds it" in caplog.text
    assert f"GPU 0 skipped: it is held by a foreign process 77; GPU 1 of {str(item.id)[-8:]}" in caplog.text


async def test_item_waits_for_a_foreign_process_and_keeps_nothing_from_others(bench: Bench) -> None:
    bench.plays(Script(seconds=0.01))
    gpus = InMemoryGpus(2)
    gpus.users = {"0": (77,)}
    (big,) = await bench.add(**wants("all"))
    small = await bench.add(3, **wants(1))
    async with bench.running(agent_of(bench, gpus, device_patience_seconds=0)):
        for item in small:
            await bench.until(item, StateType.COMPLETED)
        assert await bench.states(big) == ["Queued"]
        gpus.users = {}
        await bench.until(big, StateType.COMPLETED)


async def test_own_process_on_a_card_is_not_foreign(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    gpus = InMemoryGpus(2)
    (first,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, gpus)):
        await running(bench, first)
        gpus.users = {"0": (77,)}
        (second,) = await bench.add(**wants(1))
        await running(bench, second)
        assert gpus_of(bench, second) == ["1"]
