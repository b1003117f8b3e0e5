"""Items get devices of their own for as long as they run: who waits, who goes first, what a restart remembers."""

from __future__ import annotations

import asyncio

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.runners.base import Labels
from prefect_launch.testing import InMemoryGpus, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually
from tests.support.devices import agent_of, gpus_of, held, now_async, running, visible, wants

# --- who gets what ---


async def test_items_that_run_together_have_gpus_of_their_own(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (two,) = await bench.add(**wants(2))
    (one,) = await bench.add(**wants("1"))
    (named,) = await bench.add(**wants(["3"]))
    async with bench.running(agent_of(bench, 4)):
        await running(bench, two, one, named)
        assert [gpus_of(bench, item) for item in (two, one, named)] == [["0", "1"], ["2"], ["3"]]
        assert [visible(bench, item) for item in (two, one, named)] == ["0,1", "2", "3"]
        states = await bench.server.read_states(two.id)
        assert "GPUs 0,1" in (states[2].message or "")


async def test_item_that_asks_for_none_sees_no_gpu_of_others(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(agent_of(bench, 2)):
        await running(bench, item)
        assert visible(bench, item) == ""
        assert Labels.DEVICES not in bench.machine.runs[f"launch-{item.id}-1"].plan.labels


async def test_agent_that_gives_out_no_gpus_leaves_the_environment_alone(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(agent_of(bench, 2, gpus="none")):
        await running(bench, item)
        assert visible(bench, item) is None


async def test_cards_that_a_queue_chooses_by_hand_stay_as_they_are(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(**wants(env={"CUDA_VISIBLE_DEVICES": "1"}))
    async with bench.running(agent_of(bench, 2)):
        await running(bench, item)
        run = bench.machine.runs[f"launch-{item.id}-1"]
        assert visible(bench, item) is None
        assert run.plan.options["env"]["CUDA_VISIBLE_DEVICES"] == "1"


async def test_items_never_share_a_gpu_however_many_run_one_after_another(bench: Bench) -> None:
    bench.plays(Script(seconds=0.05))
    items = [(await bench.add(**wants(ask)))[0] for ask in (1, 2, "all", ["1"], 1, 3, 2, 1)]
    seen: list[list[str]] = []

    async def look(_: str) -> None:
        seen.append([one for handle in bench.machine.running for one in held(bench, handle)])

    bench.server.before_call = look
    await agent_of(bench, 3, device_patience_seconds=0).loop(until_empty=True)
    assert [(await bench.read(item.id)).state_type for item in items] == [StateType.COMPLETED] * 8
    assert max(len(gpus) for gpus in seen) == 3
    assert not [gpus for gpus in seen if len(gpus) > len(set(gpus))]


async def test_item_that_is_stopped_gives_its_gpus_back(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (first,) = await bench.add(**wants("all"))
    (second,) = await bench.add(**wants("all"))
    async with bench.running(agent_of(bench, 2)):
        await running(bench, first)
        await bench.move(first, ItemState.CANCELLING)
        await running(bench, second)
        await bench.until(first, StateType.CANCELLED)


async def test_cpus_and_memory_are_counted_too(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (first,) = await bench.add(**wants(cpus=3, memory="2g"))
    (second,) = await bench.add(**wants(cpus=2))
    (third,) = await bench.add(**wants(memory="3g"))
    (fourth,) = await bench.add(**wants(cpus=1, m="1g"))
    async with bench.running(agent_of(bench, 0, cpus=4, memory="4g")):
        await running(bench, first, fourth)
        assert [await bench.states(item) for item in (second, third)] == [["Queued"], ["Queued"]]


# --- who goes first ---


async def test_small_items_pass_a_big_one_that_waits(bench: Bench) -> None:
    bench.plays(Script(seconds=60), Script(seconds=0.01))
    (holder,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, 2)):
        await running(bench, holder)
        (big,) = await bench.add(**wants(2))
        small = await bench.add(3, **wants(1))
        for item in small:
            await bench.until(item, StateType.COMPLETED)
        assert await bench.states(big) == ["Queued"]


async def test_big_item_gets_its_gpus_though_small_ones_never_cease_to_come(bench: Bench) -> None:
    bench.plays(Script(seconds=0.1))
    patience, ended = 0.5, []
    await bench.add(4, **wants(1))
    async with bench.running(agent_of(bench, 2, device_patience_seconds=patience)):
        (big,) = await bench.add(**wants(2))
        for _ in range(60):  # always more small items than GPUs
            waiting = await bench.server.count_items(pool=QUEUE, state_types=[StateType.SCHEDULED])
            if waiting < 4:
                await bench.add(4 - waiting, **wants(1))
            ended = await bench.states(big)
            if ended[-1] == "Completed":
                break
            await eventually(lambda: bench.server.count_items(pool=QUEUE, state_types=[StateType.SCHEDULED]), bool)
        found = await bench.until(big, StateType.COMPLETED)
    assert found.start_time is not None
    assert found.created is not None
    assert (found.start_time - found.created).total_seconds() < patience + 5


async def test_more_urgent_small_item_passes_what_is_kept_for_a_big_one(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (holder,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, 2, device_patience_seconds=0)):
        await running(bench, holder)
        (big,) = await bench.add(**wants(2))
        (usual,) = await bench.add(**wants(1))
        (urgent,) = await bench.add(**wants(1), priority="high")
        await running(bench, urgent)
        assert [await bench.states(item) for item in (big, usual)] == [["Queued"], ["Queued"]]


async def test_nothing_is_kept_for_a_big_item_that_was_cancelled(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (holder,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, 2, device_patience_seconds=0)):
        await running(bench, holder)
        (big,) = await bench.add(**wants(2))
        (small,) = await bench.add(**wants(1))
        await bench.move(big, ItemState.CANCELLED)
        await running(bench, small)


# --- a restart, a change of mind ---


async def test_next_life_of_an_agent_knows_who_holds_what(bench: Bench) -> None:
    bench.plays(Script(seconds=60), Script(seconds=0.01))
    (first,) = await bench.add(**wants(["0", "1"]))
    await agent_of(bench, 3).loop(max_runtime_seconds=0.4)
    assert (await bench.read(first.id)).state_type is StateType.RUNNING
    (named,) = await bench.add(**wants(["1"]))
    (any_one,) = await bench.add(**wants(1))
    async with bench.running(agent_of(bench, 3)) as agent:
        await bench.until(any_one, StateType.COMPLETED)
        assert agent.context.devices.gpus_of(first.id) == "GPUs 0,1"
        assert await bench.states(named) == ["Queued"]
        await bench.move(first, ItemState.CANCELLING)
        await bench.until(named, StateType.COMPLETED)


async def test_devices_of_an_item_that_another_agent_claimed_are_free_again(bench: Bench) -> None:
    (item,) = await bench.add(**wants("all"))
    async with agent_of(bench, 2).connected() as agent:
        taken: list[str] = []

        async def other_is_faster(method: str) -> None:
            if method == "propose" and not taken:
                taken.append(method)
                await bench.move(item, ItemState.CLAIMED)

        bench.server.before_call = other_is_faster
        assert await agent.pop_from_queue(QUEUE) is None
        assert agent.context.devices.allocations.held == {}


async def test_item_whose_gpu_is_taken_between_claim_and_start_goes_back_into_its_queue(bench: Bench) -> None:
    bench.plays(Script(seconds=0.01))
    gpus = InMemoryGpus(1)
    # What a macro stands for is known only once the run is planned.
    await asyncio.to_thread(bench.api.create_run_queue, "macros", RESOURCE, config={"gpus": "${GPUS}"})
    (item,) = await bench.add(queue="macros")
    gpus.users = {"0": (77,)}
    async with bench.running(agent_of(bench, gpus, queues=["macros"], macros={"GPUS": "1"})):
        await eventually(lambda: bench.states(item), lambda states: states[-1] == "Queued" and len(states) > 1)
        assert "Waits for devices" in (await bench.read(item.id)).message
        count = len(await bench.states(item))
        await eventually(now_async(lambda: gpus.reads), lambda looks: looks > 2)
        assert len(await bench.states(item)) == count  # it is not claimed again and again
        gpus.users = {}
        await bench.until(item, StateType.COMPLETED)
