"""Runs side by side: what differs, what they came to, and the page of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from prefect_launch import create_job, launch_add
from prefect_launch.cli.main import app
from prefect_launch.client.compare import CODE, ENVIRONMENT, RESULTS, Comparison, compare_runs
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.client.run_filter import INPUTS
from prefect_launch.core.metric_chart import lines_svg
from prefect_launch.core.metrics import Series
from prefect_launch.errors import SpecError
from prefect_launch.testing import InMemoryApi
from tests.support.ended_runs import end, queues

Command = Callable[..., Result]

api = pytest.fixture(queues)


@pytest.fixture
def pair(api: InMemoryApi, tmp_path: Path) -> tuple[QueuedRun, QueuedRun]:
    runs = []
    for number, lr in enumerate((0.1, 0.5)):
        create_job(f"busybox:{number}", "image", name="train")
        config = {"overrides": {"run_config": {"lr": lr, "epochs": 3}, "args": ["--fast"]}}
        run = launch_add(job="train", queue_name="gpu", config=config, name=f"run-{number}", priority=number + 1)
        end(api, run, tmp_path / run.name, {"accuracy": 0.8 + number / 10}, loss=2.0 - number)
        runs.append(run)
    return runs[0], runs[1]


def compared(api: InMemoryApi, *runs: QueuedRun) -> Comparison:
    items = [run.item for run in runs]
    return api.call(lambda session: compare_runs(api, session, items))


def test_code_is_told_apart_by_the_start_of_its_digest(api: InMemoryApi, tmp_path: Path) -> None:
    runs = []
    for number in range(2):
        (tmp_path / "train.py").write_text(f"print({number})")
        create_job(str(tmp_path), "code", name="train", entrypoint="python train.py")
        runs.append(launch_add(job="train", queue_name="gpu"))

    (row,) = [row for row in compared(api, *runs).rows if (row.section, row.name) == (CODE, "code")]

    assert row.differs
    assert all(re.fullmatch("[0-9a-f]{12}", value) for value in row.values)


def test_comparison_tells_what_differs_and_what_each_came_to(
    api: InMemoryApi, pair: tuple[QueuedRun, QueuedRun]
) -> None:
    rows = {(row.section, row.name): row for row in compared(api, *pair).rows}

    differ = {key: row.values for key, row in rows.items() if row.differs}
    assert differ[INPUTS, "lr"] == (0.1, 0.5)
    assert differ[CODE, "job"] == ("default/default/train:v0", "default/default/train:v1")
    assert differ[CODE, "image"] == ("busybox:0", "busybox:1")
    assert differ[ENVIRONMENT, "priority"] == (1, 2)
    assert differ[RESULTS, "outputs.accuracy"] == (0.8, 0.9)
    assert differ[RESULTS, "metrics.loss"] == (2.0, 1.0)
    same = {key: row.values[0] for key, row in rows.items() if not row.differs}
    assert same[INPUTS, "epochs"] == 3
    assert same[CODE, "args"] == ["--fast"]
    assert same[ENVIRONMENT, "queue"] == "gpu"


def test_run_whose_job_was_deleted_is_compared_by_what_it_asked_for(
    api: InMemoryApi, pair: tuple[QueuedRun, QueuedRun]
) -> None:
    without = launch_add(docker_image="busybox:1", queue_name="gpu", name="no-job")

    rows = {(row.section, row.name): row.values for row in compared(api, pair[0], without).rows}

    assert rows[CODE, "image"] == ("busybox:0", "busybox:1")
    assert rows[CODE, "job"] == ("default/default/train:v0", None)
    assert rows[RESULTS, "state"] == ("completed", "queued")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_one_run_is_no_comparison(api: InMemoryApi, pair: tuple[QueuedRun, QueuedRun], count: int) -> None:
    with pytest.raises(SpecError, match="two different runs or more"):
        compared(api, *[pair[0]] * count)


def test_command_shows_what_differs_and_counts_the_rest(pair: tuple[QueuedRun, QueuedRun]) -> None:
    def command(*arguments: str) -> str:
        return CliRunner().invoke(app, ["item", "compare", "run-0", "run-1", *arguments], env={"COLUMNS": "100"}).stdout

    shown = command()
    assert [line.split()[:4] for line in shown.splitlines()[:2]] == [
        ["OF", "WHAT", "run-0", "run-1"],
        ["inputs", "lr", "0.1", "0.5"],
    ]
    assert "epochs" not in shown
    assert "--all shows them." in shown
    assert "epochs" in command("--all")
    assert {"section": "inputs", "name": "lr", "differs": True, "values": [0.1, 0.5]} in json.loads(command("--json"))[
        "rows"
    ]


def test_page_has_the_table_the_charts_and_links_and_loads_nothing(
    pair: tuple[QueuedRun, QueuedRun], tmp_path: Path
) -> None:
    page = tmp_path / "runs.html"

    result = CliRunner().invoke(app, ["item", "compare", "run-0", "run-1", "--html", str(page)])

    assert result.exit_code == 0
    html = page.read_text()
    assert f'<a href="{pair[0].url}">run-0</a>' in html
    assert "<td>lr</td><td>0.1</td><td>0.5</td>" in html
    assert html.count("<svg") == 1
    assert "default-src 'none'" in html
    assert "src=" not in html


def test_page_that_cannot_be_written_is_refused(pair: tuple[QueuedRun, QueuedRun], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["item", "compare", "run-0", "run-1", "--html", str(tmp_path)])

    assert result.exit_code != 0
    assert "Give another file to --html" in str(result.exception)


def test_chart_has_a_line_of_its_own_colour_for_each_series_that_has_values() -> None:
    first, second = Series(), Series()
    for step in range(3):
        first.add(step, float(step))
        second.add(step + 5, float("nan") if step == 1 else 9.0)

    drawn = ElementTree.fromstring(lines_svg({"loss": {"a": first, "none": Series(), "b": second}}))

    lines = [each for each in drawn.iter() if each.tag.endswith(("polyline", "circle"))]
    assert len(lines) == 3
    assert len({each.get("stroke") or each.get("fill") for each in lines}) == 2
    texts = [each.text for each in drawn.iter() if each.tag.endswith("text")]
    assert texts[:6] == ["loss", "0", "9", "0", "step", "7"]
