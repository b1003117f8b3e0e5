"""Control of a sweep on a server in memory: paused and resumed, by our commands and by Prefect's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.queues.session import QUEUE_LABEL
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.control import ResumedBy, Retried, pause_sweep, resume_sweep, retry_trials, stop_sweep
from prefect_launch.sweeps.requests import RetryRequest, SchedulerProcess
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_reader import read_trials
from prefect_launch.testing import InMemoryApi
from tests.support.bench import eventually
from tests.support.sweeping import PATIENCE_SECONDS, Killer, Sweep, opened


@asynccontextmanager
async def running(sweep: Sweep) -> AsyncIterator[asyncio.Task[EndSweep]]:
    """Run the sweep's scheduler beside the block, from when it has queued two trials; it is killed at the end."""
    life = asyncio.create_task(sweep.scheduler().run())
    try:
        await eventually(sweep.numbers, lambda numbers: len(numbers) >= 2 or life.done())
        yield life
    finally:
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life


async def ended(life: asyncio.Task[EndSweep]) -> EndSweep:
    """Wait for the end of a scheduler."""
    return await asyncio.wait_for(life, PATIENCE_SECONDS)


async def open_items(sweep: Sweep) -> list[Item]:
    """The items of a sweep that wait or run."""
    return [item for item in await sweep.items() if not item.is_terminal]


async def trial_states(sweep: Sweep) -> list[str]:
    """The states of a sweep's trials, in the order of their numbers."""
    config = config_of(await read_sweep(sweep.session, sweep.id))
    trials = await read_trials(sweep.session.server, sweep.id, config)
    return [trial.state.value for trial in trials.history.trials]


def paused(name: str = "Paused", **details: Any) -> State:
    """Prefect's own state of a paused run."""
    return State(type=StateType.PAUSED, name=name, state_details=details)


# --- pause and resume ---


async def test_paused_sweep_lets_its_trials_end_queues_no_other_and_goes_on_in_its_process(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api) as sweep, running(sweep) as life:
        await pause_sweep(job_api, sweep.id)
        await sweep.until_told("The sweep is paused")
        async with sweep.agent():
            await eventually(lambda: open_items(sweep), lambda items: not items)
            assert await sweep.numbers() == [(0, 1), (1, 1)]
            assert await trial_states(sweep) == ["finished", "finished"]
            assert (await sweep.state(), life.done()) == (StateType.PAUSED, False)
            assert await resume_sweep(job_api, sweep.id, {}, answer_seconds=PATIENCE_SECONDS) is ResumedBy.PROCESS
            assert (await ended(life)).message == "All 4 trials have ended."
        assert await sweep.numbers() == [(k, 1) for k in range(4)]


async def test_sweep_that_is_paused_now_stops_its_trials_and_runs_the_same_ones_again(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=3) as sweep, running(sweep) as life:
        params = [item.parameters["overrides"]["run_config"]["lr"] for item in await sweep.items()]
        await asyncio.wait_for(pause_sweep(job_api, sweep.id, now=True), PATIENCE_SECONDS)
        assert await open_items(sweep) == []
        assert await trial_states(sweep) == ["held", "held"]
        assert {item.message for item in await sweep.items()} == {
            "The sweep was paused. It waited: nothing was started."
        }
        assert not life.done()
        async with sweep.agent():
            assert await resume_sweep(job_api, sweep.id, {}, answer_seconds=PATIENCE_SECONDS) is ResumedBy.PROCESS
            assert (await ended(life)).message == "All 3 trials have ended."
        assert await sweep.numbers() == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
        again = [item for item in await sweep.items() if (item.idempotency_key or "").endswith("try-2")]
        assert [item.parameters["overrides"]["run_config"]["lr"] for item in again] == params


async def test_pause_that_stops_the_trials_works_when_the_process_has_died(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        await asyncio.wait_for(pause_sweep(job_api, sweep.id, now=True), PATIENCE_SECONDS)
        assert await trial_states(sweep) == ["held", "held"]
        assert await resume_sweep(job_api, sweep.id, {}, answer_seconds=0.05) is ResumedBy.CALLER
        await sweep.enter(ItemState.RUNNING)
        async with sweep.agent():
            assert (await sweep.run()).message == "All 4 trials have ended."
        assert await sweep.numbers() == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (3, 1)]
        assert sweep.most_open <= 2


