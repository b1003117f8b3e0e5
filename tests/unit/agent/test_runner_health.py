"""An agent whose engine is away: it crashes nothing, says so, and goes on when the engine is back."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import pairwise

import pytest

from prefect_launch.agent.runner_health import Part
from prefect_launch.core.states import StateType
from prefect_launch.errors import InfrastructureError, NoRoomError, UnreachableError
from prefect_launch.queues.agent_status import agents
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.runner_health.ANSWER_SECONDS", 0.0)
    monkeypatch.setattr("prefect_launch.agent.runner_health._PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("prefect_launch.agent.runner_health._CHECK_SECONDS", 0.01)
    monkeypatch.setattr("prefect_launch.agent.reporting.status.WRITE_SECONDS", 0.0)
    monkeypatch.setattr("prefect_launch.agent.reporting.status._CHECK_SECONDS", 0.01)


async def problems(bench: Bench) -> tuple[str, ...]:
    async with bench.api.open() as session:
        return tuple(
            f"{resource}: {why}" for one in await agents(session.server) for resource, why in one.problems.items()
        )


async def test_items_of_an_engine_that_is_away_stay_queued_until_it_is_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.machine.reachable = False
    items = await bench.add(3)
    async with bench.running(bench.agent(max_jobs=3)) as agent:
        seen = await eventually(lambda: problems(bench), bool)
        assert seen[0].startswith("local-container: ")
        await asyncio.sleep(0.3)  # several polls
        assert [await bench.states(item) for item in items] == [["Queued"]] * 3
        agent.print_status()
        assert "takes no items of local-container: " in caplog.text
        bench.machine.reachable = True
        for item in items:
            await bench.until(item, StateType.COMPLETED)
        assert await eventually(lambda: problems(bench), lambda seen: not seen) == ()
    assert caplog.text.count("away local-container") == 1


async def test_engine_that_goes_between_claim_and_create_puts_the_item_back(bench: Bench) -> None:
    broken = Script(create_error=UnreachableError("The engine does not answer."))
    bench.machine.script = lambda plan: broken if bench.machine.started == ["first"] else Script()
    bench.machine.started.append("first")
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await eventually(lambda: bench.states(item), lambda states: states[-1] == "Queued" and len(states) > 1)
        bench.machine.started.clear()
        await bench.until(item, StateType.COMPLETED)
    states = await bench.states(item)
    assert states[-2:] == ["Running", "Completed"]
    assert "Crashed" not in states
    assert await bench.server.list_artifacts(item.id) == []


async def test_answer_to_the_start_that_is_lost_starts_the_job_once(bench: Bench) -> None:
    script = Script(seconds=0.1)
    bench.plays(script)
    agent = bench.agent()
    runner = agent._runners["local-container"]  # the agent's own
    start = runner.start
    lost: list[str] = []

    async def start_and_lose_the_answer(handle: str) -> None:
        await start(handle)
        if not lost:
            lost.append(handle)
            raise UnreachableError("The engine does not answer.")

    runner.start = start_and_lose_the_answer  # type: ignore[method-assign]
    (item,) = await bench.add()
    await agent.loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.machine.started == lost


OTHER = "other"


async def test_place_that_is_full_closes_its_own_queue_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.runner_health._PAUSE_SECONDS", 0.5)
    bench.api.create_run_queue(OTHER, RESOURCE)
    full = Script(create_error=NoRoomError("The namespace is full: exceeded quota."))
    is_full = asyncio.Event()
    is_full.set()
    bench.machine.script = lambda plan: (
        full if plan.labels[Labels.QUEUE] == QUEUE and is_full.is_set() else Script(seconds=0)
    )
    (item,) = await bench.add()
    async with bench.running(bench.agent(queues=[QUEUE, OTHER])) as agent:
        seen = await eventually(lambda: problems(bench), bool)
        assert seen == (f"queue {QUEUE}: The namespace is full: exceeded quota.",)
        assert f"takes no items of queue {QUEUE}: " in agent.context.runner_health.describe()
        (other,) = await bench.add(queue=OTHER)
        await bench.until(other, StateType.COMPLETED)
        is_full.clear()
        await bench.until(item, StateType.COMPLETED)
        await eventually(lambda: problems(bench), lambda seen: not seen)
    assert "Crashed" not in await bench.states(item)


async def test_place_that_is_full_is_tried_with_one_item_at_a_time_until_it_has_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause, slots, tried = 0.2, 4, list[float]()
    monkeypatch.setattr("prefect_launch.agent.runner_health._PAUSE_SECONDS", pause)
    monkeypatch.setattr("prefect_launch.agent.runner_health._PAUSE_MAX_SECONDS", pause)
    is_full = True

    create = InMemoryRunner.create

    async def create_where_there_is_room(runner: InMemoryRunner, plan: RunPlan) -> str:
        tried.append(time.monotonic())
        if is_full:
            raise NoRoomError("The namespace is full: exceeded quota.")
        return await create(runner, plan)

    monkeypatch.setattr(InMemoryRunner, "create", create_where_there_is_room)

    async def tries() -> int:
        return len(tried)

    items = await bench.add(slots * 2)
    async with bench.running(bench.agent(max_jobs=slots)):
        # So many may have been claimed before the first refusal; of all others each waits for its own pause.
        await eventually(tries, lambda count: count >= slots + 4)
        later = tried[slots:]
        is_full = False
        for item in items:
            await bench.until(item, StateType.COMPLETED)
    assert min(after - before for before, after in pairwise(later)) >= pause
    for item in items:
        assert "Crashed" not in await bench.states(item)


async def test_cluster_that_is_away_closes_the_queues_that_lead_to_it_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = {"far"}

    async def ping_place(runner: InMemoryRunner, place: str) -> None:
        if place in away:
            raise UnreachableError(f"The cluster {place} does not answer.")

    monkeypatch.setattr(InMemoryRunner, "place_of", lambda runner, options: options.get("hostname", ""))
    monkeypatch.setattr(InMemoryRunner, "ping_place", ping_place)
    bench.api.create_run_queue(OTHER, RESOURCE, config={"hostname": "far"})
    (far,) = await bench.add(queue=OTHER)
    async with bench.running(bench.agent(queues=[QUEUE, OTHER])):
        seen = await eventually(lambda: problems(bench), bool)
        assert seen == (f"queue {OTHER}: The cluster far does not answer.",)
        (near,) = await bench.add()
        await bench.until(near, StateType.COMPLETED)
        assert await bench.states(far) == ["Queued"]
        away.clear()
        await bench.until(far, StateType.COMPLETED)
        await eventually(lambda: problems(bench), lambda seen: not seen)


async def test_engine_that_fails_without_being_away_crashes_the_item_as_before(bench: Bench) -> None:
    bench.plays(Script(create_error=InfrastructureError("The engine failed.")))
    (item,) = await bench.add(retries=0)
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.CRASHED


async def test_runs_of_the_last_life_are_taken_up_when_the_engine_that_was_away_at_the_start_is_back(
    bench: Bench,
) -> None:
    bench.plays(Script(seconds=0.6))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
    bench.machine.reachable = False
    (other,) = await bench.add()
    async with bench.running(bench.agent()):
        await eventually(lambda: problems(bench), bool)
        assert (await bench.read(item.id)).state_type is StateType.RUNNING
        bench.machine.reachable = True
        await bench.until(item, StateType.COMPLETED)
        await bench.until(other, StateType.COMPLETED)
    assert (await bench.states(item)).count("Running") == 1
    assert len(bench.machine.started) == 2


async def test_start_for_which_there_is_no_room_is_made_again_and_closes_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    agent = bench.agent()
    runner = agent._runners[RESOURCE]
    start, refused = runner.start, list[str]()

    async def start_later(handle: str) -> None:
        if len(refused) < 2:
            refused.append(handle)
            raise NoRoomError("The namespace is full: exceeded quota.")
        await start(handle)

    runner.start = start_later  # type: ignore[method-assign]
    (item,) = await bench.add()
    await agent.loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert len(refused) == 2
    assert "away" not in caplog.text


async def test_start_for_which_there_is_no_room_is_given_up_when_it_is_moot(bench: Bench) -> None:
    async def call() -> None:
        raise NoRoomError("The namespace is full: exceeded quota.")

    async with bench.agent().connected() as agent:
        with pytest.raises(NoRoomError):
            await agent.context.runner_health.retry_until_reachable(Part(RESOURCE), call, lambda: True)


async def test_calls_that_wait_for_one_engine_share_its_pings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pings, at_once = list[int](), 0

    async def ping_place(runner: InMemoryRunner, place: str) -> None:
        nonlocal at_once
        at_once += 1
        pings.append(at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        if not bench.machine.reachable:
            raise UnreachableError("The engine does not answer.")

    async def call() -> None:
        if not bench.machine.reachable:
            raise UnreachableError("The engine does not answer.")

    monkeypatch.setattr(InMemoryRunner, "ping_place", ping_place)
    async with bench.agent().connected() as agent:
        health = agent.context.runner_health
        bench.machine.reachable = False
        waiting = [
            asyncio.create_task(health.retry_until_reachable(Part(RESOURCE), call, lambda: False)) for _ in range(100)
        ]
        await eventually(lambda: asyncio.sleep(0, len(pings)), lambda count: count > 2)
        bench.machine.reachable = True
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert max(pings) == 1
    assert len(pings) < 50


async def test_engine_that_comes_and_goes_is_asked_more_and_more_seldom(bench: Bench) -> None:
    async with bench.agent().connected() as agent:
        runner_health = agent.context.runner_health
        pauses = [runner_health._pause(losses) for losses in range(1, 14)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 60.0
