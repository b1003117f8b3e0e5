"""What a sweep shows on its page: the table of its trials, in place, bounded, and never at the cost of the sweep."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import pytest

from prefect_launch.server.values import Item
from prefect_launch.sweeps.board import SweepBoard, report_key, table_key
from prefect_launch.sweeps.config import SweepConfig, parse_sweep
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.trial_items import SweepTrials
from prefect_launch.sweeps.trial_table import MAX_CHARS, MAX_PARAMS, MAX_ROWS, table_artifact, trial_table
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import PATIENCE_SECONDS, Sweep, fails, finished, loss, opened, trials_of

CONFIG = parse_sweep({"method": "random", "metric": {"name": "loss"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}})


END = EndSweep(Outcome.FINISHED, "All trials have ended.")


def rows_of(trials: SweepTrials, config: SweepConfig = CONFIG) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(table_artifact(trial_table(trials, config, max_rows=MAX_ROWS)))
    return rows


# --- the table ---


def test_table_has_the_best_trial_first_and_those_without_a_value_behind() -> None:
    trials = trials_of(
        Trial(0, {"x": 0.1}),
        finished(1, 0.5, x=0.123456789),
        finished(2, 0.25, x=0.2),
        Trial(3, {"x": 0.4}, TrialState.FAILED, cause="no"),
        Trial(4, {"x": 0.5}, TrialState.RUNNING, 0.3, tries=2),
        finished(5, float("nan")),
    )
    rows = [[*row.values()][:4] for row in rows_of(trials)]
    assert rows == [
        ["2", "finished", "0.25", "0.2"],
        ["4", "running (try 2)", "0.3", "0.5"],
        ["1", "finished", "0.5", "0.12346"],
        ["0", "waiting", "", "0.1"],
        ["3", "failed", "", "0.4"],
        ["5", "finished", "NaN", "0.5"],
    ]
    assert [*rows_of(trials)[0]] == ["trial", "state", "loss", "x", "item"]


def test_table_of_thousands_of_trials_has_the_best_and_the_newest_that_wait_or_run() -> None:
    ended = [finished(number, float(5_000 - number)) for number in range(5_000)]
    waiting = [Trial(number, {"x": 0.5}) for number in range(5_000, 5_060)]
    table = trial_table(trials_of(*ended, *waiting), CONFIG, max_rows=MAX_ROWS)
    assert [row.trial.number for row in table.rows] == [*range(4_999, 4_924, -1), *range(5_035, 5_060)]
    assert table.left_out == 5_060 - MAX_ROWS
    assert len(table_artifact(table)) < 20_000


def test_cells_of_the_table_are_short_plain_and_none_hides_another() -> None:
    names = {
        "state": "[x](http://elsewhere.example.com)",
        "trial": "<b>" * 100,
        "loss": True,
        "g": {"a": None, "b": [1]},
    }
    rows = rows_of(trials_of(finished(0, 1.0, **names)))
    assert [*rows[0].values()][:3] == ["0", "finished", "1"]
    assert len(rows[0]) == 4 + 5
    assert rows[0]["state (2)"] == "[x] (http://elsewhere.example.com)"
    assert len(rows[0]["trial (2)"]) == MAX_CHARS
    assert (rows[0]["g.a"], rows[0]["g.b"], rows[0]["loss (2)"]) == ("null", "[1]", "true")


def test_table_of_many_parameters_shows_those_that_vary_and_the_item() -> None:
    shapes: dict[str, Any] = {f"a{k:02}": {"value": k} for k in range(40)} | {"z": {"values": [1, 2]}}
    config = parse_sweep({"method": "grid", "metric": {"name": "loss"}, "parameters": shapes})
    (row,) = rows_of(trials_of(finished(0, 1.0, **dict.fromkeys(shapes, 1))), config)
    assert [*row][:4] == ["trial", "state", "loss", "z"]
    assert [*row][-1] == "item"
    assert len(row) == 3 + MAX_PARAMS + 1


# --- on the server ---


async def page(sweep: Sweep) -> Item | None:
    """The sweep's flow run."""
    return await sweep.api.server.read_item(sweep.id)


async def shown(api: InMemoryApi, sweep_id: UUID, key: Callable[[UUID], str] = table_key) -> list[dict[str, Any]]:
    """The tables on the sweep's page, or what else has this key."""
    found = await api.server.list_artifacts(sweep_id)
    return [artifact for artifact in found if artifact["key"] == key(sweep_id)]


