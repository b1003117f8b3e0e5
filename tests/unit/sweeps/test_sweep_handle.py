"""Sweeps from Python: what `sweep` refuses, and what the handle on a sweep tells and does."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import prefect_launch
from prefect_launch import Sweep, alaunch_add, asweep, sweep
from prefect_launch.client.background import follower
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ExecutionError, InputError, LaunchError, NotFoundError, SpecError
from prefect_launch.sweeps.history import TrialState
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.sweep import FollowedSweep
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID, PATIENCE_SECONDS, fails, loss, opened

CONFIG: dict[str, Any] = {"method": "grid", "parameters": GRID, "metric": {"name": "loss"}}

# --- what is refused before anything is made ---

REFUSED: list[tuple[dict[str, Any], type[LaunchError], str]] = [
    ({"queue": None}, SpecError, "names no queue"),
    ({"queue": "cpuu"}, NotFoundError, "'cpuu'.*Did you mean 'cpu'"),
    ({"job": None}, SpecError, "names no job"),
    ({"job": "trian"}, NotFoundError, "'trian'"),
    ({"config": {"method": "grid", "parameters": {"lr": {"values": [5.0]}}}}, InputError, "lr"),
    ({"config": {"method": "grid", "parameters": {"lr": {"min": 0.0, "max": 1.0}}}}, SpecError, "a grid has no range"),
    ({"config": {"method": "bayes", "parameters": GRID}}, SpecError, "no metric"),
    ({"config": {**CONFIG, "count": 5}}, NotFoundError, "'count'.*Did you mean 'run_cap'"),
    ({"config": "no-such-file.yaml"}, SpecError, "'no-such-file.yaml' cannot be read"),
    ({"config": 3}, SpecError, "config.*must be a mapping, or the path of a sweep file, not 3"),
    *(({"num_workers": number}, SpecError, "num_workers") for number in (0, -1, "many", 1e9, 2.5, True)),
    *(({"run_cap": number}, SpecError, "run_cap") for number in (0, "all", 10**9)),
    ({"prior_runs": ["3ab9f1c2"]}, SpecError, "prior_runs"),
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED)
def test_sweep_that_cannot_run_is_refused_in_python_and_nothing_is_queued(
    job_api: InMemoryApi, given: dict[str, Any], error: type[LaunchError], words: str
) -> None:
    arguments = {"config": CONFIG, "queue": "cpu", "job": "train", **given}
    with pytest.raises(error, match=words):
        sweep(**arguments)
    with pytest.raises(error, match=words):
        asyncio.run(asweep(**arguments, on_agent=True))
    assert job_api.read_items() == []


def test_config_may_be_the_path_of_a_sweep_file(job_api: InMemoryApi, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({**CONFIG, "run_cap": 0}))
    for path in (file, str(file)):
        with pytest.raises(SpecError, match="run_cap"):
            sweep(path, queue="cpu", job="train")


def test_sweep_on_an_agent_is_an_item_of_its_queue_and_nothing_of_it_runs_here(job_api: InMemoryApi) -> None:
    found = sweep({**CONFIG, "name": "there"}, queue="cpu", job="train", project="other", on_agent=True)
    assert not [one for one in follower().living if one.id.endswith(found.id)]
    (run,) = job_api.items(queue="cpu")
    assert (run.id, run.name, found.state) == (found.id, "there", "queued")
    assert run.item.parameters["project"] == "other"
    assert found.runs() == []


def test_async_form_takes_the_arguments_of_the_other() -> None:
    assert inspect.signature(asweep).parameters == inspect.signature(sweep).parameters
    assert {"Sweep", "asweep", "sweep"} <= set(prefect_launch.__all__)


# --- what the handle tells ---


async def test_handle_tells_the_trials_with_their_items_and_the_best_one_first(job_api: InMemoryApi) -> None:
    async with opened(job_api, name="mine") as made, made.agent(lambda p: None if p["lr"] == 0.2 else loss(p)):
        await made.run()
        await made.enter(ItemState.COMPLETED)
        found = await Sweep.afind("mine")
        assert (found.id, found.name) == (str(made.id), "mine")
        assert found.url == f"{job_api.ui_url}/runs/flow-run/{made.id}"
        runs = await found.aruns()
        assert [(run.number, run.state, run.metric) for run in runs[:3]] == [
            *((2, "finished", 0.0), (3, "finished", pytest.approx(0.1)), (0, "finished", pytest.approx(0.2)))
        ]
        assert (runs[3].state, runs[3].params) == (TrialState.FAILED, {"lr": 0.2})
        assert "exit code 3" in (runs[3].cause or "")
        best = await found.abest()
        assert (best.number, best.params, best.run.sweep) == (2, {"lr": 0.3}, str(made.id))
        item = await job_api.acall(lambda session: session.server.read_item(made.id))
        assert (await found.aitem()) == item

        def as_synchronous_code_sees_it() -> None:
            same = Sweep.find(str(made.id)[:8])
            assert (same.state, same.item, same.id) == ("completed", item, found.id)
            assert same.wait(timeout=0) is same
            assert same.best().run.state == "completed"
            assert [run.number for run in same.runs()] == [2, 3, 0, 1]

        await asyncio.to_thread(as_synchronous_code_sees_it)


async def test_item_that_is_queued_with_the_sweeps_id_by_hand_is_its_item_and_no_trial(job_api: InMemoryApi) -> None:
    async with opened(job_api) as made:
        config = {"overrides": {"run_config": {"lr": 0.5}}}
        added = await alaunch_add(job="train", queue_name="cpu", sweep_id=str(made.id), config=config)
        assert added.sweep == str(made.id)
        assert [item.id for item in await made.items()] == [UUID(added.id)]
        assert await (await Sweep.afind(str(made.id))).aruns() == []


async def test_best_trial_of_a_sweep_that_has_none_yet_is_refused_in_words(job_api: InMemoryApi) -> None:
    async with opened(job_api, name="young"), opened(job_api, name="blind", metric=None):
        with pytest.raises(NotFoundError, match="No trial of the sweep young has finished"):
            await (await Sweep.afind("young")).abest()
        with pytest.raises(NotFoundError, match="The sweep blind has no metric"):
            await (await Sweep.afind("blind")).abest()
        with pytest.raises(NotFoundError, match="no sweep 'nobody'"):
            await Sweep.afind("nobody")


async def test_wait_returns_the_sweep_at_its_end_and_raises_when_it_has_failed(job_api: InMemoryApi) -> None:
    async with opened(job_api) as good, opened(job_api) as bad:
        waits = asyncio.create_task((await Sweep.afind(str(good.id))).wait_async())
        fails = asyncio.create_task((await Sweep.afind(str(bad.id))).wait_async(timeout=PATIENCE_SECONDS))
        with pytest.raises(TimeoutError, match=r"has not ended within 0\.2 s: it is Running"):
            await (await Sweep.afind(str(good.id))).wait_async(timeout=0.2)
        assert not waits.done()
        await good.enter(ItemState.COMPLETED)
        await bad.enter(ItemState.FAILED)
        assert (await asyncio.wait_for(waits, PATIENCE_SECONDS)).id == str(good.id)
        with pytest.raises(ExecutionError, match=f"{bad.id}.* ended as Failed"):
            await asyncio.wait_for(fails, PATIENCE_SECONDS)


# --- what is done with it ---


async def test_stopped_sweep_has_no_item_that_waits_or_runs(job_api: InMemoryApi) -> None:
    async with opened(job_api) as made:
        await made.die_once_it_has_queued()
        async with made.agent():
            found = await Sweep.afind(str(made.id))
            await asyncio.wait_for(found.astop(), PATIENCE_SECONDS)
        assert all(item.is_terminal for item in await made.items())
        assert (await found.aitem()).state_type is StateType.CANCELLED
        with pytest.raises(ExecutionError, match="ended as Cancelled"):
            await found.wait_async()
        with pytest.raises(LaunchError, match="has ended already"):
            await asyncio.to_thread(found.stop)


async def test_paused_sweep_queues_nothing_until_it_is_resumed_with_more_workers(job_api: InMemoryApi) -> None:
    async with opened(job_api, workers=1) as made:
        running = asyncio.create_task(made.scheduler().run())
        await made.until_told("trial 0 waiting")
        found = await Sweep.afind(str(made.id))
        await asyncio.wait_for(found.apause(now=True), PATIENCE_SECONDS)
        assert [(run.number, run.state) for run in await found.aruns()] == [(0, "held")]
        assert (await found.aitem()).state_type is StateType.PAUSED
        with pytest.raises(TimeoutError, match="it is Paused"):
            await found.wait_async(timeout=0.2)
        await asyncio.wait_for(found.aresume(num_workers=2, run_cap=3), PATIENCE_SECONDS)
        async with made.agent():
            end = await asyncio.wait_for(running, PATIENCE_SECONDS)
        assert end.message == "All 3 trials have ended."
        assert made.most_open == 2
        assert [(run.number, run.tries) for run in await found.aruns()] == [(2, 1), (1, 1), (0, 2)]


async def test_failed_trials_are_run_again_by_their_numbers_or_all_of_them(job_api: InMemoryApi) -> None:
    async with opened(job_api) as made:
        running = asyncio.create_task(made.scheduler().run())
        await made.until_told("trial 1 waiting")
        found = await Sweep.afind(str(made.id))
        with pytest.raises(LaunchError, match="nothing to retry"):
            await found.aretry()
        await found.apause()
        async with made.agent(fails):
            await made.until_told("trial 0 failed")
            await made.until_told("trial 1 failed")
        with pytest.raises(NotFoundError, match="no trial 9"):
            await found.aretry([9])
        assert await found.aretry([1]) == [1]
        assert await found.aretry() == [0, 1]
        await found.aresume()
        async with made.agent():
            await asyncio.wait_for(running, PATIENCE_SECONDS)
        assert {run.number: run.tries for run in await found.aruns()} == {0: 2, 1: 2, 2: 1, 3: 1}


# --- the background ---


async def test_sweep_in_the_background_is_stopped_though_its_scheduler_had_not_begun(job_api: InMemoryApi) -> None:
    async with opened(job_api) as made, made.agent():

        async def work(followed: FollowedSweep) -> EndSweep:
            followed.stop()
            runner = made.scheduler()
            followed.begun(runner)
            return await runner.run()

        here = await asyncio.wait_for(follower().follow(FollowedSweep, work), PATIENCE_SECONDS)
        end = await asyncio.wait_for(asyncio.wrap_future(here.end), PATIENCE_SECONDS)
        assert end.outcome is Outcome.STOPPED
        assert all(item.is_terminal for item in await made.items())


async def test_sweep_in_the_background_is_stopped_while_its_trials_run(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=1_000_000) as made, made.agent():

        async def work(followed: FollowedSweep) -> EndSweep:
            runner = made.scheduler()
            followed.begun(runner)
            return await runner.run()

        here = await asyncio.wait_for(follower().follow(FollowedSweep, work), PATIENCE_SECONDS)
        assert here in follower().living
        await made.until_told("trial 1 ")
        here.stop_soon()
        end = await asyncio.wait_for(asyncio.wrap_future(here.end), PATIENCE_SECONDS)
        assert end.outcome is Outcome.STOPPED
        assert all(item.is_terminal for item in await made.items())
