"""Reader of a sweep's trials on a server in memory: what it lists again, and what it must not miss."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from prefect_launch import alaunch_add
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import ItemState
from prefect_launch.server.metrics import write_metrics
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.history import TrialState
from prefect_launch.sweeps.sweep_run import sweep_config
from prefect_launch.sweeps.trial_items import SweepTrials
from prefect_launch.sweeps.trial_reader import TrialReader, read_trials
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import Sweep, opened

LONG_SECONDS = 3600.0


class Reading:
    """A reader that lists all items once, and what it has asked for since."""

    def __init__(self, api: InMemoryApi, sweep: Sweep) -> None:
        self.reader = TrialReader(api.server, sweep.id, whole_seconds=LONG_SECONDS)
        self.asked: list[Collection[UUID] | None] = []
        self._config = sweep_config(**sweep.parameters)
        self._server, self._sweep = api.server, sweep
        list_items = api.server.list_items

        async def noted(**wanted: Any) -> list[Item]:
            self.asked.append(wanted.get("ids"))
            return await list_items(**wanted)

        api.server.list_items = noted  # type: ignore[method-assign]

    async def read(self) -> SweepTrials:
        self.asked.clear()
        await self.reader.list_items()
        return await self.reader.trials(self._config)

    async def all(self) -> SweepTrials:
        return await read_trials(self._server, self._sweep.id, self._config)


async def test_ended_trials_are_not_listed_again_until_all_are(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
    reading = Reading(job_api, sweep)
    first = await reading.read()
    assert (reading.asked, reading.reader.is_whole) == ([None], True)
    assert await reading.read() == first
    assert (reading.asked, reading.reader.is_whole) == ([], False)
    reading.reader.forget()
    assert await reading.read() == first
    assert (reading.asked, reading.reader.is_whole) == ([None], True)


async def test_trial_that_runs_is_read_again_without_an_event_and_an_ended_one_with_it(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
    reading, server = Reading(job_api, sweep), job_api.server
    ended = [read.item.id for read in (await reading.read()).items.values()]
    await server.propose(ended[1], State.of(ItemState.QUEUED))
    reading.reader.note_changed(ended[1])
    await reading.read()
    assert reading.asked == [{ended[1]}]
    await server.propose(ended[1], State.of(ItemState.CLAIMED))
    again = await reading.read()
    assert reading.asked == [{ended[1]}]
    assert again == await reading.all()


async def test_open_trial_that_was_deleted_is_gone_at_the_next_reading(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
    reading, server = Reading(job_api, sweep), job_api.server
    [one, *_] = [read.item.id for read in (await reading.read()).items.values()]
    await server.propose(one, State.of(ItemState.QUEUED))
    reading.reader.note_changed(one)
    await reading.read()
    await server.delete_item(one)
    found = await reading.read()
    assert one not in {read.item.id for read in found.items.values()}
    assert found == await reading.all()


async def test_job_that_reports_after_its_sweep_has_ended_changes_its_value_and_no_end(job_api: InMemoryApi) -> None:
    async with opened(job_api, workers=1, run_cap=2) as sweep, sweep.agent():
        await sweep.run()
        before = await sweep.state()
        late = next(item for item in await sweep.items() if item.is_terminal)
        await write_metrics(job_api.server, late.id, Metrics(outputs={"loss": -7.0}))
        trials = await read_trials(job_api.server, sweep.id, sweep_config(**sweep.parameters))
        assert await sweep.state() is before
    (trial,) = [trial for trial in trials.history.trials if trials.items[trial.number].item.id == late.id]
    assert (trial.state, trial.value) == (TrialState.FINISHED, -7.0)
    assert len(trials.history.trials) == 2


async def test_sweep_and_its_open_trials_are_read_in_one_request(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
    reading, server = Reading(job_api, sweep), job_api.server
    [one, *_] = [read.item.id for read in (await reading.read()).items.values()]
    await server.propose(one, State.of(ItemState.QUEUED))
    reading.reader.note_changed(one)
    reading.asked.clear()
    found = await reading.reader.list_with_sweep()
    assert found == await server.read_item(sweep.id)
    assert reading.asked == [{one, sweep.id}]
    assert await reading.reader.trials(sweep_config(**sweep.parameters)) == await reading.all()


async def test_trial_that_changes_while_all_are_listed_is_not_left_out_and_is_read_again(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
    reading, server = Reading(job_api, sweep), job_api.server
    [one, *_] = [read.item.id for read in (await reading.read()).items.values()]
    reading.reader.forget()
    listed = server.list_items

    async def changing(**wanted: Any) -> list[Item]:
        reading.reader.note_changed(one)
        return await listed(**wanted)

    server.list_items = changing  # type: ignore[method-assign]
    await reading.reader.list_with_sweep()
    server.list_items = listed  # type: ignore[method-assign]
    assert await reading.reader.trials(sweep_config(**sweep.parameters)) == await reading.all()
    reading.asked.clear()
    await reading.reader.list_items()
    assert reading.asked == [{one}]


async def test_items_that_have_ended_are_known_also_when_they_are_no_trial(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=1) as sweep, sweep.agent():
        await sweep.run()
    await alaunch_add(
        job="train", queue_name="cpu", sweep_id=str(sweep.id), config={"overrides": {"run_config": {"lr": 1}}}
    )
    reader = TrialReader(job_api.server, sweep.id)
    await reader.list_items()
    (other,) = {item.id for item in await sweep.items()} - reader.ended
    await job_api.server.propose(other, State.of(ItemState.COMPLETED), force=True)
    await reader.list_items()
    assert other in reader.ended, "a scheduler looks again and again for an end that it does not see"
    assert len(reader.ended) == 2
