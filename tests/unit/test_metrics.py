"""The history of a metric: a set of steps, bounded, kept through JSON; its lines, its chart and its sparkline."""

from __future__ import annotations

import base64
import json
import math
import random
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from prefect_launch.cli.item_view import metrics_in_words
from prefect_launch.core.metric_chart import chart_svg, metrics_markdown
from prefect_launch.core.metric_lines import blank_metrics, without_blanks, without_metrics
from prefect_launch.core.metrics import (
    MAX_METRICS,
    MAX_POINTS,
    Metrics,
    Series,
    format_number,
    parse_line,
    sparkline,
)
from prefect_launch.core.validation import json_fault
from prefect_launch.errors import LaunchError
from prefect_launch.inputs.metrics import MAX_LINE_BYTES
from prefect_launch.spec.launch_spec import parse_spec


def series_of(values: list[float]) -> Series:
    series = Series()
    for step, value in enumerate(values):
        series.add(step, value)
    return series


# --- histories ---


def test_steps_are_a_set_and_the_last_value_of_a_step_counts() -> None:
    lines = [(3, 0.3), (1, 0.9), (2, 0.5), (1, 0.1), (3, 0.3)]
    series = Series()
    for step, value in lines * 2:
        series.add(step, value)

    assert series.points() == [(1, 0.1), (2, 0.5), (3, 0.3)]
    assert (series.count, series.last, series.low, series.high) == (3, (3, 0.3), (1, 0.1), (2, 0.5))


def test_long_history_is_thinned_evenly_and_keeps_first_last_lowest_and_highest() -> None:
    values = [float(number) for number in range(10_000)]
    values[4_321], values[7_777] = -5.0, 50_000.0
    series = series_of(values)

    points = series.points()
    steps = [step for step, _ in points]
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS + 3
    assert {0, 9_999, 4_321, 7_777} <= set(steps)
    assert series.count == 10_000
    assert max(late - early for early, late in pairwise(steps)) <= series.stride
    assert all(values[step] == value for step, value in points)


def test_thinned_history_that_is_read_again_stays_as_it_is() -> None:
    values = [random.Random(step).random() for step in range(3_000)]
    once, twice = series_of(values), series_of(values)
    for step, value in enumerate(values):
        twice.add(step, value)

    assert twice == once


def test_values_that_are_not_finite_are_neither_lowest_nor_highest() -> None:
    series = series_of([1.0, math.nan, math.inf, -math.inf, 2.0, math.nan])

    assert (series.low, series.high) == ((0, 1.0), (4, 2.0))
    assert series.last is not None
    assert math.isnan(series.last[1])


def test_history_goes_through_the_json_of_the_server_unchanged() -> None:
    metrics = Metrics(attempt=2, outputs={"acc": 1.0}, wandb={"loss": math.inf})
    for step in range(2_000):
        metrics.add(step, {"loss": math.nan if step % 7 == 0 else 1 / (step + 1), "lr": 1e-300 * step})

    data = metrics.dump()
    assert json_fault(data) is None
    assert json.loads(orjson.dumps(data)) == json.loads(json.dumps(data))
    assert Metrics.load(json.loads(json.dumps(data))).dump() == data


@pytest.mark.parametrize(
    "data", [None, [], {}, {"metrics": 3}, {"attempt": 1, "metrics": {"a": {"count": 1}}, "outputs": {}, "wandb": {}}]
)
def test_artifact_of_somebody_else_holds_no_metrics(data: Any) -> None:
    with pytest.raises(ValueError, match="metric"):
        Metrics.load(data)


def test_value_of_a_metric_is_its_output_then_its_last_step_then_the_summary() -> None:
    metrics = Metrics(wandb={"a": 3.0, "b": 3.0, "c": 3.0}, outputs={"a": 1.0})
    metrics.add(5, {"a": 2.0, "b": 2.0})

    assert [metrics.value(name) for name in "abcd"] == [1.0, 2.0, 3.0, None]
    assert metrics.names == ["a", "b", "c"]


def test_metrics_of_more_names_than_are_kept_are_left_out() -> None:
    metrics = Metrics()
    assert metrics.add(0, {f"m{number}": 1.0 for number in range(MAX_METRICS)})
    assert not metrics.add(1, {"m0": 2.0, "one-more": 1.0})

    assert len(metrics.names) == MAX_METRICS
    assert metrics.value("m0") == 2.0


def test_what_an_attempt_has_reported_stays_up_to_where_the_next_begins() -> None:
    metrics = Metrics()
    for step in range(10):
        metrics.add(step, {"loss": 10.0 - step})
    metrics.add(9, {"late": 1.0})

    earlier = metrics.before(6)
    assert earlier.series["loss"].points() == [(step, 10.0 - step) for step in range(6)]
    assert (earlier.series["loss"].count, earlier.series["loss"].low) == (6, (5, 5.0))
    assert earlier.names == ["loss"]
    assert not metrics.before(0)


