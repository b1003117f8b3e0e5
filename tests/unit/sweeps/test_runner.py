"""A sweep's scheduler on a server in memory: killed at every call, twice at once, stopped, failed, resumed."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import LAST_LINE, ItemState, StateType
from prefect_launch.errors import InputError, NotFoundError, SpecError
from prefect_launch.server.metrics import METRIC_LABEL, write_metrics
from prefect_launch.server.values import State
from prefect_launch.sweeps.config import SweepConfig, parse_sweep
from prefect_launch.sweeps.control import stop_sweep
from prefect_launch.sweeps.history import TrialState
from prefect_launch.sweeps.runner import SweepRunner
from prefect_launch.sweeps.scheduler import Outcome
from prefect_launch.sweeps.sweep_check import check_sweep_request
from prefect_launch.sweeps.sweep_run import config_of, find_sweep, read_sweep, sweep_config
from prefect_launch.sweeps.trial_items import SweepTrials, TrialItem, trial_spec
from prefect_launch.sweeps.trial_reader import TrialReader, read_trials
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID, PATIENCE_SECONDS, Killer, fails, loss, opened

TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5]


# --- one life ---


async def test_sweep_tries_every_point_once_and_knows_the_best(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        end = await sweep.run()
        assert (end.outcome, end.message) == (Outcome.FINISHED, "All 4 trials have ended.")
        assert await sweep.numbers() == [(0, 1), (1, 1), (2, 1), (3, 1)]
        assert sweep.most_open == 2
        config = config_of(await read_sweep(sweep.session, sweep.id))
        trials = await read_trials(job_api.server, sweep.id, config)
        best = trials.best(config.objective)
        assert best is not None
        assert (best.number, best.params, best.metric) == (2, {"lr": 0.3}, 0.0)
        assert [trial.number for trial in trials.ranked(config.objective)] == [2, 1, 3, 0]
        assert any("trial 2 finished, loss 0: lr=0.3" in line for line in sweep.told)


async def test_item_of_a_trial_carries_its_number_try_and_parameters_under_the_key_of_the_try(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api, run_cap=1) as sweep, sweep.agent():
        await sweep.run()
        (item,) = await sweep.items()
        read = TrialItem.of(item)
        assert read is not None
        # The job's default values are not the sampler's parameters.
        assert read.record.model_dump() == {"number": 0, "attempt": 1, "params": {"lr": 0.1}}
        assert item.parameters["overrides"]["run_config"] == {"lr": 0.1, "epochs": 3, "optimiser": "adam"}
        assert item.idempotency_key == f"sweep-{sweep.id}-trial-0-try-1"
        assert item.parameters["sweep_id"] == str(sweep.id)
        assert item.labels[METRIC_LABEL] == "loss"


async def test_item_with_the_tag_and_no_record_is_no_trial(job_api: InMemoryApi) -> None:
    from prefect_launch import alaunch_add

    async with opened(job_api, run_cap=2) as sweep, sweep.agent():
        await alaunch_add(
            job="train", queue_name="cpu", sweep_id=str(sweep.id), config={"overrides": {"run_config": {"lr": 1}}}
        )
        assert (await sweep.run()).message == "All 2 trials have ended."
        assert await sweep.numbers() == [(0, 1), (1, 1)]


# --- kills; one at each await is in `test_killed` ---


async def test_cap_is_exact_when_every_life_of_the_scheduler_is_one_call_longer(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=3) as sweep, sweep.agent():
        lives = 1
        while (end := await Killer(job_api, lives).run(sweep.scheduler().run())) is None:
            lives += 1
        assert lives > 5
        assert end.message == "All 3 trials have ended."
        assert await sweep.numbers() == [(0, 1), (1, 1), (2, 1)]


async def test_two_schedulers_at_once_queue_each_trial_once(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=8, workers=3) as sweep, sweep.agent():
        ends = await asyncio.gather(sweep.run(), sweep.run())
        assert {end.message for end in ends} == {"All 8 trials have ended."}
        assert await sweep.numbers() == [(k, 1) for k in range(8)]
        assert sweep.most_open <= 3


async def test_server_that_is_away_for_a_while_ends_no_sweep(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        running = asyncio.create_task(sweep.run())
        job_api.server.down()
        await sweep.until_told("waits for the Prefect server")
        job_api.server.up()
        async with sweep.agent():
            assert (await running).message == "All 4 trials have ended."


async def test_sweep_on_a_queue_that_starts_nothing_says_why_once(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        job_api.update_run_queue("cpu", is_paused=True)
        running = asyncio.create_task(sweep.run())
        await sweep.until_told("The queue was paused at ")
        job_api.update_run_queue("cpu", is_paused=False)
        async with sweep.agent():
            assert (await running).message == "All 4 trials have ended."
        assert sum("was paused" in line for line in sweep.told) == 1


async def test_sweep_goes_on_by_the_events_of_its_trials_alone(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        config = config_of(await read_sweep(sweep.session, sweep.id))
        scheduler = SweepRunner(job_api, sweep.session, sweep.id, config, look_seconds=3600)
        assert (await asyncio.wait_for(scheduler.run(), PATIENCE_SECONDS)).message == "All 4 trials have ended."


async def test_sweep_whose_event_stream_fails_in_a_way_that_nobody_foresaw_ends_well(job_api: InMemoryApi) -> None:
    async def fail(method: str) -> None:
        if method == "watch_items":
            raise ZeroDivisionError("a bug")

    job_api.server.before_call = fail
    async with opened(job_api) as sweep, sweep.agent():
        assert (await sweep.run()).message == "All 4 trials have ended."
    assert job_api.server.calls["watch_items"]


async def read_again(reader: TrialReader, config: SweepConfig) -> SweepTrials:
    await reader.list_items()
    return await reader.trials(config)


async def test_metrics_of_ended_trials_are_read_once_and_anew_when_one_has_run_again(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
    server, config = job_api.server, sweep_config(**sweep.parameters)
    reader = TrialReader(server, sweep.id)
    first = await read_again(reader, config)
    reads = server.calls["read_artifacts"]
    assert await read_again(reader, config) == first
    assert server.calls["read_artifacts"] == reads
    item = first.items[2].item.id
    await server.propose(item, State.of(ItemState.QUEUED))
    await write_metrics(server, item, Metrics(outputs={"loss": 7.0}))
    for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED):
        await server.propose(item, State.of(state))
    again = await read_again(reader, config)
    assert [trial.value for trial in again.history.trials if trial.number == 2] == [7.0]
    assert server.calls["read_artifacts"] == reads + 1


# --- ends ---


async def test_failed_trial_is_not_run_again_and_the_sweep_goes_on(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent(lambda params: None if params["lr"] == 0.3 else loss(params)):
        end = await sweep.run()
        assert (end.outcome, end.message) == (Outcome.FINISHED, "All 4 trials have ended. 1 of them failed.")
        assert await sweep.numbers() == [(0, 1), (1, 1), (2, 1), (3, 1)]
        assert "trial 2 failed: [run] The job ended with exit code 3." in sweep.told


async def test_sweep_whose_first_five_trials_all_fail_fails_with_the_cause(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=50) as sweep, sweep.agent(fails):
        end = await sweep.run()
        assert end.outcome is Outcome.FAILED
        assert "the commonest cause" in end.message
        assert "exit code 3" in end.message
        assert 5 <= len(await sweep.numbers()) <= 7


async def test_two_errors_with_one_exit_code_are_two_causes_however_long_the_runs_took(job_api: InMemoryApi) -> None:
    lines = ["KeyError: 'lr'", "ValueError: 17 of 20 rows", "ValueError: 3 of 20 rows", "ValueError: 9 of 20 rows"]
    async with opened(job_api, max_failures=4, workers=4) as sweep:
        running = asyncio.create_task(sweep.run())
        await sweep.until_told("trial 3 waiting")
        for item in await sweep.items():
            read = TrialItem.of(item)
            assert read is not None
            message = f"[run] The job ended after {read.record.number}.5 s with exit code 1."
            state = ItemState.FAILED
            data = {"exit_code": 1, LAST_LINE: lines[read.record.number]}
            ended = State(type=state.type, name=state.label, message=message, data=data)
            await job_api.server.propose(item.id, ended, force=True)
        end = await asyncio.wait_for(running, PATIENCE_SECONDS)
        cause = "[run] The job ended after 1.5 s with exit code 1. Last line: ValueError: 17 of 20 rows"
        assert end.message == f"4 trials failed; the commonest cause (3): {cause}"


async def test_trial_without_the_metric_fails_and_names_what_was_seen(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=1) as sweep, sweep.agent(lambda _: {"los": 1.0, "acc": 0.5}):
        end = await sweep.run()
        assert end.outcome is Outcome.FAILED
        assert "The metric 'loss' was not reported; seen: acc, los. Did you mean 'los'?" in end.message


async def test_target_ends_the_sweep_and_stops_what_still_runs(job_api: InMemoryApi) -> None:
    points = {"lr": {"values": [k / 100 for k in range(1, 100)]}}
    metric = {"name": "loss", "target": 0.285}
    async with opened(job_api, parameters=points, metric=metric) as sweep, sweep.agent():
        end = await sweep.run()
        assert (end.outcome, end.message) == (Outcome.FINISHED, "Trial 1 reached the target 0.285, with loss 0.28.")
        assert all(item.is_terminal for item in await sweep.items())
        assert len(await sweep.items()) < 10


async def test_trial_that_is_worse_at_a_band_is_stopped_early_and_keeps_its_last_value(job_api: InMemoryApi) -> None:
    bands = {"type": "hyperband", "min_iter": 1}
    async with opened(job_api, run_cap=2, early_terminate=bands) as sweep:
        server = job_api.server
        running = asyncio.create_task(sweep.run())
        await sweep.until_told("trial 1 waiting")
        by_number = {TrialItem.of(item).record.number: item.id for item in await sweep.items()}  # type: ignore[union-attr]
        for number, value in ((0, 0.1), (1, 0.9)):
            for state in (ItemState.CLAIMED, ItemState.RUNNING):
                await server.propose(by_number[number], State.of(state))
            metrics = Metrics()
            metrics.add(1, {"loss": value})
            await write_metrics(server, by_number[number], metrics)
        while (item := await server.read_item(by_number[1])) and item.state_type is not StateType.CANCELLING:
            assert not running.done()
            await asyncio.sleep(0.005)
        assert item is not None
        assert item.message == "The trial was stopped early at step 1."
        # The agent's own words take the place of these once it has stopped the run.
        await server.propose(by_number[1], State.of(ItemState.CANCELLED, "Stopped after 3 s."))
        await server.propose(by_number[0], State.of(ItemState.COMPLETED))
        assert (await running).message == "All 2 trials have ended."
        config = config_of(await read_sweep(sweep.session, sweep.id))
        trials = await read_trials(server, sweep.id, config)
        assert [(trial.state, trial.value) for trial in trials.history.trials] == [
            *((TrialState.FINISHED, 0.1), (TrialState.PRUNED, 0.9))
        ]
        assert trials.items[1].stop is not None
        assert trials.items[1].stop.reason == "The trial was stopped early at step 1."


async def test_trial_whose_item_was_edited_while_it_waited_has_the_parameters_that_it_ran_with(
    job_api: InMemoryApi,
) -> None:
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        for item in await sweep.items():
            trial = TrialItem.of(item)
            assert trial is not None
            changed = {"run_config": {"lr": 0.05, "other": 1}} if trial.record.number == 0 else "nonsense"
            await job_api.server.replace_parameters(item.id, {**item.parameters, "overrides": changed})
        trials = await read_trials(job_api.server, sweep.id, config_of(await read_sweep(sweep.session, sweep.id)))
        assert [trial.params for trial in trials.history.trials] == [{"lr": 0.05}, {"lr": 0.2}]


async def test_stop_cancels_the_items_and_their_state_tells_why(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=50) as sweep:
        scheduler = sweep.scheduler()
        running = asyncio.create_task(scheduler.run())
        await sweep.until_told("trial 1 waiting")
        scheduler.stop()
        end = await asyncio.wait_for(running, PATIENCE_SECONDS)
        assert (end.outcome, end.message) == (Outcome.STOPPED, "The sweep was stopped.")
        found = [(item.state_type, item.message, TrialItem.of(item)) for item in await sweep.items()]
        assert len(found) == 2
        for kind, message, trial in found:
            assert kind is StateType.CANCELLED
            assert message.startswith("The sweep was stopped.")
            assert trial is not None
            assert trial.stop is not None
            assert (trial.stop.becomes, trial.stop.reason) == (TrialState.CANCELLED, "The sweep was stopped.")
        assert (await read_sweep(sweep.session, sweep.id)).state_type is StateType.CANCELLING


async def test_sweep_whose_process_has_died_is_stopped_with_its_items(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        await sweep.die_once_it_has_queued()
        async with sweep.agent():
            end = await asyncio.wait_for(stop_sweep(job_api, sweep.id, sweep.told.append), PATIENCE_SECONDS)
        assert end.outcome is Outcome.STOPPED
        assert all(item.is_terminal for item in await sweep.items())
        assert (await read_sweep(sweep.session, sweep.id)).state_type is StateType.CANCELLED


async def test_resumed_sweep_goes_on_to_its_new_cap_and_runs_nothing_again(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=2) as sweep, sweep.agent():
        await sweep.run()
        await sweep.enter(ItemState.COMPLETED)
        assert (await sweep.run(run_cap=5)).outcome is Outcome.FINISHED, "it has ended, and is not begun again"
        assert len(await sweep.items()) == 2
        await sweep.enter(ItemState.CLAIMED)
        await sweep.enter(ItemState.RUNNING)
        assert (await sweep.run(run_cap=5)).message == "All 5 trials have ended."
        assert await sweep.numbers() == [(k, 1) for k in range(5)]


@pytest.mark.parametrize("deleted", [{2}, {1, 2}, {0, 1, 2}])
async def test_number_of_a_deleted_trial_is_used_up_for_another_scheduler_too(
    job_api: InMemoryApi, deleted: set[int]
) -> None:
    async with opened(job_api, method="random", run_cap=3) as sweep, sweep.agent():
        await sweep.run()
        for item in await sweep.items():
            read = TrialItem.of(item)
            if read is not None and read.record.number in deleted:
                await job_api.server.delete_item(item.id)
        assert (await sweep.run(run_cap=5)).outcome is Outcome.FINISHED
        kept = [k for k in range(5) if k not in deleted]
        assert await sweep.numbers() == [(k, 1) for k in kept]


async def test_number_of_a_trial_that_is_deleted_while_its_scheduler_runs_is_used_up(job_api: InMemoryApi) -> None:
    async with opened(job_api, method="random", run_cap=3) as sweep:
        running = asyncio.create_task(sweep.run())
        await sweep.until_told("trial 1 waiting")
        (last,) = [item for item in await sweep.items() if (read := TrialItem.of(item)) and read.record.number == 1]
        await job_api.server.delete_item(last.id)
        async with sweep.agent():
            await running
        assert await sweep.numbers() == [(0, 1), (2, 1)]


async def test_deleted_trial_of_a_grid_is_tried_again(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
        (last,) = [item for item in await sweep.items() if (read := TrialItem.of(item)) and read.record.number == 3]
        await job_api.server.delete_item(last.id)
        await sweep.run()
        assert await sweep.numbers() == [(k, 1) for k in range(4)]


async def test_sampler_or_job_that_refuses_a_trial_fails_the_sweep_and_stops_its_other_trials(
    job_api: InMemoryApi,
) -> None:
    # The job's schema takes a rate of at most 1. (The sweep was begun without its checks.)
    async with opened(job_api, parameters={"lr": {"values": [0.1, 0.2, 5.0]}}) as sweep, sweep.agent():
        end = await sweep.run()
        assert end.outcome is Outcome.FAILED
        assert "lr" in end.message
        assert all(item.is_terminal for item in await sweep.items())


# --- what is refused before anything is made ---


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"queue": None}, SpecError, "names no queue"),
        ({"queue": "cpuu"}, NotFoundError, "cpu"),
        ({"job": None}, SpecError, "names no job"),
        ({"job": "trian"}, NotFoundError, "train"),
        ({"config": {"method": "grid", "parameters": {"lr": {"values": [5.0]}}}}, InputError, "lr"),
        # The sixth of its trials, and a draw that is one of a million.
        ({"config": {"method": "grid", "parameters": {"lr": {"values": [*TENTHS, 5.0]}}}}, InputError, "is 5.0"),
        ({"config": {"method": "random", "parameters": {"lr": {"min": 0.5, "max": 1.000001}}}}, InputError, "is 1.0"),
        ({"num_workers": 0}, SpecError, "num_workers"),
        ({"run_cap": 0}, SpecError, "run_cap"),
    ],
)
async def test_sweep_that_cannot_run_is_refused_and_nothing_is_queued(
    job_api: InMemoryApi, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    base = {"config": {"method": "grid", "parameters": GRID}, "queue": "cpu", "job": "train"}
    async with job_api.open() as session:
        with pytest.raises(error, match=words):
            await check_sweep_request(job_api, session, sweep_config(**{**base, **given}))
        assert await session.server.list_items() == []


@pytest.mark.parametrize(
    "shape",
    [{"min": 0, "max": 1.0}, {"distribution": "normal", "mu": 0.5, "sigma": 0.2}, {"distribution": "beta"}],
    ids=str,
)
async def test_values_that_the_schema_refuses_and_that_are_hardly_ever_drawn_refuse_no_sweep(
    job_api: InMemoryApi, shape: dict[str, Any]
) -> None:
    # The job's schema takes no rate of 0, nor below.
    config = sweep_config({"method": "random", "parameters": {"lr": shape}}, "cpu", "train")
    async with job_api.open() as session:
        named = await check_sweep_request(job_api, session, config)
        assert named.job is not None
        assert named.job.name == "train"


def test_what_is_given_beside_the_file_wins_over_it() -> None:
    config = {
        "sweep": {
            "method": "random",
            "parameters": GRID,
            "image_uri": "box:1",
            "run_cap": 3,
            "scheduler": {"num_workers": 4},
            "launch": {"queue": "gpu", "resource_args": {"local-process": {"gpus": 1}}},
        }
    }
    kept = sweep_config(config)
    assert (kept.launch.queue, kept.image_uri, kept.run_cap, kept.scheduler.num_workers) == ("gpu", "box:1", 3, 4)
    won = sweep_config(config, queue="cpu", job="train", num_workers=2, run_cap=9)
    assert (won.launch.queue, won.job, won.image_uri, won.run_cap) == ("cpu", "train", None, 9)
    assert (won.scheduler.num_workers, won.launch.config) == (2, {"resource_args": {"local-process": {"gpus": 1}}})


def test_trial_has_the_command_the_metric_and_the_retries_of_the_file() -> None:
    from prefect_launch.sweeps.trial_items import TrialRecord

    config = parse_sweep(
        {
            "method": "random",
            "parameters": GRID,
            "job": "train",
            "program": "main.py",
            "command": ["${env}", "python", "${program}", "${args}"],
            "metric": {"name": "loss", "pattern": "loss: ([0-9.]+)"},
            "retries": 2,
            "launch": {"overrides": {"run_config": {"epochs": 5}}},
        }
    )
    spec = trial_spec(config, UUID(int=7), TrialRecord(number=3, attempt=2, params={"lr": 0.1}))
    assert spec.overrides.entry_point == ("/usr/bin/env", "python", "main.py", "--lr=0.1")
    assert spec.overrides.run_config == {"epochs": 5, "lr": 0.1}
    assert spec.metric is not None
    assert spec.metric.name == "loss"
    assert spec.retries is not None
    assert (spec.retries.max, spec.run_id) == (2, "00000007-3-2")


async def test_sweep_is_found_by_its_id_by_a_part_of_it_and_by_its_name(job_api: InMemoryApi) -> None:
    async with opened(job_api, name="mine") as sweep, opened(job_api, name="other"):
        for given in (str(sweep.id), str(sweep.id)[:8], str(sweep.id)[-8:], "mine"):
            assert (await find_sweep(sweep.session, given)).id == sweep.id
        with pytest.raises(NotFoundError, match="mine"):
            await find_sweep(sweep.session, "min")
