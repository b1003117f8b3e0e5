"""A job reports metrics while it runs: a marked line on its standard output, and the kept copy among its outputs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.core.metrics import parse_line
from prefect_launch.errors import JobCodeError
from prefect_launch.inputs import log_metrics, metrics
from prefect_launch.inputs.metrics import MARK, MAX_LINE_BYTES
from tests.unit.inputs.conftest import Launch
from tests.unit.inputs.test_outputs import Scalar


@pytest.fixture(autouse=True)
def _first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_last_step", -1)


def reported(text: str) -> list[tuple[int, dict[str, float]]]:
    lines = text.splitlines()
    assert all(line.startswith(MARK) for line in lines)
    return [parse_line(line.removeprefix(MARK).encode()) for line in lines]


def test_metrics_are_a_marked_line_and_are_kept_among_the_outputs(
    launched: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched()
    log_metrics(step=3, loss=0.25, accuracy=Scalar(0.5))
    log_metrics(step=4, **{"val/loss": True})

    assert reported(capsys.readouterr().out) == [(3, {"loss": 0.25, "accuracy": 0.5}), (4, {"val/loss": 1})]
    kept = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 3, "loss": 0.25, "accuracy": 0.5}, {"step": 4, "val/loss": 1}]


def test_step_that_is_left_out_is_the_one_after_the_last(launched: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launched()
    log_metrics(loss=1)
    log_metrics(step=7, loss=2)
    log_metrics(loss=3)
    log_metrics()

    assert [step for step, _ in reported(capsys.readouterr().out)] == [0, 7, 8]


def test_numbers_that_json_or_the_server_does_not_have_are_reported(
    launched: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched()
    log_metrics(a=math.nan, b=math.inf, c=-math.inf, d=2**70, e=10**400)

    text = capsys.readouterr().out
    assert json.loads(text.removeprefix(MARK)) == {
        "step": 0, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 2.0**70, "e": "Infinity"
    }  # fmt: skip
    [(_, values)] = reported(text)
    assert math.isnan(values["a"])
    assert (values["b"], values["c"]) == (math.inf, -math.inf)


def test_call_of_many_metrics_writes_lines_that_are_each_bounded(
    launched: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched()
    values = {f"metric-{number}-{'日' * 20}": number / 7 for number in range(300)}
    log_metrics(step=1, **values)

    text = capsys.readouterr().out
    assert max(len(line) + 1 for line in text.splitlines()) <= MAX_LINE_BYTES
    lines = reported(text)
    assert {step for step, _ in lines} == {1}
    assert {name: value for _, part in lines for name, value in part.items()} == values


@pytest.mark.parametrize(
    ("step", "values", "words"),
    [
        (-1, {"a": 1}, "The step -1 must be"),
        (1.5, {"a": 1}, "The step 1.5 must be"),
        (True, {"a": 1}, "The step True must be"),
        (2**60, {"a": 1}, "must be a whole number from 0 to"),
        (1, {"a": "text"}, "'a' is a str"),
        (1, {"a": None}, "'a' is a NoneType"),
        (1, {"a": Scalar(1.0, 2.0)}, "more than one value"),
        (1, {"a\nb": 1}, "The name of a metric"),
        (1, {"": 1}, "The name of a metric"),
        (1, {"a" * 101: 1}, "The name of a metric"),
    ],
)
def test_metric_that_is_none_is_refused_and_nothing_is_written(
    launched: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: Any, values: dict[str, Any], words: str
) -> None:
    launched()
    with pytest.raises(JobCodeError, match=words):
        log_metrics(step=step, **values)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_metrics_are_written_by_hand_too(job_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_metrics(loss=1)

    assert reported(capsys.readouterr().out) == [(0, {"loss": 1})]
    assert (job_dir / "outputs/metrics.jsonl").exists()
