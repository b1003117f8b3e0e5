"""Charts of a sweep: what stands where, whatever the values are and however many trials there are."""

from __future__ import annotations

import math
import random
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from prefect_launch.sweeps.axes import CategoryAxis, NumberAxis, metric_axis, number_axis, parameter_axis
from prefect_launch.sweeps.charts import MAX_AXES, MAX_LINES, WIDTH, history_svg, importance_svg, parallel_svg
from prefect_launch.sweeps.config import Metric, SweepConfig, parse_sweep
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.importance import Importance, Importances, measure_importance
from prefect_launch.sweeps.parameters import parse_parameters
from tests.support.sweeping import finished

SVG = "{http://www.w3.org/2000/svg}"
BEST = "#ea580c"
SHAPES: dict[str, Any] = {
    "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
    "layers": {"min": 1, "max": 5},
    "optimiser": {"values": ["adam", "sgd", "rms"]},
    "constant": {"value": 7},
}


def config_of(shapes: dict[str, Any] = SHAPES, **more: Any) -> SweepConfig:
    return parse_sweep({"method": "random", "metric": {"name": "loss"}, "parameters": shapes, **more})


def params(lr: float = 0.01, layers: int = 3, optimiser: str = "sgd") -> dict[str, Any]:
    return {"lr": lr, "layers": layers, "optimiser": optimiser, "constant": 7}


def read(svg: str) -> ElementTree.Element:
    """Read a drawing: it is whole, and all in it lies inside of it."""
    tree = ElementTree.fromstring(svg)
    height = float(tree.attrib["height"])
    for text in tree.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= WIDTH
        assert 0 <= float(text.attrib["y"]) <= height
    for path in tree.iter(f"{SVG}path"):
        assert "nan" not in path.attrib["d"]
        assert "inf" not in path.attrib["d"]
    return tree


def texts(tree: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in tree.iter(f"{SVG}text")]


def points(tree: ElementTree.Element, **attributes: str) -> list[tuple[float, float]]:
    """The points of the paths with these attributes, of `M` and `L`."""
    found = []
    for path in tree.iter(f"{SVG}path"):
        if all(path.attrib.get(name.replace("_", "-")) == value for name, value in attributes.items()):
            found += re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"])
    return [(float(x), float(y)) for x, y in found]


def text_at(tree: ElementTree.Element, words: str) -> tuple[float, float]:
    (found,) = [text for text in tree.iter(f"{SVG}text") if text.text == words]
    return float(found.attrib["x"]), float(found.attrib["y"])


# --- axes ---


def test_linear_axis_has_its_ends_and_round_marks_between() -> None:
    axis = NumberAxis(0.13, 1.07)
    assert [words for _, words in axis.ticks] == ["0.13", "0.4", "0.6", "0.8", "1.07"]
    assert axis.place(0.6) == pytest.approx(0.5)


def test_logarithmic_axis_has_the_powers_of_ten_at_equal_distances() -> None:
    axis = NumberAxis(1e-4, 1.0, is_log=True)
    assert [(round(share, 3), words) for share, words in axis.ticks] == [
        *((0.0, "0.0001"), (0.25, "0.001"), (0.5, "0.01"), (0.75, "0.1"), (1.0, "1"))
    ]


def test_marks_are_written_in_few_characters() -> None:
    assert [words for _, words in NumberAxis(1, 1e6).ticks] == ["1", "200k", "400k", "600k", "800k", "1M"]
    assert [words for _, words in number_axis([5.9988e-06, 9.5e20], is_log=False).ticks][::9] == ["6e-06"]
    ticks = NumberAxis(-1e9, 9_999).ticks
    assert (ticks[0][1], ticks[-1][1]) == ("-1G", "9999")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "text", True, [1], -5.0, 0.0])
def test_what_is_no_number_of_the_axis_has_no_place_on_it(value: Any) -> None:
    assert NumberAxis(1e-3, 1.0, is_log=True).place(value) is None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-1.7e308, 1.7e308),
        (0.0, 5e-324),
        (1.0, 1.0 + 2e-16),
        (1e-300, 1e300),
        (-3.0, -3.0),
        (2**63, 2**64),
        (0, 1e-310),
    ],
)
def test_axis_of_any_two_numbers_has_marks_within_it(low: float, high: float) -> None:
    for is_log in (None, False):
        ticks = number_axis([low, high], is_log=is_log).ticks
        assert 1 <= len(ticks) <= 20
        assert all(0 <= share <= 1 for share, _ in ticks)


