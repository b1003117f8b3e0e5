"""Traps that sweeps of W&B are known for, each as a test.

Three have theirs elsewhere: schedulers that pass their limit since they are counted after their start, in
`agent/test_sweep_schedulers` (three at a limit of one run one after another); failed points of a grid that never run
again, in `test_control` (failed trials of an ended sweep run again); and a pause that ends the scheduler, there, too
(a paused sweep goes on in its process).
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ServerFailedError, ServerUnavailableError, SpecError
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.config import parse_sweep
from prefect_launch.sweeps.control import resume_sweep
from prefect_launch.sweeps.history import TrialState
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_reader import read_trials
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID, PATIENCE_SECONDS, Sweep, opened


async def states(sweep: Sweep) -> dict[int, TrialState]:
    """The state of each trial, by its number."""
    config = config_of(await read_sweep(sweep.session, sweep.id))
    trials = await read_trials(sweep.session.server, sweep.id, config)
    return {trial.number: trial.state for trial in trials.history.trials}


async def first_item(sweep: Sweep, state: StateType) -> Item:
    """Wait for an item in a state of this type."""

    async def look() -> Item:
        while True:
            for item in await sweep.items():
                if item.state_type is state:
                    return item
            await asyncio.sleep(0.002)

    return await asyncio.wait_for(look(), PATIENCE_SECONDS)


async def test_scheduler_that_has_crashed_is_reported_as_a_failed_sweep_and_goes_on_when_resumed(
    job_api: InMemoryApi,
) -> None:
    """At W&B the sweep of a scheduler that crashed stays RUNNING."""
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        await sweep.enter(ItemState.CRASHED)
        async with sweep.agent():
            end = await sweep.run()
            assert (end.outcome, end.message) == (Outcome.FAILED, "The sweep is Crashed.")
            assert [number for number, _ in await sweep.numbers()] == [0, 1], "a crashed sweep queues nothing"
            await resume_sweep(job_api, sweep.id, {})
            await sweep.enter(ItemState.RUNNING)
            assert (await sweep.run()).message == "All 4 trials have ended."
            assert await sweep.numbers() == [(k, 1) for k in range(4)]


@pytest.mark.parametrize("name", ["Cancelled", "Canceled", "CANCELED", "Stopped by Ann"])
async def test_cancelled_trial_and_sweep_are_such_however_the_state_is_spelt(job_api: InMemoryApi, name: str) -> None:
    """At W&B the word CANCELED and the word CANCELLED are two states."""
    cancelled = State(type=StateType.CANCELLED, name=name)
    async with opened(job_api, method="random", run_cap=50) as sweep:
        await sweep.die_once_it_has_queued()
        item = await first_item(sweep, StateType.SCHEDULED)
        await job_api.server.propose(item.id, cancelled, force=True)
        assert sorted((await states(sweep)).values()) == [TrialState.CANCELLED, TrialState.WAITING]
        await job_api.server.propose(sweep.id, cancelled, force=True)
        assert (await sweep.run()).outcome is Outcome.STOPPED
        assert set((await states(sweep)).values()) == {TrialState.CANCELLED}
        assert len(await sweep.items()) == 2


async def test_arguments_of_a_resume_win_over_those_of_the_sweep_and_stay(job_api: InMemoryApi) -> None:
    """At W&B the arguments of the earlier scheduler win, and those of the resume are lost."""
    async with opened(job_api, method="random", run_cap=2) as sweep, sweep.agent():
        await sweep.run()
        await sweep.enter(ItemState.COMPLETED)
        await resume_sweep(job_api, sweep.id, {"num_workers": 1, "run_cap": 4, "queue": None})
        await resume_sweep(job_api, sweep.id, {"run_cap": 5})
        config = config_of(await read_sweep(sweep.session, sweep.id))
        assert (config.scheduler.num_workers, config.run_cap, config.launch.queue) == (1, 5, "cpu")


async def test_preempted_trial_keeps_its_number_and_place_and_is_counted_once(job_api: InMemoryApi) -> None:
    """At W&B a preempted run counts as dead while its agent queues it again: one more is queued in its place."""
    async with opened(job_api, method="random", run_cap=3, workers=1) as sweep:
        running = asyncio.create_task(sweep.run())
        item = await first_item(sweep, StateType.SCHEDULED)
        for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.AWAITING_RETRY):
            await job_api.server.propose(item.id, State.of(state))
        looks, enough = 0, asyncio.Event()

        async def count(method: str) -> None:
            nonlocal looks
            looks += method == "list_items"
            if looks == 5:
                enough.set()

        job_api.server.before_call = count
        await asyncio.wait_for(enough.wait(), PATIENCE_SECONDS)
        job_api.server.before_call = None
        assert await sweep.numbers() == [(0, 1)], "the trial that waits for its next attempt has the only place"
        async with sweep.agent():
            assert (await asyncio.wait_for(running, PATIENCE_SECONDS)).message == "All 3 trials have ended."
        assert await sweep.numbers() == [(k, 1) for k in range(3)]
        assert sweep.most_open == 1


@pytest.mark.parametrize("given", ["many", "8 or so", 0, -1, 1.5, True])
def test_number_of_workers_that_is_none_is_refused(given: Any) -> None:
    """W&B Launch takes 8 in silence."""
    with pytest.raises(SpecError, match="num_workers"):
        parse_sweep({"method": "random", "parameters": GRID, "scheduler": {"num_workers": given}})


def test_words_around_the_arguments_of_a_command_stay_where_they_are() -> None:
    """At W&B Launch the last macro for arguments wins, and the words around it are lost."""
    command = ["${env}", "python", "main.py", "${args}", "--", "${args_no_hyphens}", "last"]
    config = parse_sweep({"method": "random", "parameters": GRID, "program": "main.py", "command": command})
    assert config.trial_overrides({"lr": 0.1}, {})["entry_point"] == [
        *("/usr/bin/env", "python", "main.py", "--lr=0.1", "--", "lr=0.1", "last")
    ]


@pytest.mark.parametrize("error", [ServerFailedError("HTTP 500"), ServerUnavailableError("away")])
@pytest.mark.parametrize("method", ["list_items", "read_artifacts"])
async def test_reads_that_fail_in_a_row_fail_no_trial(job_api: InMemoryApi, method: str, error: Exception) -> None:
    """At W&B two reads of a run that fail in a row are a failed run."""
    failures = 0
    is_scheduler = ContextVar("is_scheduler", default=False)

    async def schedule(sweep: Sweep) -> EndSweep:
        is_scheduler.set(True)
        return await sweep.scheduler().run()

    async def fail(called: str) -> None:
        nonlocal failures
        if called == method and is_scheduler.get() and failures < 6:
            failures += 1
            raise error

    async with opened(job_api) as sweep, sweep.agent():
        scheduler = asyncio.create_task(schedule(sweep))
        job_api.server.before_call = fail
        try:
            end = await asyncio.wait_for(scheduler, PATIENCE_SECONDS)
        finally:
            job_api.server.before_call = None
        assert failures == 6
        assert (end.outcome, end.message) == (Outcome.FINISHED, "All 4 trials have ended.")
        assert set((await states(sweep)).values()) == {TrialState.FINISHED}


async def test_trial_that_was_killed_before_it_reported_anything_counts_for_the_cap(job_api: InMemoryApi) -> None:
    """At W&B killed runs without a summary are not counted, and the cap is passed."""
    async with opened(job_api, method="random", run_cap=3) as sweep:
        running = asyncio.create_task(sweep.run())
        item = await first_item(sweep, StateType.SCHEDULED)
        for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.CANCELLING, ItemState.CANCELLED):
            await job_api.server.propose(item.id, State.of(state))
        async with sweep.agent():
            assert (await asyncio.wait_for(running, PATIENCE_SECONDS)).message == "All 3 trials have ended."
        assert await sweep.numbers() == [(k, 1) for k in range(3)]
        assert list((await states(sweep)).values()).count(TrialState.CANCELLED) == 1
