"""Prior runs: what a sweep's sampler learns from earlier sweeps and other runs, and what it cannot learn from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest

from prefect_launch import alaunch_add
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.server.metrics import write_metrics
from prefect_launch.server.values import State
from prefect_launch.sweeps.control import ResumedBy, resume_sweep
from prefect_launch.sweeps.history import History
from prefect_launch.sweeps.samplers.base import Sampler
from prefect_launch.sweeps.samplers.registry import SAMPLERS
from prefect_launch.sweeps.scheduler import Outcome
from prefect_launch.sweeps.sweep_check import check_sweep_request
from prefect_launch.sweeps.sweep_run import sweep_config
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID, Sweep, fails, opened


class Copycat(Sampler):
    """Tries the best point of the prior runs again and again; 0.5 when there is none."""

    def ask(self, history: History) -> Mapping[str, Any]:
        known = [trial for trial in history.prior if trial.value is not None]
        return min(known, key=lambda trial: trial.value or 0.0).params if known else {"lr": 0.5}


@pytest.fixture(autouse=True)
def copycat() -> Iterator[None]:
    """That sampler, installed."""
    with patch.dict(SAMPLERS._places, copycat=f"{__name__}:Copycat"):
        yield


def copying(*prior: object) -> dict[str, Any]:
    """Configuration of a sweep that copies the best of these runs."""
    space = {"lr": {"min": 0.0, "max": 1.0}}
    return {"method": "custom", "sampler": "copycat", "parameters": space, "prior_runs": [str(one) for one in prior]}


@asynccontextmanager
async def earlier(api: InMemoryApi, **config: Any) -> AsyncIterator[Sweep]:
    """A sweep that has ended."""
    async with opened(api, **config) as sweep, sweep.agent():
        await sweep.run()
        yield sweep


async def plain_run(api: InMemoryApi, lr: float, loss: float) -> UUID:
    """Queue a run of no sweep, and end it well."""
    run = await alaunch_add(job="train", queue_name="cpu", config={"overrides": {"run_config": {"lr": lr}}})
    item = UUID(run.id)
    await write_metrics(api.server, item, Metrics(outputs={"loss": loss}))
    await api.server.propose(item, State.of(ItemState.COMPLETED), force=True)
    return item


async def tried(sweep: Sweep) -> set[float]:
    """The rates that a sweep has tried."""
    return {item.parameters["overrides"]["run_config"]["lr"] for item in await sweep.items()}


async def test_sampler_learns_from_an_earlier_sweep_whose_trials_are_not_counted(job_api: InMemoryApi) -> None:
    async with earlier(job_api) as old, opened(job_api, **copying(old.id), run_cap=2) as sweep, sweep.agent():
        assert (await sweep.run()).message == "All 2 trials have ended."
        assert await tried(sweep) == {0.3}
        assert await sweep.numbers() == [(0, 1), (1, 1)]


async def test_sampler_learns_from_a_single_trial_and_from_a_run_of_no_sweep(job_api: InMemoryApi) -> None:
    async with earlier(job_api, run_cap=1) as old:
        (trial,) = await old.items()
        plain = await plain_run(job_api, 0.31, 0.01)
        async with opened(job_api, **copying(trial.id), run_cap=1) as sweep, sweep.agent():
            await sweep.run()
            assert await tried(sweep) == {0.1}
        async with opened(job_api, **copying(trial.id, plain), run_cap=1) as sweep, sweep.agent():
            await sweep.run()
            assert await tried(sweep) == {0.31}


async def test_sweep_that_has_begun_goes_on_when_a_prior_run_was_deleted(job_api: InMemoryApi) -> None:
    prior = await plain_run(job_api, 0.31, 0.01)
    async with opened(job_api, **copying(prior), run_cap=3) as sweep:
        await sweep.die_once_it_has_queued()
        await job_api.server.delete_item(prior)
        assert await resume_sweep(job_api, sweep.id, {"num_workers": 1}, answer_seconds=0.1) is ResumedBy.CALLER
        with pytest.raises(NotFoundError, match="to learn from"):
            await resume_sweep(job_api, sweep.id, {"prior_runs": [str(prior)]}, answer_seconds=0.1)
        await sweep.enter(ItemState.RUNNING)
        async with sweep.agent():
            assert (await sweep.run()).outcome is Outcome.FINISHED
        assert any("continues without its prior runs" in line for line in sweep.told)


async def test_sweep_whose_prior_run_is_gone_before_its_first_trial_fails_and_says_so(job_api: InMemoryApi) -> None:
    async with opened(job_api, **copying(UUID(int=5))) as sweep:
        end = await sweep.run()
        assert end.outcome is Outcome.FAILED
        assert "There is no sweep and no item" in end.message
        assert await sweep.items() == []


async def refusal(api: InMemoryApi, error: type[LaunchError] = SpecError, **given: Any) -> str:
    """Why a sweep is refused before it begins."""
    async with api.open() as session:
        before = await session.server.count_items()
        config = sweep_config({"metric": {"name": "loss"}, **given}, queue="cpu", job="train")
        with pytest.raises(error) as refused:
            await check_sweep_request(api, session, config)
        assert await session.server.count_items() == before
        return str(refused.value)


async def test_run_that_reports_another_metric_is_refused_with_what_was_seen(job_api: InMemoryApi) -> None:
    async with earlier(job_api) as old:
        told = await refusal(job_api, **{**copying(old.id), "metric": {"name": "accuracy"}})
        assert "The metric 'accuracy' was not reported; seen: loss." in told
        assert f"prior run a sweep ({old.id})" in told


async def test_run_with_other_parameters_is_refused_with_both(job_api: InMemoryApi) -> None:
    async with earlier(job_api) as old:
        space = {"momentum": {"min": 0.0, "max": 1.0}}
        told = await refusal(job_api, **{**copying(old.id), "parameters": space})
        assert 'searches momentum, and its parameters are {"lr": 0.1}' in told


async def test_values_that_bayes_cannot_have_are_refused(job_api: InMemoryApi) -> None:
    pytest.importorskip("optuna")
    async with earlier(job_api) as old:
        space = {"lr": {"min": 0.6, "max": 1.0}}
        config: dict[str, Any] = {"method": "bayes", "parameters": space, "prior_runs": [str(old.id)]}
        assert 'its parameters are {"lr": 0.1}' in await refusal(job_api, **config)


async def test_sweep_that_has_nothing_to_teach_is_refused(job_api: InMemoryApi) -> None:
    async with opened(job_api) as empty:
        assert "it has no trials" in await refusal(job_api, **copying(empty.id))
        await empty.die_once_it_has_queued()
        assert "nothing of it has ended yet" in await refusal(job_api, **copying(empty.id))
    async with opened(job_api, run_cap=1) as failed, failed.agent(fails):
        await failed.run()
        assert "exit code 3" in await refusal(job_api, **copying(failed.id))


@pytest.mark.parametrize("method", ["grid", "random"])
async def test_method_that_does_not_learn_refuses_prior_runs(job_api: InMemoryApi, method: str) -> None:
    told = await refusal(job_api, method=method, parameters=GRID, prior_runs=[str(UUID(int=5))])
    assert f"'{method}' chooses each trial with no regard to others" in told


@pytest.mark.parametrize("given", ["3ab9f1c2", 7, ["x"], str(UUID(int=5))])
def test_prior_runs_that_are_no_list_of_ids_are_refused(given: Any) -> None:
    with pytest.raises(SpecError, match="prior_runs"):
        sweep_config({"method": "random", "parameters": GRID, "prior_runs": given})


async def test_id_that_the_server_does_not_know_is_refused(job_api: InMemoryApi) -> None:
    told = await refusal(job_api, NotFoundError, **copying(UUID(int=5)))
    assert f"There is no sweep and no item '{UUID(int=5)}' to learn from" in told


def test_ids_given_beside_the_file_win_over_its_own() -> None:
    config = {"method": "random", "parameters": GRID, "prior_runs": [str(UUID(int=1))]}
    assert sweep_config(config).prior_runs == (UUID(int=1),)
    assert sweep_config(config, prior_runs=[str(UUID(int=2))]).prior_runs == (UUID(int=2),)