def test_metric_that_is_positive_and_far_apart_is_on_a_logarithmic_axis() -> None:
    assert number_axis([0.001, 5.0]).is_log
    assert not number_axis([0.1, 5.0]).is_log
    assert not number_axis([-0.001, 5.0]).is_log
    assert number_axis([]).ticks


def test_axis_of_a_metric_is_cut_where_few_values_are_far_away() -> None:
    up, down = Metric(name="acc", goal="maximize"), Metric(name="loss")
    values = [0.5 + k / 100 for k in range(40)]
    axis = metric_axis([*values, -1e6, -1e9, 50.0], up)
    assert (axis.low, axis.high, axis.is_cut) == (0.5, 50.0, True), "what is good is never cut"
    assert (axis.place(-1e9), axis.place(50.0), axis.place(math.nan)) == (0.0, 1.0, None)
    assert metric_axis([*values, -1e9], down) == NumberAxis(-1e9, 0.89)
    assert metric_axis([*values, -0.5], up) == NumberAxis(-0.5, 0.89)
    assert not metric_axis([1.0, 2.0, -1e9], up).is_cut, "too few to tell"
    assert not metric_axis([1.0] * 50 + [-1e9], up).is_cut
    assert metric_axis([*values, 1e9], down).is_log
    history = History(tuple(finished(k, value) for k, value in enumerate([*values, -1e6])))
    assert "acc by trial (values beyond are at the edge)" in texts(
        read(history_svg(config_of(metric={"name": "acc", "goal": "maximize"}), history))
    )


def test_categories_that_are_numbers_are_sorted_and_others_keep_their_order() -> None:
    assert [words for _, words in CategoryAxis([64, 16, 32.0, 16.0]).ticks] == ["16", "32.0", "64"]
    axis = CategoryAxis(["sgd", "adam", None, True, [1, 2]])
    assert [words for _, words in axis.ticks] == ["sgd", "adam", "null", "true", "[1, 2]"]
    assert [axis.place(value) for value in ("sgd", None, [1, 2], "other")] == [0.0, 0.5, 1.0, None]
    assert CategoryAxis(["one"]).place("one") == 0.5


@pytest.mark.parametrize(
    ("shape", "is_log", "marks"),
    [
        ({"min": 0.0, "max": 1.0}, False, ["0", "1"]),
        ({"min": 1, "max": 9}, False, ["1", "9"]),
        ({"distribution": "log_uniform_values", "min": 1e-5, "max": 1}, True, ["1e-05", "1"]),
        ({"distribution": "log_uniform", "min": 0.0, "max": 2.302585093}, True, ["1", "10"]),
        ({"distribution": "inv_log_uniform", "min": 0.0, "max": 2.302585093}, True, ["0.1", "1"]),
        ({"distribution": "q_uniform", "min": 0, "max": 10, "q": 3}, False, ["0", "10"]),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 1000, "q": 10}, True, ["1", "1000"]),
        ({"distribution": "normal"}, False, ["4"]),
        ({"values": list(range(100))}, False, ["0", "99"]),
        ({"values": [f"name-{k}" for k in range(100)]}, False, ["name-0", "name-99"]),
    ],
)
def test_axis_of_a_parameter_is_all_that_it_may_be(shape: dict[str, Any], is_log: bool, marks: list[str]) -> None:
    ((_, distribution),) = parse_parameters({"p": shape})
    axis = parameter_axis(distribution, [4] if shape.get("distribution") == "normal" else [])
    assert axis.is_log == is_log
    assert axis.ticks[0][1] == marks[0]
    assert len(axis.ticks) <= 15
    if not shape.get("values"):
        assert axis.ticks[-1][1] == marks[-1]


# --- history ---