# --- lines ---


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xc1\xc1", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"loss": 1}', "'step'"),
        (b'{"step": -1, "loss": 1}', "'step'"),
        (b'{"step": true, "loss": 1}', "'step'"),
        (b'{"step": 1.5, "loss": 1}', "'step'"),
        (b'{"step": 1180591620717411303424, "loss": 1}', "'step'"),
        (b'{"step": 1, "loss": "low"}', "not a number"),
        (b'{"step": 1, "loss": true}', "not a number"),
        (b'{"step": 1, "loss": [1]}', "not a number"),
        (b'{"step": 1, "": 1}', "name"),
        (b'{"step": 1, "a\\nb": 1}', "name"),
        (b'{"step": 1, "a": ' + b"1" * 5_000 + b"}", "longer than"),
        (b'{"step": 1, "' + b"n" * 101 + b'": 1}', "name"),
        ('{"step": 1, "\u202eloss": 1}'.encode(), "name"),
        (b"[" * 4_000, "not JSON|nested"),
    ],
)
def test_line_that_is_none_of_metrics_is_refused_with_the_reason(line: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_line(line)


def test_numbers_beyond_64_bits_become_numbers_that_the_server_can_send() -> None:
    step, values = parse_line(b'{"step": 1, "a": 1180591620717411303424, "b": 9223372036854775808, "c": 1e999, "d": 3}')

    assert step == 1
    assert values == {"a": 2.0**70, "b": 2.0**63, "c": math.inf, "d": 3}
    metrics = Metrics()
    metrics.add(step, values)
    assert json_fault(metrics.dump()) is None


def test_lines_of_metrics_are_taken_out_of_a_log_and_nothing_else() -> None:
    line = b'::launch-metric {"step": 1}\n'
    log = b"one\n" + line + b"two\r 50%" + line + b"\r100%\n" + line * 2 + "日\n".encode()

    assert without_metrics(log) == b"one\ntwo\r 50%\r100%\n" + "日\n".encode()
    assert len(blank_metrics(log)) == len(log)
    assert without_blanks(blank_metrics(b"\xfe\xff\xc1 no text\n")) == b"\xc0\xc0\xc1 no text\n"
    whole = b"::launch-metric " + b"x" * MAX_LINE_BYTES + b"y\n"
    assert without_metrics(whole) == whole


# --- what people look at ---


@pytest.mark.parametrize(("columns", "drawn"), [(None, 24), (50, 15), (20, 8)])
def test_line_of_a_metric_fits_the_terminal_by_a_shorter_sparkline(columns: int | None, drawn: int) -> None:
    series = Series()
    for step in range(100):
        series.add(step, float(step))

    line = metrics_in_words(Metrics(100, {"loss": series}), columns)

    assert line.startswith("loss  99  ▁")
    assert line.endswith("█  step 99, low 0, high 99")
    assert sum(each in "▁▂▃▄▅▆▇█" for each in line) == drawn


def test_sparkline_has_a_block_for_each_part_of_the_history() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, math.nan, 2.0]) == "▁×█"
    assert sparkline([5.0, 5.0]) == "▅▅"
    assert sparkline([]) == ""
    assert len(sparkline([float(number) for number in range(1_000)])) == 24
    assert sparkline([-1e308, 1e308]) == "▁█"


def test_number_is_written_with_the_digits_that_count() -> None:
    assert [format_number(value) for value in (0.123456789, 3, math.nan, -math.inf, 1e-9)] == [
        "0.12346", "3", "NaN", "-Infinity", "1e-09"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [[1.0], [1.0, 1.0], [math.nan], [math.nan, 1.0, math.inf, 2.0, 3.0], [-1e308, 1e308], [0.0] * 3_000],
    ids=["one", "equal", "nan", "broken", "huge", "long"],
)
def test_chart_is_a_whole_drawing_whatever_the_values_are(values: list[float]) -> None:
    drawing = chart_svg({"<loss> & 'more'": series_of(values), "b": series_of([1.0, 2.0])})

    tree = ElementTree.fromstring(drawing)
    texts = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "<loss> & 'more'" in texts
    assert "nan" not in drawing.lower().replace("red: nan or infinite", "")


def test_markdown_of_metrics_holds_the_chart_and_a_row_for_each_metric() -> None:
    metrics = Metrics(outputs={"accuracy": 0.9})
    for step in range(5):
        metrics.add(step, {"loss": 1.0 / (step + 1), "a|b`c": 1.0})

    text = metrics_markdown(metrics, "r1")
    image = text.partition("base64,")[2].partition(")")[0]
    assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0] == "| `loss` | 0.2 | 4 | 0.2 at 4 | 1 at 0 | 5 | █▃▂▁▁ |"
    assert rows[1].startswith("| `a\\|b'c` | 1 |")
    assert rows[2].startswith("| `accuracy` | 0.9 |")


def test_chart_of_as_many_metrics_as_are_kept_is_bounded() -> None:
    metrics = Metrics()
    for step in range(3_000):
        metrics.add(step, {f"metric-{number}": random.Random(step * number).random() for number in range(MAX_METRICS)})

    assert len(metrics_markdown(metrics, "r1")) < 200_000
    assert len(json.dumps(metrics.dump())) < 1_500_000


# --- the pattern ---


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ({"name": "loss", "pattern": "loss: ("}, "no regular expression"),
        ({"name": "loss", "pattern": "loss"}, "has 0 groups"),
        ({"name": "loss", "pattern": "(a)(b)"}, "has 2 groups"),
        ({"name": "loss", "pattern": "(" + "a" * 500 + ")"}, "500"),
        ({"name": "step", "pattern": "(a)"}, "'step'"),
        ({"name": "", "pattern": "(a)"}, "1 character"),
        ({"name": "loss"}, "pattern"),
        ({"name": "loss", "pattern": "(a)", "goal": "minimize"}, "goal"),
        ("loss", "metric"),
    ],
)
def test_pattern_that_cannot_find_a_number_is_refused_before_anything_is_queued(metric: Any, words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        parse_spec({"job": "train", "metric": metric})
