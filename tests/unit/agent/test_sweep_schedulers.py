"""Sweeps as items of a queue: what an agent makes of their schedulers, whatever ends those, or the agent."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import pytest

from prefect_launch.agent.item.ownership import check_ownership
from prefect_launch.agent.recovery.lost_agents import LostAgentDetector
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import State
from prefect_launch.sweeps.program import SchedulerEnd
from prefect_launch.sweeps.scheduler import Outcome
from prefect_launch.testing import InMemoryMachine, Script
from prefect_launch.testing.script import ScriptedRun
from tests.support.bench import DEADLINE_SECONDS, QUEUE, Bench, eventually, holder_called


def ending(outcome: Outcome | None, message: str = "All 4 trials have ended.", *, seconds: float = 0.0) -> Script:
    """A scheduler that leaves the file which says how its sweep ended."""
    end = SchedulerEnd(outcome=outcome, message=message)
    return Script(seconds=seconds, outputs={"sweep-end.json": end.model_dump_json().encode()})


def plays(bench: Bench, script: Script) -> None:
    bench.schedulers.script = lambda plan: script


async def one_running(machine: InMemoryMachine) -> ScriptedRun:
    """Wait until one run goes, and return it; more than one is an error at once."""

    async def look() -> list[ScriptedRun]:
        running: list[ScriptedRun] = [machine.runs[handle] for handle in machine.running]
        assert len(running) <= 1
        return running

    (found,) = await eventually(look, bool)
    run: ScriptedRun = found
    return run


# --- how it ends ---


@pytest.mark.parametrize(
    ("outcome", "ended"),
    [
        (Outcome.FINISHED, StateType.COMPLETED),
        (Outcome.FAILED, StateType.FAILED),
        (Outcome.STOPPED, StateType.CANCELLED),
    ],
)
async def test_sweep_ends_as_its_scheduler_says_with_its_words(
    bench: Bench, outcome: Outcome, ended: StateType
) -> None:
    plays(bench, ending(outcome, "2 trials failed; the commonest cause (2): exit code 3."))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()):
        found = await bench.until(sweep, ended)
    assert found.message == "2 trials failed; the commonest cause (2): exit code 3."
    assert not await bench.server.list_artifacts(sweep.id)  # no report on a job that failed


async def test_scheduler_is_our_own_program_in_the_agents_python_whatever_its_queue_runs(bench: Bench) -> None:
    plays(bench, ending(Outcome.FINISHED, seconds=60))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent(stopped_run_timeout=7)):
        await bench.until(sweep, StateType.RUNNING)
        plan = (await one_running(bench.schedulers)).plan
    assert plan.command == (sys.executable, "-m", "prefect_launch.sweeps", str(sweep.id))
    assert plan.is_agent_program
    assert plan.stop_seconds == 127
    assert not bench.machine.runs


async def test_scheduler_that_is_killed_is_started_again_and_its_sweep_has_not_ended(bench: Bench) -> None:
    plays(bench, Script(exit_code=137))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()):
        await bench.until_state(sweep, ItemState.AWAITING_RETRY)
    found = await bench.read(sweep.id)
    assert found.message.startswith("Crashed: [run] The sweep's scheduler: ")
    assert "(retry 1 of 100)" in found.message


async def test_scheduler_that_cannot_run_here_says_why_and_another_one_goes_on(bench: Bench) -> None:
    plays(bench, ending(None, "Optuna is not installed here."))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()):
        await bench.until_state(sweep, ItemState.AWAITING_RETRY)
    assert "Optuna is not installed here." in (await bench.read(sweep.id)).message


async def test_sweep_that_is_put_back_after_its_end_goes_on(bench: Bench) -> None:
    plays(bench, ending(Outcome.FINISHED))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()):
        await bench.until(sweep, StateType.COMPLETED)
        plays(bench, ending(Outcome.FAILED, "hopeless"))
        await bench.server.propose(sweep.id, State.of(ItemState.QUEUED, "The sweep is resumed."), force=True)
        found = await bench.until(sweep, StateType.FAILED)
    assert (found.message, found.run_count) == ("hopeless", 2)


async def test_scheduler_that_leaves_its_paused_sweep_has_lost_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plays(bench, Script(seconds=60))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()) as agent:
        await bench.until(sweep, StateType.RUNNING)
        run = await one_running(bench.schedulers)
        await bench.server.propose(sweep.id, State(type=StateType.PAUSED, name="Suspended"), force=True)
        await check_ownership(bench.server, agent.running_items.entries)
        run.finish()
        await eventually(lambda: asyncio.sleep(0, agent.running_items.held), lambda held: not held)
    assert f"{sweep.id} paused: " in caplog.text
    assert "ownership-lost" not in caplog.text
    assert (await bench.read(sweep.id)).state_type is StateType.PAUSED


# --- places ---


async def test_three_schedulers_at_a_limit_of_one_run_one_after_another(bench: Bench) -> None:
    plays(bench, ending(Outcome.FINISHED, seconds=60))
    sweeps = [await bench.add_scheduler() for _ in range(3)]
    async with bench.running(bench.agent(max_jobs=4, max_schedulers=1)) as agent:
        for count in range(3):
            run = await one_running(bench.schedulers)
            assert agent.num_running_schedulers == 1
            assert len(bench.schedulers.started) == count + 1
            run.finish()
            await eventually(lambda: asyncio.sleep(0, run.is_running), lambda runs: not runs)  # noqa: B023
        for sweep in sweeps:
            await bench.until(sweep, StateType.COMPLETED)


async def test_agent_whose_slots_are_taken_still_takes_a_scheduler_and_no_job(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    plays(bench, ending(Outcome.FINISHED))
    first, second = await bench.add(2)
    async with bench.running(bench.agent(max_jobs=1)) as agent:
        await bench.until(first, StateType.RUNNING)
        sweep = await bench.add_scheduler()
        await bench.until(sweep, StateType.COMPLETED)
        assert agent.num_running_jobs == 1
        assert (await bench.read(second.id)).state_type is StateType.SCHEDULED


async def test_agent_that_takes_no_schedulers_leaves_them_and_does_not_wait_for_them(bench: Bench) -> None:
    sweep = await bench.add_scheduler()
    (job,) = await bench.add()
    await asyncio.wait_for(bench.agent(max_schedulers=0).loop(until_empty=True), DEADLINE_SECONDS)
    assert (await bench.read(job.id)).state_type is StateType.COMPLETED
    assert (await bench.read(sweep.id)).state_type is StateType.SCHEDULED


async def test_agent_that_works_until_its_queue_is_empty_runs_a_sweep_to_its_end(bench: Bench) -> None:
    plays(bench, ending(Outcome.FINISHED))
    sweep = await bench.add_scheduler()
    await asyncio.wait_for(bench.agent().loop(until_empty=True), DEADLINE_SECONDS)
    assert (await bench.read(sweep.id)).state_type is StateType.COMPLETED


async def test_schedulers_leave_a_place_for_a_job_under_the_limit_of_their_queue(tmp_path: Path) -> None:
    bench = Bench(tmp_path, concurrency=2)
    plays(bench, ending(Outcome.FINISHED, seconds=60))
    sweeps = [await bench.add_scheduler() for _ in range(2)]
    async with bench.running(bench.agent(max_jobs=4, max_schedulers=4)):
        run = await one_running(bench.schedulers)
        (job,) = await bench.add()
        await bench.until(job, StateType.COMPLETED)
        assert len(bench.schedulers.started) == 1
        run.finish()
        await eventually(lambda: asyncio.sleep(0, len(bench.schedulers.started)), lambda started: started == 2)
        (await one_running(bench.schedulers)).finish()
        for sweep in sweeps:
            await bench.until(sweep, StateType.COMPLETED)


# --- agents that are gone ---


async def test_scheduler_outlives_its_agent_and_the_next_one_of_the_name_follows_it(bench: Bench) -> None:
    plays(bench, ending(Outcome.FINISHED, seconds=60))
    sweep = await bench.add_scheduler()
    await bench.leave_running(bench.agent(), sweep)
    async with bench.running(bench.agent()) as agent:
        run = await one_running(bench.schedulers)
        await eventually(lambda: asyncio.sleep(0, agent.num_running_schedulers), lambda count: count == 1)
        run.finish()
        await bench.until(sweep, StateType.COMPLETED)
    assert len(bench.schedulers.started) == 1


async def test_sweep_of_a_lost_agent_goes_back_into_its_queue_and_on_under_another_agent(bench: Bench) -> None:
    plays(bench, ending(Outcome.FINISHED, seconds=60))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent("box")):
        await bench.until(sweep, StateType.RUNNING)
    await bench.server.beat_worker(QUEUE, "box", 15)
    clock = [0.0]
    async with bench.api.open() as session:
        watch = LostAgentDetector(session, holder_called("other"), [QUEUE], clock=lambda: clock[0])
        for _ in range(8):
            await watch.check()
            clock[0] += 15.0
    found = await bench.read(sweep.id)
    assert found.state_name == ItemState.AWAITING_RETRY.label
    assert "was last seen at" in found.message
    bench.schedulers = InMemoryMachine()
    plays(bench, ending(Outcome.FINISHED))
    await bench.server.propose(sweep.id, State.of(ItemState.QUEUED), force=True)  # its pause is over
    async with bench.running(bench.agent("other")):
        await bench.until(sweep, StateType.COMPLETED)


async def test_agent_that_drains_hands_its_sweep_over_and_leaves(bench: Bench) -> None:
    plays(bench, Script(seconds=60))
    sweep = await bench.add_scheduler()
    agent = bench.agent("box")
    loop = asyncio.create_task(agent.loop())
    await bench.until(sweep, StateType.RUNNING)
    agent.shutdown.drain()
    await asyncio.wait_for(loop, DEADLINE_SECONDS)
    found = await bench.read(sweep.id)
    assert found.state_name == ItemState.AWAITING_RETRY.label
    assert "drains" in found.message


async def test_agent_that_stops_its_jobs_hands_its_sweep_over(bench: Bench) -> None:
    plays(bench, Script(seconds=60))
    sweep = await bench.add_scheduler()
    agent = bench.agent("box")
    loop = asyncio.create_task(agent.loop())
    await bench.until(sweep, StateType.RUNNING)
    agent.shutdown.leave(stop_jobs=True)
    await asyncio.wait_for(loop, DEADLINE_SECONDS)
    assert (await bench.read(sweep.id)).state_name == ItemState.AWAITING_RETRY.label


# --- stops ---


async def test_cancelled_sweep_ends_with_the_words_of_its_scheduler(bench: Bench) -> None:
    plays(bench, ending(Outcome.STOPPED, "The sweep was stopped.", seconds=60))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()):
        await bench.until(sweep, StateType.RUNNING)
        await bench.move(sweep, ItemState.CANCELLING)
        found = await bench.until(sweep, StateType.CANCELLED)
    assert found.message == "The sweep was stopped."


async def test_cancelled_sweep_whose_scheduler_is_killed_is_cancelled_and_says_who_stops_the_trials(
    bench: Bench,
) -> None:
    plays(bench, Script(seconds=60, ignores_term=True))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()):
        await bench.until(sweep, StateType.RUNNING)
        await bench.move(sweep, ItemState.CANCELLING)
        found = await bench.until(sweep, StateType.CANCELLED)
    assert "their agents stop them" in found.message


async def test_trials_of_a_sweep_that_is_cancelled_while_nobody_schedules_it_are_stopped(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    sweep = await bench.add_scheduler()
    (trial,) = await bench.add(sweep_id=str(sweep.id))
    (other,) = await bench.add(sweep_id="a-label")
    async with bench.running(bench.agent(max_jobs=2, max_schedulers=0)):
        for item in (trial, other):
            await bench.until(item, StateType.RUNNING)
        await bench.move(sweep, ItemState.CANCELLED)
        await bench.until(trial, StateType.CANCELLED)
        assert (await bench.read(other.id)).state_type is StateType.RUNNING


async def test_paused_sweep_keeps_its_state_when_its_scheduler_leaves(bench: Bench) -> None:
    plays(bench, Script(seconds=60))
    sweep = await bench.add_scheduler()
    async with bench.running(bench.agent()) as agent:
        await bench.until(sweep, StateType.RUNNING)
        paused = State(type=StateType.PAUSED, name="Paused")
        await bench.server.propose(sweep.id, paused, force=True)
        await check_ownership(bench.server, agent.running_items.entries)
        await eventually(lambda: asyncio.sleep(0, agent.thread_ids), lambda ids: not ids)
    assert (await bench.read(sweep.id)).state_type is StateType.PAUSED
    assert not bench.schedulers.running


# --- what people see ---


async def test_status_of_an_agent_tells_jobs_and_schedulers_apart(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    plays(bench, Script(seconds=60))
    sweep = await bench.add_scheduler()
    (job,) = await bench.add()

    async def status() -> dict[str, object]:
        found: dict[str, dict[str, object]] = await bench.server.list_variables("launch-agent")
        return found.get("launch_agent_box", {})

    async with bench.running(bench.agent("box", max_jobs=3)):
        for item in (sweep, job):
            await bench.until(item, StateType.RUNNING)
        seen = await eventually(status, lambda one: one.get("schedulers") == 1 and one.get("in_work") == 1)
    assert (seen["slots"], seen["max_schedulers"]) == (3, 1)
    assert {one["name"]: one["is_scheduler"] for one in seen["running"]} == {sweep.name: True, job.name: False}