def test_history_has_a_dot_for_each_value_and_a_line_of_the_best_so_far() -> None:
    values = [0.8, 0.4, 0.6, 0.2, 0.2]
    tree = read(history_svg(config_of(), History(tuple(finished(k, value) for k, value in enumerate(values)))))
    dots = points(tree, stroke_linecap="round")
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    assert dots[0][1] < dots[2][1] < dots[1][1] < dots[3][1] == dots[4][1], "a lower value is lower"
    (line,) = [path.attrib["d"] for path in tree.iter(f"{SVG}path") if path.attrib.get("stroke") == BEST]
    assert line.count("V") == 2, "two trials were better than all before"
    assert f"V{dots[3][1]:g}" in line
    assert "best: trial 3, 0.2" in texts(tree)
    assert {"0.2", "0.8", "0", "4"} <= set(texts(tree))


def test_history_of_a_metric_to_be_raised_has_the_highest_as_its_best() -> None:
    config = config_of(metric={"name": "acc", "goal": "maximize"})
    tree = read(history_svg(config, History((finished(0, 0.5), finished(1, 0.9), finished(2, 0.7)))))
    assert "best: trial 1, 0.9" in texts(tree)


def test_history_marks_what_has_no_good_end_and_never_counts_it_as_the_best() -> None:
    trials = (
        finished(0, 0.5),
        finished(1, math.nan),
        finished(2, -math.inf),
        Trial(3, params(), TrialState.FAILED),
        Trial(4, params(), TrialState.PRUNED, 0.1),
        Trial(5, params(), TrialState.RUNNING, 0.2),
        Trial(6, params(), TrialState.WAITING),
    )
    tree = read(history_svg(config_of(), History(trials)))
    assert "best: trial 0, 0.5" in texts(tree)
    assert {"finished", "pruned", "running", "failed, or no finite value"} <= set(texts(tree))
    assert len(points(tree, stroke="#dc2626")) == 3
    assert len(points(tree, stroke_linecap="round")) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 2_000])
@pytest.mark.parametrize("value", [0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, None])
def test_every_chart_is_a_whole_drawing_of_bounded_size(count: int, value: float | None) -> None:
    rng = random.Random(count)
    trials = tuple(
        finished(k, rng.choice([value, 1.0, -1.0]), **params(10 ** rng.uniform(-4, 0), rng.randint(1, 5)))
        for k in range(count)
    )
    config, history = config_of(), History(trials)
    for svg in (
        history_svg(config, history),
        parallel_svg(config, history),
        importance_svg(measure_importance(config, history)),
    ):
        read(svg)
        assert len(svg) < 60_000


def test_names_and_values_are_escaped_and_cut() -> None:
    evil = '<script>alert("x")</script>&\x07' * 5
    config = parse_sweep(
        {
            "method": "random",
            "metric": {"name": evil},
            "parameters": {"a" * 200: {"values": [evil, "b"]}},
        }
    )
    history = History(tuple(finished(k, float(k), **{"a" * 200: evil}) for k in range(20)))
    for svg in (history_svg(config, history), parallel_svg(config, history)):
        tree = read(svg)
        assert "<script" not in svg
        assert max(map(len, texts(tree))) < 100
        svg.encode()
    bars = read(importance_svg(Importances("<b>\ud800", (Importance("<i>" * 50, 0.5),), 10)))
    assert any(text.startswith("<i><i>") and "…" in text for text in texts(bars))


# --- parallel coordinates ---


def test_parallel_coordinates_have_an_axis_for_each_parameter_that_varies_and_the_metric_last() -> None:
    trials = (finished(0, 1.0, **params(1e-4, 1, "adam")), finished(1, 0.5, **params(1.0, 5, "rms")))
    tree = read(parallel_svg(config_of(), History(trials)))
    names = ["layers", "lr", "optimiser", "loss"]
    assert [text for text in texts(tree) if text in [*names, "constant"]] == names
    places = [text_at(tree, name)[0] for name in names]
    assert places == sorted(places)
    (best,) = [path.attrib["d"] for path in tree.iter(f"{SVG}path") if path.attrib.get("stroke") == BEST]
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", best)]
    top, bottom = 64.0, 300.0
    assert corners == [(places[0], top), (places[1], top), (places[2], bottom), (places[3], bottom)] or corners == [
        *((places[0], top), (places[1], top), (places[2], top), (places[3], bottom))
    ]
    assert text_at(tree, "log")[1] > bottom  # Above the axis, the highest mark would cover it.
    assert {"adam", "sgd", "rms", "0.0001", "best: trial 1"} <= set(texts(tree))


