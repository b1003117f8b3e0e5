"""The scheduler program of a sweep on an agent: how it ends, leaves, and what it leaves behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import AgentConfigError
from prefect_launch.sweeps import runner
from prefect_launch.sweeps.program import ENTITY_LABEL, SchedulerEnd, main, read_end, run_scheduler, write_end
from prefect_launch.sweeps.scheduler import Outcome
from prefect_launch.sweeps.sweep_run import read_sweep
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID, PATIENCE_SECONDS, Sweep, opened


async def ended(sweep: Sweep, leaving: asyncio.Event | None = None) -> SchedulerEnd | None:
    """Run the program to its end."""
    work = run_scheduler(sweep.api, sweep.id, leaving or asyncio.Event(), sweep.told.append)
    return await asyncio.wait_for(work, PATIENCE_SECONDS)


async def leaves_once_told(sweep: Sweep, words: str, *, cancelled: bool = False) -> SchedulerEnd | None:
    """Run the program, and tell it to leave once it has told of something."""
    leaving = asyncio.Event()
    work = asyncio.create_task(ended(sweep, leaving))
    await sweep.until_told(words)
    if cancelled:
        await sweep.enter(ItemState.CANCELLING)
    leaving.set()
    return await work


def test_end_is_read_as_it_was_written_and_none_where_there_is_none(tmp_path: Path) -> None:
    assert read_end(tmp_path) is None
    end = SchedulerEnd(outcome=Outcome.FAILED, message="2 trials failed.")
    write_end(tmp_path, end)
    assert read_end(tmp_path) == end
    (tmp_path / "sweep-end.json").write_text('{"outcome": "fin')
    assert read_end(tmp_path) is None


async def test_program_runs_the_sweep_to_its_end_and_writes_no_state(job_api: InMemoryApi) -> None:
    async with opened(job_api, deployed=True) as sweep, sweep.agent():
        end = await ended(sweep)
        assert end == SchedulerEnd(outcome=Outcome.FINISHED, message="All 4 trials have ended.")
        assert (await read_sweep(sweep.session, sweep.id)).state_type is StateType.RUNNING


async def test_program_that_is_told_to_leave_stops_nothing(job_api: InMemoryApi) -> None:
    async with opened(job_api, deployed=True) as sweep:
        assert await leaves_once_told(sweep, "trial 1 waiting") is None
        assert (await read_sweep(sweep.session, sweep.id)).state_type is StateType.RUNNING
        assert {item.state_type for item in await sweep.items()} == {StateType.SCHEDULED}
        async with sweep.agent():
            end = await ended(sweep)
        assert end is not None
        assert await sweep.numbers() == [(0, 1), (1, 1), (2, 1), (3, 1)]


async def test_program_of_a_cancelled_sweep_stops_the_trials_before_it_ends(job_api: InMemoryApi) -> None:
    async with opened(job_api, deployed=True) as sweep:
        end = await leaves_once_told(sweep, "trial 1 waiting", cancelled=True)
        assert end == SchedulerEnd(outcome=Outcome.STOPPED, message="The sweep was stopped.")
        assert {item.state_type for item in await sweep.items()} == {StateType.CANCELLED}


async def test_program_that_is_told_to_leave_while_it_is_loaded_still_stops_what_was_cancelled(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api, deployed=True) as sweep:
        await leaves_once_told(sweep, "trial 1 waiting")
        leaving = asyncio.Event()
        leaving.set()
        assert await ended(sweep, leaving) is None
        assert {item.state_type for item in await sweep.items()} == {StateType.SCHEDULED}
        await sweep.enter(ItemState.CANCELLING)
        end = await ended(sweep, leaving)
        assert end is not None
        assert end.outcome is Outcome.STOPPED
        assert {item.state_type for item in await sweep.items()} == {StateType.CANCELLED}


async def test_program_whose_machine_lacks_what_the_sampler_needs_has_not_ended_the_sweep(
    job_api: InMemoryApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object) -> None:
        raise AgentConfigError("The method bayes needs Optuna. Install prefect-launch[sweeps].")

    async with opened(job_api, deployed=True) as sweep:
        monkeypatch.setattr(runner, "make_sampler", lacks)
        end = await ended(sweep)
    assert end == SchedulerEnd(outcome=None, message="The method bayes needs Optuna. Install prefect-launch[sweeps].")


async def test_program_of_a_sweep_that_is_none_says_why(job_api: InMemoryApi) -> None:
    async with opened(job_api, deployed=True) as sweep:
        await job_api.server.replace_parameters(sweep.id, {"config": {"method": "gird", "parameters": GRID}})
        end = await ended(sweep)
    assert end is not None
    assert end.outcome is Outcome.FAILED
    assert "gird" in end.message


async def test_trials_are_those_of_who_has_queued_the_sweep(job_api: InMemoryApi) -> None:
    async with opened(job_api, deployed=True, run_cap=1) as sweep, sweep.agent():
        await job_api.server.label_item(sweep.id, {ENTITY_LABEL: "somebody"})
        image = {"queue": "gpu", "job": None, "docker_image": "busybox:1"}
        await job_api.server.replace_parameters(sweep.id, {**sweep.parameters, **image})
        await ended(sweep)
        (item,) = await sweep.items()
    assert item.parameters["entity"] == "somebody"


@pytest.mark.parametrize("arguments", [[], ["a-name"], ["0" * 32, "0" * 32]])
def test_program_without_one_sweep_says_what_it_is_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "'sweep create'" in capsys.readouterr().err