async def test_pause_becomes_one_that_stops_the_trials_and_not_the_other_way_round(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, running(sweep):
        await pause_sweep(job_api, sweep.id)
        await sweep.until_told("running trials finish")
        assert len(await open_items(sweep)) == 2
        await asyncio.wait_for(pause_sweep(job_api, sweep.id, now=True), PATIENCE_SECONDS)
        await pause_sweep(job_api, sweep.id)
        assert await trial_states(sweep) == ["held", "held"]


async def test_pause_that_stops_the_trials_leaves_when_the_sweep_is_resumed_meanwhile_and_queues_nothing(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api, run_cap=3) as sweep:
        await sweep.die_once_it_has_queued()
        # Trials that run are stopped by their agent, and there is none.
        for item in await sweep.items():
            for state in (ItemState.CLAIMED, ItemState.RUNNING):
                await job_api.server.propose(item.id, State.of(state))
        pausing = asyncio.create_task(pause_sweep(job_api, sweep.id, now=True))
        await eventually(sweep.items, lambda items: {one.state_type for one in items} == {StateType.CANCELLING})
        assert not pausing.done()
        await sweep.enter(ItemState.RUNNING)
        await asyncio.wait_for(pausing, PATIENCE_SECONDS)
        assert await sweep.numbers() == [(0, 1), (1, 1)]


async def test_sweep_is_paused_and_stopped_where_its_sampler_is_not_installed(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        missing = {**sweep.parameters["config"], "method": "custom", "sampler": "not-here"}
        await job_api.server.replace_parameters(sweep.id, {**sweep.parameters, "config": missing})
        await asyncio.wait_for(pause_sweep(job_api, sweep.id, now=True), PATIENCE_SECONDS)
        assert await trial_states(sweep) == ["held", "held"]
        await asyncio.wait_for(stop_sweep(job_api, sweep.id, sweep.told.append), PATIENCE_SECONDS)
        assert await sweep.state() is StateType.CANCELLED


async def test_new_arguments_of_a_resume_win_in_the_process_that_goes_on(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=2) as sweep, running(sweep) as life:
        await pause_sweep(job_api, sweep.id)
        await sweep.until_told("The sweep is paused")
        given = {"num_workers": 3, "run_cap": 6, "queue": None}
        assert await resume_sweep(job_api, sweep.id, given, answer_seconds=PATIENCE_SECONDS) is ResumedBy.PROCESS
        await eventually(lambda: open_items(sweep), lambda items: len(items) == 3)
        async with sweep.agent():
            assert (await ended(life)).message == "All 6 trials have ended."
        assert "The sweep has new parameters. Workers: 3; trials at most: 6." in sweep.told
        assert sweep.most_open <= 3


async def test_running_sweep_takes_new_arguments_without_a_pause(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=2) as sweep, running(sweep) as life, sweep.agent():
        await resume_sweep(job_api, sweep.id, {"run_cap": 5}, answer_seconds=PATIENCE_SECONDS)
        # It may have reached its old cap just before.
        if (await ended(life)).message != "All 5 trials have ended.":
            await sweep.enter(ItemState.RUNNING)
            assert (await sweep.run(run_cap=5)).message == "All 5 trials have ended."
        assert await sweep.numbers() == [(k, 1) for k in range(5)]


async def test_arguments_of_resumes_at_the_same_time_are_all_kept(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random") as sweep:
        await sweep.enter(ItemState.COMPLETED)
        given: list[dict[str, Any]] = [{"num_workers": 3}, {"run_cap": 6}]
        await asyncio.gather(*(resume_sweep(job_api, sweep.id, one, answer_seconds=0.01) for one in given))
        parameters = (await read_sweep(sweep.session, sweep.id)).parameters
        assert (parameters["num_workers"], parameters["run_cap"]) == (3, 6)


async def test_parameters_that_are_refused_leave_a_sweep_as_it_is(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, running(sweep):
        await pause_sweep(job_api, sweep.id)
        before = (await read_sweep(sweep.session, sweep.id)).parameters
        with pytest.raises(SpecError, match="run_cap"):
            await resume_sweep(job_api, sweep.id, {"run_cap": 0})
        after = await read_sweep(sweep.session, sweep.id)
        assert (after.parameters, after.state_type) == (before, StateType.PAUSED)
        # Edited by hand, past all checks.
        await job_api.server.replace_parameters(sweep.id, {**before, "run_cap": -1})
        await sweep.until_told("The sweep continues as before, for its new parameters are refused")


async def test_process_that_has_died_is_known_and_not_waited_for(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        dead = SchedulerProcess.here(await read_sweep(sweep.session, sweep.id)).model_copy(update={"pid": 2**22 + 1})
        assert dead.has_died
        await job_api.server.label_item(sweep.id, dead.labels)
        resumed = resume_sweep(job_api, sweep.id, {}, answer_seconds=10 * PATIENCE_SECONDS)
        assert await asyncio.wait_for(resumed, PATIENCE_SECONDS) is ResumedBy.CALLER


async def test_suspended_run_of_a_deployment_leaves_its_process_and_goes_back_into_its_queue(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api, deployed=True) as sweep, running(sweep) as life:
        await asyncio.wait_for(pause_sweep(job_api, sweep.id, now=True), PATIENCE_SECONDS)
        assert (await ended(life)).outcome is Outcome.PAUSED
        found = await read_sweep(sweep.session, sweep.id)
        assert found.state is not None
        assert (found.state_name, found.state.state_details["pause_reschedule"]) == ("Suspended", True)
        assert await resume_sweep(job_api, sweep.id, {"num_workers": 1}) is ResumedBy.QUEUE
        assert await resume_sweep(job_api, sweep.id, {}) is ResumedBy.QUEUE
        found = await read_sweep(sweep.session, sweep.id)
        assert (found.state_name, found.parameters["num_workers"]) == ("Queued", 1)
        await sweep.enter(ItemState.CLAIMED)
        await sweep.enter(ItemState.RUNNING)
        async with sweep.agent():
            assert (await sweep.run(num_workers=1)).message == "All 4 trials have ended."


async def test_sweep_that_waits_for_an_agent_is_paused_and_not_started(job_api: InMemoryApi) -> None:
    async with opened(job_api, deployed=True) as sweep:
        await sweep.enter(ItemState.QUEUED)
        await pause_sweep(job_api, sweep.id)
        assert not (await job_api.server.propose(sweep.id, State.of(ItemState.CLAIMED))).accepted
        assert await resume_sweep(job_api, sweep.id, {}) is ResumedBy.QUEUE


@pytest.mark.parametrize("killed", ["pause", "resume", "scheduler"])
async def test_pause_and_resume_run_each_trial_to_its_end_once_when_they_are_killed_at_any_call(
    job_api: InMemoryApi, killed: str
) -> None:
    at, was_killed = 1, True
    while was_killed:
        was_killed = False
        async with opened(job_api, method="random", run_cap=2) as sweep:
            await sweep.die_once_it_has_queued()
            if killed == "pause":
                was_killed = await _is_killed(job_api, at, pause_sweep(job_api, sweep.id, now=True))
                if await sweep.state() is StateType.RUNNING:
                    assert len(await open_items(sweep)) == 2, "killed before the pause, so nothing was stopped"
            await asyncio.wait_for(pause_sweep(job_api, sweep.id, now=True), PATIENCE_SECONDS)
            assert await trial_states(sweep) == ["held", "held"], f"killed at call {at}"
            resume = {"num_workers": 3, "run_cap": 3}
            if killed == "resume":
                was_killed = await _is_killed(job_api, at, resume_sweep(job_api, sweep.id, resume, answer_seconds=0.01))
            assert await resume_sweep(job_api, sweep.id, resume, answer_seconds=0.01) is ResumedBy.CALLER
            await sweep.enter(ItemState.RUNNING)
            async with sweep.agent():
                if killed == "scheduler":
                    was_killed = await _is_killed(job_api, at, sweep.scheduler(**resume).run())
                assert (await sweep.run(**resume)).outcome is Outcome.FINISHED
            expected = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
            assert await sweep.numbers() == expected, f"killed at call {at}"
            assert sweep.most_open <= 3
        at += 1
    assert at > 5, "the kills have met too few calls"


async def _is_killed(api: InMemoryApi, at: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Do the work, killed at one of its calls to the server; whether it was."""
    killer = Killer(api, at)
    await killer.run(work)
    return killer.victim is not None and killer.victim.cancelled()


# --- as Prefect's UI and client do it ---


@pytest.mark.parametrize("reschedules", [True, False])
async def test_pause_of_the_ui_is_a_pause_without_its_time_limit_and_the_uis_resume_ends_it(
    job_api: InMemoryApi, reschedules: bool
) -> None:
    server = job_api.server
    past = (datetime.now(timezone.utc) - timedelta(seconds=1)).isoformat()
    async with opened(job_api) as sweep, running(sweep) as life:
        await server.propose(
            sweep.id, paused("Suspended", pause_timeout=past, pause_reschedule=reschedules), force=True
        )
        kept = await eventually(
            lambda: read_sweep(sweep.session, sweep.id),
            lambda found: found.state is not None and not found.state.state_details.get("pause_timeout"),
        )
        assert (kept.state_type, kept.state_name) == (StateType.PAUSED, "Paused")
        await sweep.until_told("The sweep is paused")
        assert (await server.propose(sweep.id, State.of(ItemState.RUNNING))).accepted
        async with sweep.agent():
            assert (await ended(life)).message == "All 4 trials have ended."


async def test_paused_sweep_is_cancelled_with_its_trials(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, running(sweep) as life:
        await pause_sweep(job_api, sweep.id)
        await sweep.enter(ItemState.CANCELLING)
        assert (await ended(life)).outcome is Outcome.STOPPED
        assert await open_items(sweep) == []


async def test_deletion_of_the_flow_run_stops_the_trials(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, running(sweep) as life:
        await job_api.server.delete_item(sweep.id)
        assert (await ended(life)).outcome is Outcome.STOPPED
        assert await open_items(sweep) == []


@pytest.mark.parametrize(
    ("state", "outcome"), [(ItemState.COMPLETED, Outcome.FINISHED), (ItemState.FAILED, Outcome.FAILED)]
)
async def test_sweep_that_a_person_has_set_to_an_end_ends_with_its_trials(
    job_api: InMemoryApi, state: ItemState, outcome: Outcome
) -> None:
    async with opened(job_api) as sweep, running(sweep) as life:
        await sweep.enter(state)
        assert (await ended(life)).outcome is outcome
        assert await open_items(sweep) == []


# --- what cannot be done ---


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ItemState.COMPLETED, "has ended already, as Completed: nothing to pause"),
        (ItemState.CANCELLED, "has ended already, as Cancelled: nothing to pause"),
        (ItemState.CANCELLING, "is being stopped"),
        (ItemState.CLAIMED, "is just being started"),
    ],
)
async def test_sweep_that_does_not_run_is_not_paused(job_api: InMemoryApi, state: ItemState, words: str) -> None:
    async with opened(job_api) as sweep:
        await sweep.enter(state)
        with pytest.raises(LaunchError, match=words):
            await pause_sweep(job_api, sweep.id)
        assert await sweep.state() is state.type


async def test_sweep_that_is_being_stopped_is_not_resumed(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        await sweep.enter(ItemState.CANCELLING)
        with pytest.raises(LaunchError, match="is being stopped"):
            await resume_sweep(job_api, sweep.id, {})
        assert await sweep.state() is StateType.CANCELLING


async def test_trials_of_a_crashed_sweep_wait_and_can_be_stopped(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        await sweep.enter(ItemState.CRASHED)
        assert (await sweep.run()).outcome is Outcome.FAILED
        assert len(await open_items(sweep)) == 2
        await asyncio.wait_for(stop_sweep(job_api, sweep.id, sweep.told.append), PATIENCE_SECONDS)
        assert await open_items(sweep) == []
        with pytest.raises(LaunchError, match="nothing to stop"):
            await stop_sweep(job_api, sweep.id, sweep.told.append)


@pytest.mark.parametrize("waits", ["queued", "suspended"])
async def test_sweep_that_no_process_has_says_that_it_was_stopped(job_api: InMemoryApi, waits: str) -> None:
    async with opened(job_api, deployed=True) as sweep:
        if waits == "queued":
            await sweep.enter(ItemState.QUEUED)
        else:
            async with running(sweep):
                await pause_sweep(job_api, sweep.id)
        await asyncio.wait_for(stop_sweep(job_api, sweep.id, sweep.told.append), PATIENCE_SECONDS)
        found = await read_sweep(sweep.session, sweep.id)
        assert (found.state_name, found.message) == ("Cancelled", "The sweep was stopped.")
        assert await open_items(sweep) == []


async def test_time_limit_leaves_out_pauses_and_the_time_between_an_end_and_a_resume(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        assert (await read_sweep(sweep.session, sweep.id)).running_seconds(later) > 3000
        for state in (paused(), State.of(ItemState.COMPLETED), State.of(ItemState.CLAIMED)):
            await job_api.server.propose(sweep.id, state, force=True)
            assert (await read_sweep(sweep.session, sweep.id)).running_seconds(later) < 3000


# --- failed trials run again ---


class Fickle:
    """What becomes of trials: those with these rates fail, as often as is said."""

    def __init__(self, **times: int) -> None:
        self.left = {float(rate.replace("_", ".")[1:]): count for rate, count in times.items()}

    def __call__(self, params: Mapping[str, Any]) -> Mapping[str, float] | None:
        rate = params["lr"]
        if self.left.get(rate, 0) > 0:
            self.left[rate] -= 1
            return None
        return {"loss": rate}


async def test_failed_trials_of_an_ended_sweep_run_again_with_the_same_parameters_and_no_new_trial(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api, run_cap=3) as sweep, sweep.agent(Fickle(r0_1=1, r0_3=1)):
        assert (await sweep.run()).message == "All 3 trials have ended. 2 of them failed."
        await sweep.enter(ItemState.COMPLETED)
        retried = await retry_trials(job_api, sweep.id)
        assert retried == Retried((0, 2), ResumedBy.CALLER)
        await sweep.enter(ItemState.RUNNING)
        assert (await sweep.run()).message == "All 3 trials have ended."
        assert await sweep.numbers() == [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)]
        assert await trial_states(sweep) == ["finished"] * 3
        by_try = {
            item.idempotency_key: item.parameters["overrides"]["run_config"]["lr"] for item in await sweep.items()
        }
        assert by_try[f"sweep-{sweep.id}-trial-2-try-2"] == by_try[f"sweep-{sweep.id}-trial-2-try-1"] == 0.3


async def test_trial_runs_again_beside_the_others_and_a_second_request_changes_nothing(job_api: InMemoryApi) -> None:
    async with opened(job_api, workers=1) as sweep:
        life = asyncio.create_task(sweep.scheduler().run())
        async with sweep.agent(Fickle(r0_1=1)):
            await sweep.until_told("trial 0 failed")
        assert [await retry_trials(job_api, sweep.id, [0]) for _ in range(2)] == [Retried((0,))] * 2
        async with sweep.agent():
            assert (await ended(life)).message == "All 4 trials have ended."
        assert await sweep.numbers() == [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1)]
        assert sweep.most_open == 1
        with pytest.raises(LaunchError, match="has failed: nothing to retry"):
            await retry_trials(job_api, sweep.id)


async def test_trial_that_runs_again_may_be_requested_once_more_and_its_next_failure_again(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api, run_cap=1) as sweep, sweep.agent(Fickle(r0_1=2)):
        for tries in (1, 2):
            assert (await sweep.run()).outcome is Outcome.FAILED
            assert await sweep.numbers() == [(0, attempt + 1) for attempt in range(tries)]
            await sweep.enter(ItemState.FAILED)
            assert (await retry_trials(job_api, sweep.id, [0])).numbers == (0,)
            # The sweep is resumed, and its scheduler has not looked yet.
            assert (await retry_trials(job_api, sweep.id, [0])) == Retried((0,))
            await sweep.enter(ItemState.RUNNING)
        assert (await sweep.run()).message == "1 trial has ended."
        assert await sweep.numbers() == [(0, 1), (0, 2), (0, 3)]


async def test_failed_trial_of_a_paused_sweep_runs_again_once_it_is_resumed(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=3) as sweep, running(sweep) as life:
        await pause_sweep(job_api, sweep.id)
        async with sweep.agent(Fickle(r0_1=1)):
            await eventually(lambda: trial_states(sweep), lambda states: states == ["failed", "finished"])
            assert await retry_trials(job_api, sweep.id) == Retried((0,))
            assert await resume_sweep(job_api, sweep.id, {}, answer_seconds=PATIENCE_SECONDS) is ResumedBy.PROCESS
            assert (await ended(life)).message == "All 3 trials have ended."
        assert await sweep.numbers() == [(0, 1), (0, 2), (1, 1), (2, 1)]


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("what", ["retry", "cap"])
@pytest.mark.parametrize(("lasts", "drains"), [(0.0, False), (0.5, False), (0.5, True)])
async def test_request_that_comes_after_the_last_look_of_a_sweep_that_ends_lets_it_go_on(
    job_api: InMemoryApi, what: str, deployed: bool, lasts: float, drains: bool
) -> None:
    async with opened(job_api, run_cap=2, deployed=deployed) as sweep, sweep.agent(Fickle(r0_1=1)):
        await sweep.run()  # It has decided to end, and the state of that is still to come.
        if drains:
            await job_api.server.propose(sweep.id, paused(pause_reschedule=deployed), force=True)

        async def end() -> None:
            await asyncio.sleep(lasts)
            await sweep.enter(ItemState.COMPLETED)

        async def ends_it(call: str) -> None:
            if call in ("label_item", "replace_parameters"):
                job_api.server.after_call = None
                ending.append(asyncio.create_task(end()))
                await asyncio.sleep(0)

        ending: list[asyncio.Task[None]] = []
        job_api.server.after_call = ends_it
        if what == "retry":
            by = (await retry_trials(job_api, sweep.id)).resumed_by
        else:
            by = await resume_sweep(job_api, sweep.id, {"run_cap": 3})
        assert by is (ResumedBy.QUEUE if deployed else ResumedBy.CALLER)
        assert len(ending) == 1
        await ending[0]
        assert not (await read_sweep(sweep.session, sweep.id)).is_terminal


@pytest.mark.parametrize("on_agent", [False, True])
async def test_request_to_a_paused_sweep_is_not_waited_for_when_the_sweep_does_not_end_while_it_is_paused(
    job_api: InMemoryApi, on_agent: bool
) -> None:
    async with opened(job_api, run_cap=2 if on_agent else 3, deployed=on_agent) as sweep:
        if on_agent:
            await job_api.server.label_item(sweep.id, {QUEUE_LABEL: "cpu"})
        async with running(sweep), sweep.agent(Fickle(r0_1=1)):
            await pause_sweep(job_api, sweep.id)
            await eventually(lambda: open_items(sweep), lambda items: not items)
        retried = retry_trials(job_api, sweep.id, answer_seconds=10 * PATIENCE_SECONDS)
        assert await asyncio.wait_for(retried, PATIENCE_SECONDS) == Retried((0,))


@pytest.mark.parametrize("what", ["retry", "cap"])
async def test_request_that_the_scheduler_on_an_agent_does_not_take_up_is_told_and_stays_on_record(
    job_api: InMemoryApi, what: str
) -> None:
    async with opened(job_api, run_cap=2, deployed=True) as sweep, sweep.agent(Fickle(r0_1=1)):
        await sweep.run()
        request: Callable[[], Coroutine[Any, Any, Any]] = {
            "retry": lambda: retry_trials(job_api, sweep.id, answer_seconds=0.05),
            "cap": lambda: resume_sweep(job_api, sweep.id, {"run_cap": 3}, answer_seconds=0.05),
        }[what]
        with pytest.raises(LaunchError, match=r"has not acted on this request within 0\.05 s"):
            await request()
        assert (await sweep.run()).outcome is Outcome.FINISHED
        assert (await sweep.numbers())[-1] == ((1, 1) if what == "retry" else (2, 1))


async def test_retry_of_a_sweep_that_is_stopped_meanwhile_is_refused(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=2) as sweep, sweep.agent(Fickle(r0_1=1)):
        await sweep.run()

        async def stops_it(call: str) -> None:
            if call == "label_item":
                job_api.server.after_call = None
                await sweep.enter(ItemState.CANCELLING)

        job_api.server.after_call = stops_it
        with pytest.raises(LaunchError, match="is being stopped"):
            await retry_trials(job_api, sweep.id)


async def test_cap_that_is_raised_while_the_process_of_the_sweep_is_started_counts(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=2) as sweep, sweep.agent():
        scheduler = sweep.scheduler()
        await job_api.server.replace_parameters(sweep.id, {**sweep.parameters, "run_cap": 3})
        assert (await asyncio.wait_for(scheduler.run(), PATIENCE_SECONDS)).message == "All 3 trials have ended."


async def test_retry_of_a_sweep_whose_process_has_died_is_for_the_caller_to_run(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=3, workers=1) as sweep:
        life = asyncio.create_task(sweep.scheduler().run())
        async with sweep.agent(Fickle(r0_1=1)):
            await sweep.until_told("trial 0 failed")
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life
        gone = await asyncio.create_subprocess_exec("true")
        await gone.wait()
        process = SchedulerProcess(host=socket.gethostname(), pid=gone.pid, seen=None)
        await job_api.server.label_item(sweep.id, process.labels)
        assert await retry_trials(job_api, sweep.id) == Retried((0,), ResumedBy.CALLER)


async def test_failures_that_run_again_are_no_reason_to_end(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=3, max_failures=2) as sweep, sweep.agent(Fickle(r0_1=1, r0_2=1)):
        assert (await sweep.run()).outcome is Outcome.FAILED
        await sweep.enter(ItemState.FAILED)
        # The one that is left is within what is allowed.
        assert (await retry_trials(job_api, sweep.id, [1])).numbers == (1,)
        await sweep.enter(ItemState.RUNNING)
        assert (await sweep.run()).message == "All 3 trials have ended. 1 of them failed."


async def test_requests_at_the_same_time_are_all_kept(job_api: InMemoryApi) -> None:
    async with opened(job_api, max_failures=9) as sweep, sweep.agent(lambda _: None):
        await sweep.run()
        await sweep.enter(ItemState.FAILED)
    await asyncio.gather(*(retry_trials(job_api, sweep.id, [number]) for number in range(4)))
    assert RetryRequest.of(await read_sweep(sweep.session, sweep.id)).tries == dict.fromkeys(range(4), 2)


async def test_trial_that_cannot_run_again_is_refused_and_nothing_is_requested(job_api: InMemoryApi) -> None:
    target = {"name": "loss", "target": 0.3}
    async with opened(job_api, run_cap=4, metric=target, workers=1) as sweep, sweep.agent(Fickle(r0_1=1)):
        await sweep.run()
        await sweep.enter(ItemState.COMPLETED)
        for number, error, words in (
            (9, NotFoundError, "has no trial 9: its trials are 0 to 1"),
            (1, LaunchError, "Trial 1 of the sweep .* is finished: only a trial that failed, or was cancelled"),
            (0, LaunchError, "would end before a trial of it runs again: Trial 1 reached the target"),
        ):
            with pytest.raises(error, match=words):
                await retry_trials(job_api, sweep.id, [number])
        assert RetryRequest.of(await read_sweep(sweep.session, sweep.id)).tries == {}
        assert await sweep.state() is StateType.COMPLETED


@pytest.mark.parametrize("killed", ["retry", "scheduler"])
async def test_failed_trial_runs_again_once_when_the_request_or_the_scheduler_is_killed_at_any_call(
    job_api: InMemoryApi, killed: str
) -> None:
    at, was_killed = 1, True
    while was_killed:
        was_killed = False
        async with opened(job_api, run_cap=2) as sweep, sweep.agent(Fickle(r0_1=1)):
            await sweep.run()
            await sweep.enter(ItemState.COMPLETED)
            if killed == "retry":
                was_killed = await _is_killed(job_api, at, retry_trials(job_api, sweep.id))
            assert (await retry_trials(job_api, sweep.id)).numbers == (0,)
            await sweep.enter(ItemState.RUNNING)
            if killed == "scheduler":
                was_killed = await _is_killed(job_api, at, sweep.scheduler().run())
            assert (await sweep.run()).message == "All 2 trials have ended."
            assert await sweep.numbers() == [(0, 1), (0, 2), (1, 1)], f"killed at call {at}"
        at += 1
    assert at > 5, "the kills have met too few calls"