def test_line_of_a_trial_without_a_parameter_has_a_gap_there() -> None:
    for given, pieces in (({"lr": 0.1, "optimiser": "adam"}, (1, 2)), ({"layers": 3, "lr": 0.1}, (2, 1))):
        trials = (finished(0, 1.0, **params()), finished(1, 0.5, **given))
        tree = read(parallel_svg(config_of(), History(trials)))
        (best,) = [path.attrib["d"] for path in tree.iter(f"{SVG}path") if path.attrib.get("stroke") == BEST]
        assert (best.count("M"), best.count("L")) == pieces


def test_many_parameters_are_cut_to_the_most_important_and_many_trials_to_some() -> None:
    shapes = {f"p{k:02}": {"min": 0.0, "max": 1.0} for k in range(30)}
    rng = random.Random(1)
    trials = tuple(finished(k, rng.random(), **{name: rng.random() for name in shapes}) for k in range(2_000))
    svg = parallel_svg(config_of(shapes), History(trials), ["p29", "p07"])
    shown = [text for text in texts(read(svg)) if text in shapes]
    assert len(shown) == MAX_AXES
    assert {"p29", "p07"} <= set(shown)
    assert svg.count("M") < MAX_LINES + 300
    assert any(f"{MAX_LINES} of 2,000 finished trials" in text for text in texts(read(svg)))
    assert any(f"the {MAX_AXES} most important of 30" in text for text in texts(read(svg)))


def test_values_in_words_stand_for_what_cannot_be_drawn_yet() -> None:
    assert "No trial has a value yet." in texts(read(history_svg(config_of(), History())))
    assert "No finished trial has a value yet." in texts(read(parallel_svg(config_of(), History())))
    words = texts(read(importance_svg(measure_importance(config_of(), History((finished(0, 1.0, **params()),))))))
    assert "It needs 10 finished trials with a value; there are 1." in words


# --- importance ---


def drawn(count: int, method: str = "random") -> Importances:
    """A sweep whose metric is a curve of `lr`, and goes up with `layers`."""
    rng = random.Random(3)
    trials = []
    for k in range(count):
        given = params(10 ** rng.uniform(-4, 0), rng.randint(1, 5), rng.choice(["adam", "sgd", "rms"]))
        value = (math.log10(given["lr"]) + 2) ** 2 + 0.4 * given["layers"] + rng.gauss(0, 0.05)
        trials.append(finished(k, value, **given))
    return measure_importance(config_of(method=method), History(tuple(trials)))


def test_importance_sees_a_curve_and_a_trend_and_no_noise() -> None:
    found = drawn(200)
    assert [one.name for one in found.parameters] == ["lr", "layers", "optimiser"]
    lr, layers, optimiser = found.parameters
    assert lr.share > 0.5 > layers.share > 0.05 > optimiser.share
    assert layers.correlation is not None
    assert layers.correlation > 0.2
    assert optimiser.correlation is None
    tree = read(importance_svg(found))
    assert f"{lr.share:.2f}" in texts(tree)
    widths = [float(path.attrib["d"].split("h")[1].split("v")[0]) for path in tree.iter(f"{SVG}path")][1::2]
    assert widths == sorted(widths, reverse=True)


def test_importance_of_a_sweep_by_bayes_is_optunas_once_there_are_enough_values() -> None:
    few, many = drawn(49, "bayes"), drawn(60, "bayes")
    assert "Optuna" not in few.by
    assert "Optuna" in many.by
    assert {one.name for one in many.parameters[:2]} == {"lr", "layers"}
    assert sum(one.share for one in many.parameters) == pytest.approx(1.0)


def test_importance_without_any_variation_is_zero() -> None:
    history = History(tuple(finished(k, 1.0, **params()) for k in range(20)))
    assert {(one.share, one.correlation) for one in measure_importance(config_of(), history).parameters} == {
        *((0.0, None),)
    }
