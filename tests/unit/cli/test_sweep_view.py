"""`prefect-launch sweep show --watch` and `report`: a sweep live, as lines in a pipe, and as a file."""

from __future__ import annotations

import asyncio
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.cli.sweep_view import ChangeLines, live_view, print_sweep, until_ended
from prefect_launch.core.states import ItemState
from prefect_launch.sweeps.config import parse_sweep
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.report import SweepReport
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import PATIENCE_SECONDS, Sweep, finished, loss, opened, trials_of


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments])


def run_sweep(api: InMemoryApi) -> str:
    """Run a sweep to its end: trial 1 fails, trial 2 is the best; return its id."""

    async def run() -> str:
        async with opened(api, name="mine") as made, made.agent(lambda p: None if p["lr"] == 0.2 else loss(p)):
            await made.run()
            await made.enter(ItemState.COMPLETED)
            return str(made.id)

    return asyncio.run(run())


def report_of(*trials: Trial) -> SweepReport:
    config = parse_sweep(
        {"method": "random", "metric": {"name": "loss"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}}
    )
    found = trials_of(*trials)
    return SweepReport("mine", found.items[0].item.id, "running", "", config, found)


# --- watch ---


async def test_watch_in_a_pipe_has_a_line_for_each_change_and_ends_with_the_sweep(
    job_api: InMemoryApi, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(job_api, name="mine") as made:
        lines = ChangeLines()
        watching = asyncio.create_task(until_ended(job_api, "mine", lines.show, pause_seconds=0.01))
        async with made.agent():
            await made.run()
            await _end(made)
            report = await asyncio.wait_for(watching, PATIENCE_SECONDS)
    told = capsys.readouterr().out.splitlines()
    assert report.state == "completed"
    assert told[0].startswith(("trial 0 ", "sweep mine running"))
    assert told.count("trial 2 finished, loss 0: lr=0.3") == 1
    assert len(told) == len(set(told)), "a line for a change, and none for what stays"
    assert told[-2:] == ["sweep mine completed: All 4 trials have ended.", "best: trial 2 finished, loss 0: lr=0.3"]


async def _end(made: Sweep) -> None:
    """End the sweep's flow run, as its flow does."""
    from prefect_launch.server.values import State

    await made.api.server.propose(made.id, State.of(ItemState.COMPLETED, "All 4 trials have ended."), force=True)


async def test_watch_goes_on_when_the_server_was_away(job_api: InMemoryApi) -> None:
    async with opened(job_api, name="mine") as made:
        shown, asked = asyncio.Event(), asyncio.Queue[str]()
        watching = asyncio.create_task(until_ended(job_api, "mine", lambda _: shown.set(), pause_seconds=0.01))
        await asyncio.wait_for(shown.wait(), PATIENCE_SECONDS)
        job_api.server.down()
        job_api.server.before_call = asked.put
        # It has failed once when it asks for the second time.
        for _ in range(2):
            await asyncio.wait_for(asked.get(), PATIENCE_SECONDS)
        job_api.server.before_call = None
        job_api.server.up()
        await _end(made)
        report = await asyncio.wait_for(watching, PATIENCE_SECONDS)
    assert report.state == "completed"


def test_watch_of_a_sweep_that_has_ended_ends_at_once(job_api: InMemoryApi) -> None:
    run_sweep(job_api)
    assert "best: trial 2 finished, loss 0: lr=0.3" in sweep("show", "mine", "--watch").stdout
    told = json.loads(sweep("show", "mine", "--watch", "--json").stdout)
    assert (told["state"], told["best"], told["counts"]) == ("completed", 2, {"finished": 3, "failed": 1})


def test_live_view_fits_into_the_terminal_with_the_best_trials_and_what_runs() -> None:
    report = report_of(*(finished(k, 1.0 / (k + 1)) for k in range(500)), Trial(500, {"x": 0.5}))
    screen = StringIO()
    console = Console(file=screen, width=80, height=24, force_terminal=True, color_system=None)
    console.print(live_view(report, console))
    lines = screen.getvalue().splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    assert "501: 500 finished, 1 waiting" in screen.getvalue()
    assert any(line.split()[:2] == ["499", "finished"] for line in lines)
    assert any(line.split()[:2] == ["500", "waiting"] for line in lines)
    assert "more" in lines[-1]


def test_show_has_the_course_of_the_metric_as_a_sparkline(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(report_of(finished(0, 1.0), finished(1, 0.0), finished(2, float("nan"))))
    assert ["history", "█▁×"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_show_tells_why_trials_failed_once_for_each_cause(capsys: pytest.CaptureFixture[str]) -> None:
    causes = ("The job failed after 3 s: exit code 1.", "The job failed after 4 s: exit code 1.", "Killed.")
    keys = ("[1]", "[1]", None)
    failed = (
        Trial(k, {"x": 0.5}, TrialState.FAILED, cause=cause, cause_key=key)
        for k, (cause, key) in enumerate(zip(causes, keys, strict=True))
    )
    print_sweep(report_of(*failed))
    assert capsys.readouterr().out.splitlines()[-2:] == [f"2 failed: {causes[0]}", "1 failed: Killed."]


# --- report ---


def test_report_is_a_file_named_after_the_sweep_or_as_asked_or_on_standard_output(
    job_api: InMemoryApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / "reports"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    sweep_id = run_sweep(job_api)
    told = sweep("report", "mine")
    named = tmp_path / f"sweep-{sweep_id[-8:]}.html"
    assert named.name in told.stdout
    html = named.read_text()
    assert "Sweep mine" in html
    assert html.count("<svg") == 3
    (tmp_path / "other.html").write_text("old")
    sweep("report", "mine", "-o", "other.html")
    assert (tmp_path / "other.html").read_text() == html
    assert sweep("report", "mine", "-o", "-").stdout == html
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["other.html", named.name])


@pytest.mark.parametrize("output", ["", "missing/report.html"])
def test_report_that_cannot_be_written_is_refused_with_its_path(
    job_api: InMemoryApi, tmp_path: Path, output: str
) -> None:
    run_sweep(job_api)
    tmp_path = tmp_path / "reports"
    tmp_path.mkdir()
    refused = sweep("report", "mine", "-o", str(tmp_path / output))
    assert str(tmp_path / output) in str(refused.exception)
    assert "Give another file to -o" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


def test_report_for_programs_has_importance_and_failures(job_api: InMemoryApi) -> None:
    run_sweep(job_api)
    told = json.loads(sweep("report", "mine", "--json").stdout)
    assert told["best"] == 2
    assert told["failures"] == [{"cause": "[run] The job ended with exit code 3.", "trials": [1]}]
    assert told["importance"]["values"] == 3