async def test_sweep_that_has_ended_shows_one_table_of_all_its_trials(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent():
        await sweep.run()
        (artifact,) = await shown(job_api, sweep.id)
        (report,) = await shown(job_api, sweep.id, report_key)
    assert (report["type"], report["description"]) == ("markdown", "Report with charts. Best: trial 2, loss 0.")
    assert "`completed`" in report["data"]
    assert "All 4 trials have ended." in report["data"]
    assert "### Best: [trial 2](/runs/flow-run/" in report["data"]
    assert artifact["type"] == "table"
    assert artifact["description"] == "Trials: 4 finished; the best first."
    assert [row["trial"] for row in json.loads(artifact["data"])] == ["2", "1", "3", "0"]


async def test_second_and_next_scheduler_go_on_with_the_table_that_is_there(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=4) as sweep:
        await sweep.die_once_it_has_queued()
        await _until_shown(job_api, sweep)
        (first,) = await shown(job_api, sweep.id)
        async with sweep.agent():
            await asyncio.gather(sweep.run(), sweep.run())
        (last,) = await shown(job_api, sweep.id)
    assert first["id"] == last["id"]
    assert first["description"] != last["description"] == "Trials: 4 finished; the best first."


async def _until_shown(api: InMemoryApi, sweep: Sweep) -> None:
    """Show the trials as they are now, unless a scheduler that was killed has shown some."""
    if not await shown(api, sweep.id):
        board = SweepBoard(api.server, sweep.id, CONFIG)
        board.update(await page(sweep), trials_of(Trial(0, {})))
        await board.finish(END)


class Counter:
    """Counts the writes of artifacts, and may fail them."""

    def __init__(self, api: InMemoryApi, error: Exception | None = None) -> None:
        self.writes = 0
        self._error = error
        api.server.before_call = self

    async def __call__(self, method: str) -> None:
        if method == "put_artifact":
            self.writes += 1
            if self._error is not None:
                raise self._error


async def test_changes_within_the_pause_are_one_write_and_none_is_written_twice(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        counter = Counter(job_api)
        board = SweepBoard(job_api.server, sweep.id, CONFIG, pause_seconds=PATIENCE_SECONDS)
        async with board.writing():
            for number in range(50):
                board.update(await page(sweep), trials_of(*(finished(k, 1.0) for k in range(number + 1))))
                await asyncio.sleep(0)
            await board.finish(END)
            at_most = counter.writes
            assert 2 <= at_most <= 3, "the table once or twice, and the report once"
            await board.finish(END)
            assert counter.writes == at_most, "nothing has changed"
        (artifact,) = await shown(job_api, sweep.id)
        assert "50 finished" in artifact["description"]


async def test_report_is_written_now_and_then_while_the_sweep_runs(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        hurried = SweepBoard(job_api.server, sweep.id, CONFIG, pause_seconds=0.01, report_seconds=0.0)
        async with hurried.writing():
            hurried.update(await page(sweep), trials_of(finished(0, 0.25)))
            (report,) = await asyncio.wait_for(_until_reported(job_api, sweep), PATIENCE_SECONDS)
        assert "`running`" in report["data"]
        assert "0.25" in report["data"]


async def test_links_of_the_report_have_the_path_of_the_ui(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        board = SweepBoard(job_api.server, sweep.id, CONFIG, ui_path="/prefect/")
        board.update(await page(sweep), trials_of(finished(0, 0.25)))
        await board.finish(END)
        (report,) = await shown(job_api, sweep.id, report_key)
    assert "](/prefect/runs/flow-run/" in report["data"]
    assert "](/runs/" not in report["data"]


async def _until_reported(api: InMemoryApi, sweep: Sweep) -> list[dict[str, Any]]:
    while True:
        if found := await shown(api, sweep.id, report_key):
            return found
        await asyncio.sleep(0.005)


async def test_artifact_that_somebody_has_deleted_is_made_again(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep:
        board = SweepBoard(job_api.server, sweep.id, CONFIG)
        board.update(await page(sweep), trials_of(finished(0, 1.0)))
        await board.finish(END)
        job_api.server._store.artifacts.clear()
        board.update(await page(sweep), trials_of(finished(0, 1.0), finished(1, 2.0)))
        await board.finish(END)
        (artifact,) = await shown(job_api, sweep.id)
        assert "2 finished" in artifact["description"]


async def test_page_that_cannot_be_written_hurts_no_sweep_and_is_logged_once(
    job_api: InMemoryApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(job_api, method="random", run_cap=50) as sweep:
        counter = Counter(job_api, ValueError("the server refuses it"))
        scheduler = sweep.scheduler()
        running = asyncio.create_task(scheduler.run())
        await sweep.until_told("trial 1 waiting")
        scheduler.stop()
        end = await asyncio.wait_for(running, PATIENCE_SECONDS)
        assert counter.writes >= 1
        board = SweepBoard(job_api.server, sweep.id, CONFIG)
        for number in range(3):
            board.update(await page(sweep), trials_of(*(finished(k, 1.0) for k in range(number + 1))))
            await board.finish(END)
    assert end.message == "The sweep was stopped."
    assert caplog.text.count("the server refuses it") == 2, "once by each scheduler"


async def test_page_of_a_failed_sweep_shows_its_failed_trials(job_api: InMemoryApi) -> None:
    async with opened(job_api, run_cap=1) as sweep, sweep.agent(fails):
        await sweep.run()
        (artifact,) = await shown(job_api, sweep.id)
    assert [row["state"] for row in json.loads(artifact["data"])] == ["failed"]


def no_value(params: Mapping[str, Any]) -> Mapping[str, float]:
    """One trial diverges."""
    return {"loss": float("inf")} if params["lr"] == 0.2 else loss(params)


async def test_diverged_trial_is_shown_as_text_that_json_has(job_api: InMemoryApi) -> None:
    async with opened(job_api) as sweep, sweep.agent(no_value):
        await sweep.run()
        (artifact,) = await shown(job_api, sweep.id)
    assert json.loads(artifact["data"], parse_constant=pytest.fail)[-1]["loss"] == "Infinity"
