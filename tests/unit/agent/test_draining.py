"""Draining and leaving: by signals, through the server; and what the agent tells of itself meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.entry.start import Signals
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import LaunchError, NotFoundError
from prefect_launch.queues.agent_status import (
    AgentInfo,
    AgentStatus,
    RunningItemSummary,
    agents,
    drain_agent,
    drain_scheduled_runs,
    post_status,
    read_drain_request,
    read_statuses,
    release_scheduled_runs,
)
from prefect_launch.queues.presence import Presence, write_presence
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench, eventually


@pytest.fixture(autouse=True)
def _notices_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.status.WRITE_SECONDS", 0.0)
    monkeypatch.setattr("prefect_launch.agent.reporting.status._CHECK_SECONDS", 0.01)


# --- draining ---


async def test_draining_agent_finishes_what_runs_and_takes_no_more(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3))
    first, second = await bench.add(2)
    agent = bench.agent()
    loop = asyncio.create_task(agent.loop())
    await bench.until(first, StateType.RUNNING)
    agent.shutdown.drain()
    await asyncio.wait_for(loop, 60)
    assert (await bench.read(first.id)).state_type is StateType.COMPLETED
    assert await bench.states(second) == ["Queued"]


async def test_agent_drains_when_the_server_tells_it_to(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3))
    first, second = await bench.add(2)
    loop = asyncio.create_task(bench.agent("Box.1").loop())
    await bench.until(first, StateType.RUNNING)
    await _drain(bench, "Box.1")
    await asyncio.wait_for(loop, 60)
    assert await read_drain_request(bench.server, "Box.1") is None
    assert (await bench.read(first.id)).state_type is StateType.COMPLETED
    assert await bench.states(second) == ["Queued"]
    await bench.agent("Box.1").loop(until_empty=True)
    assert (await bench.read(second.id)).state_type is StateType.COMPLETED


async def test_agent_reads_a_drain_request_long_before_its_next_poll(bench: Bench) -> None:
    loop = asyncio.create_task(bench.agent(poll_seconds=60).loop())
    await _seen(bench, "polling")
    await _drain(bench)
    await asyncio.wait_for(loop, 60)


async def test_drain_request_that_is_taken_back_lets_the_agent_take_items_again(bench: Bench) -> None:
    bench.plays(Script(seconds=0.4), Script())
    first, second = await bench.add(2)
    async with bench.running(bench.agent()) as agent:
        await bench.until(first, StateType.RUNNING)
        await _seen(bench, "running")
        await bench.api.acall(lambda session: drain_agent(session.server, "box"))
        await _seen(bench, "draining")
        assert agent.free_slots == 0
        await bench.api.acall(lambda session: drain_agent(session.server, "box", undo=True))
        await bench.until(second, StateType.COMPLETED)


async def test_shift_that_has_drained_stays_until_its_time_is_up(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3))
    first, second = await bench.add(2)
    async with bench.running(bench.agent(max_jobs=1), max_runtime_seconds=600):
        await bench.until(first, StateType.RUNNING)
        await _drain(bench)
        await bench.until(first, StateType.COMPLETED)
        await eventually(lambda: _agent(bench), lambda agent: (agent.state, agent.in_work) == ("draining", 0))
    await bench.agent().loop(max_runtime_seconds=0.3)  # the next one
    assert await bench.states(second) == ["Queued"]
    await bench.api.acall(lambda session: drain_agent(session.server, "box", undo=True))
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(second.id)).state_type is StateType.COMPLETED


async def test_drain_request_that_was_for_a_life_that_was_killed_does_not_stop_the_next_one(bench: Bench) -> None:
    (item,) = await bench.add()
    agent = bench.agent()
    killed = agent.holder.model_copy(update={"instance": "killed"})
    await write_presence(bench.server, Presence.of(killed, (QUEUE,)))
    await bench.server.beat_worker(QUEUE, "box", 15)
    await _drain(bench)
    assert await read_drain_request(bench.server, "box") is not None
    await agent.loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert await read_drain_request(bench.server, "box") is None


async def test_drain_request_is_for_both_agents_of_one_name_until_the_second_has_left(bench: Bench) -> None:
    bench.plays(Script(seconds=600), Script(seconds=600), Script())
    items = await bench.add(2)
    agents = [bench.agent(home=bench.folder / home) for home in ("here", "there")]
    loops = [asyncio.create_task(agent.loop()) for agent in agents]
    for item in items:
        await bench.until(item, StateType.RUNNING)
    (waiting,) = await bench.add()
    await _drain(bench)

    async def draining() -> list[bool]:
        return [agent.shutdown.draining for agent in agents]

    await eventually(draining, all)
    await bench.move(items[0], ItemState.CANCELLING)
    await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert await read_drain_request(bench.server, "box") is not None
    await bench.move(items[1], ItemState.CANCELLING)
    await asyncio.wait_for(asyncio.gather(*loops), 60)
    assert await bench.states(waiting) == ["Queued"]
    assert await read_drain_request(bench.server, "box") is None


async def test_drain_request_for_a_served_agent_is_none_for_another_of_its_name_that_is_not_served(
    bench: Bench,
) -> None:
    (item,) = await bench.add()
    await drain_scheduled_runs(bench.server, "box")
    await bench.agent().loop(max_runtime_seconds=60)  # a shift
    assert await bench.states(item) == ["Queued"]
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


async def test_shift_whose_service_was_asked_to_end_takes_up_its_own_drains_and_leaves_the_request(
    bench: Bench,
) -> None:
    bench.plays(Script(seconds=60))
    first, second = await bench.add(2)
    async with bench.running(bench.agent(), max_runtime_seconds=600):
        await bench.until(first, StateType.RUNNING)
    assert (await bench.read(first.id)).state_type is StateType.RUNNING
    await drain_scheduled_runs(bench.server, "box")
    shift = bench.agent()
    work = asyncio.create_task(shift.loop(max_runtime_seconds=600))
    await eventually(lambda: asyncio.sleep(0, shift.running_items.held), lambda held: first.id in held)
    bench.machine.finish()
    await asyncio.wait_for(work, 60)
    assert (await bench.read(first.id)).state_type is StateType.COMPLETED
    assert await bench.states(second) == ["Queued"]
    assert await release_scheduled_runs(bench.server, "box"), "another shift may be on: the service ends it"


async def test_unknown_or_offline_agent_cannot_be_drained(bench: Bench) -> None:
    async with bench.running(bench.agent("box-1")):
        await _seen(bench, "polling", "box-1")
        with pytest.raises(NotFoundError, match="Did you mean 'box-1'"):
            await bench.api.acall(lambda session: drain_agent(session.server, "box-2"))
        with pytest.raises(LaunchError, match="was not asked to drain"):
            await bench.api.acall(lambda session: drain_agent(session.server, "box-1", undo=True))
    await post_status(bench.server, AgentStatus(name="gone", host="h", queues=(QUEUE,), slots=1, state="running"))
    with pytest.raises(LaunchError, match="is offline"):
        await bench.api.acall(lambda session: drain_agent(session.server, "gone"))


# --- signals ---


async def test_first_signal_drains_the_agent(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3))
    (item,) = await bench.add()
    signals, told, work = _signals(bench.agent())
    await bench.until(item, StateType.RUNNING)
    signals.handle(signal.SIGTERM)
    assert await asyncio.wait_for(work, 60) is signal.SIGTERM
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert told[0].startswith("Draining: the agent takes no more items; 1 active: ")


async def test_second_signal_lets_the_agent_leave_and_its_jobs_go_on(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    signals, told, work = _signals(bench.agent())
    await bench.until(item, StateType.RUNNING)
    signals.handle(signal.SIGINT)
    signals.handle(signal.SIGINT)
    assert await asyncio.wait_for(work, 50) is signal.SIGINT
    assert told[1] == f"Leaving; 1 continue: {item.id}."
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    left = await _agent(bench)
    assert (left.state, [one.id for one in left.running]) == ("offline", [str(item.id)])
    await bench.finish_under(bench.agent())
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert len(bench.machine.started) == 1


async def test_second_signal_stops_the_jobs_when_that_was_wanted(bench: Bench) -> None:
    bench.plays(Script(seconds=60, ignores_term=True))
    first, second = await bench.add(2, retries=0)
    signals, told, work = _signals(bench.agent(max_jobs=1), stop_jobs=True)
    await bench.until(first, StateType.RUNNING)
    signals.handle(signal.SIGTERM)
    signals.handle(signal.SIGTERM)
    await asyncio.wait_for(work, 60)
    found = await bench.read(first.id)
    assert (found.state_type, found.message[:15]) == (StateType.CRASHED, "[run] Preempted")
    assert told[1] == f"Leaving; 1 are stopped: {first.id}."
    assert bench.machine.runs == {}
    assert await bench.states(second) == ["Queued"]


async def test_signal_ends_an_agent_that_waits_for_its_server(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.entry.start.LEAVE_SECONDS", 0.2)
    bench.server.down()
    signals, told, work = _signals(bench.agent())
    await asyncio.sleep(0.2)
    signals.handle(signal.SIGTERM)
    assert await asyncio.wait_for(work, 60) is signal.SIGTERM
    assert "nothing is active" not in " ".join(told)
    assert told[-1] == "Leaving; the server does not answer. Its next start adopts its unfinished items, if any."


@pytest.mark.parametrize("method", ["read_pool", "read_states", "list_items", "list_queues"])
async def test_signal_right_after_the_start_lets_the_agent_end_what_its_last_life_has_left(
    bench: Bench, method: str
) -> None:
    bench.plays(Script(seconds=0.3))
    (item,) = await bench.add()
    first = asyncio.create_task(bench.agent().loop())
    await bench.until(item, StateType.RUNNING)
    first.cancel()
    await asyncio.wait({first})
    await eventually(_running(bench), lambda handles: not handles)  # its process has ended, and nobody has seen it
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    (waiting,) = await bench.add()
    signals, told, work = _signals(bench.agent())

    async def signal_at_the_first(call: str) -> None:
        if call == method and not told:
            signals.handle(signal.SIGTERM)

    bench.server.before_call = signal_at_the_first
    assert await asyncio.wait_for(work, 60) is signal.SIGTERM
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert await bench.states(waiting) == ["Queued"]
    assert told == [
        "Draining: the agent takes no more items; it adopts its unfinished items first. Signal again to leave at once."
    ]


async def test_second_signal_right_after_the_start_ends_the_agent_and_claims_no_knowledge(bench: Bench) -> None:
    signals, told, work = _signals(bench.agent())

    async def signals_twice(call: str) -> None:
        if call == "read_pool" and not told:
            signals.handle(signal.SIGTERM)
            signals.handle(signal.SIGTERM)

    bench.server.before_call = signals_twice
    assert await asyncio.wait_for(work, 60) is signal.SIGTERM
    assert told[-1] == "Leaving; its next start adopts its unfinished items, if any."


async def _drain(bench: Bench, name: str = "box") -> None:
    """Ask an agent that is at work to drain, as `agent drain` does."""
    await bench.api.acall(lambda session: drain_agent(session.server, name))


def _running(bench: Bench) -> Callable[[], Awaitable[list[str]]]:
    async def look() -> list[str]:
        return bench.machine.running

    return look


# --- what it tells ---


async def test_agent_tells_its_host_its_slots_and_what_runs(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(bench.agent(max_jobs=3)):
        seen = await _seen(bench, "running")
        assert (seen.slots, seen.in_work, seen.queues) == (3, 1, (QUEUE,))
        assert seen.host
        assert seen.running == (RunningItemSummary.of(item),)


async def test_agent_that_leaves_with_nothing_in_work_is_off_the_list(bench: Bench) -> None:
    async with bench.running(bench.agent()):
        await _seen(bench, "polling")
    assert await bench.api.acall(lambda session: agents(session.server)) == []
    assert await read_statuses(bench.server) == {}


async def test_idle_agent_writes_its_status_once(bench: Bench) -> None:
    await bench.agent().loop(max_runtime_seconds=0.5)
    assert bench.server.calls["write_variable"] == 2  # that it is there, and how it is


async def test_status_of_much_work_is_cut_to_what_the_server_keeps(bench: Bench) -> None:
    running = tuple(RunningItemSummary(id=str(UUID(int=number)), name="x" * 60) for number in range(200))
    status = AgentStatus(
        name="box", host="h", queues=(QUEUE,), slots=None, state="running", running=running, in_work=200
    )
    await post_status(bench.server, status)
    read = (await read_statuses(bench.server))["box"]
    assert read.in_work == 200
    assert 10 < len(read.running) < 200


async def test_agents_whose_names_differ_in_case_or_dots_keep_statuses_of_their_own(bench: Bench) -> None:
    names = ["box-1", "box_1", "Box_1", "box.1"]
    for name in names:
        await post_status(bench.server, AgentStatus(name=name, host="h", queues=(QUEUE,), slots=1, state="polling"))
    assert sorted(await read_statuses(bench.server)) == sorted(names)


def _signals(
    agent: LaunchAgent, *, stop_jobs: bool = False
) -> tuple[Signals, list[str], asyncio.Task[signal.Signals | None]]:
    told: list[str] = []
    signals = Signals(agent, stop_jobs=stop_jobs, notify=told.append)
    return signals, told, asyncio.create_task(signals.run())


async def _agent(bench: Bench, name: str = "box") -> AgentInfo:
    found = {agent.name: agent for agent in await bench.api.acall(lambda session: agents(session.server))}
    return found.get(name, AgentInfo(name=name, queues=(), state="absent"))


async def _seen(bench: Bench, state: str, name: str = "box") -> AgentInfo:
    seen: AgentInfo = await eventually(lambda: _agent(bench, name), lambda agent: agent.state == state)
    return seen
