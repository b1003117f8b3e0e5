"""Charts of a sweep as SVG: history of the metric, parallel coordinates, importance of the parameters.

Pure functions of the configuration and the history. Each drawing is whole and of bounded size, whatever the values are
and however many trials there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from prefect_launch.core.metrics import format_number
from prefect_launch.core.svg import (
    BAD,
    BEST,
    DATA,
    GRID,
    INK,
    PALE_INK,
    abbreviated,
    drawing,
    shortened,
    text,
    title,
)
from prefect_launch.sweeps.axes import Axis, NumberAxis, metric_axis, parameter_axis
from prefect_launch.sweeps.config import Metric, SweepConfig
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.importance import MIN_VALUES, Importance, Importances
from prefect_launch.sweeps.parameters import Parameter
from prefect_launch.sweeps.search_space import MISSING, value_or_missing, values_of

#: The newer UI has 600 pixels for a report beside its side bars, and the older one 740: a wider drawing shrinks there.
WIDTH: Final = 720
_FONT: Final = 12
#: About the width of a character.
_CHAR: Final = 7.0
#: Trials that are drawn; of more, the best and an even part of the others.
MAX_MARKS: Final = 1_000
MAX_LINES: Final = 300
#: Parameters that have an axis, or a bar.
MAX_AXES: Final = 9
MAX_BARS: Final = 15
#: Trials with a value that have not finished, and their colours.
_RINGS: Final = {
    TrialState.CANCELLED: PALE_INK,
    TrialState.HELD: PALE_INK,
    TrialState.FAILED: BAD,
    TrialState.PRUNED: PALE_INK,
    TrialState.RUNNING: DATA,
}
#: Lines from the worst to the best, by as many parts of equal size.
_SHADES: Final = ("#dbe4ee", "#bcd0e8", "#93b4e0", "#6893d8", "#3f6fcb", "#1e4fb0")
_HALO: Final = 'paint-order="stroke" stroke="#ffffff" stroke-width="3"'


# --- history ---


def history_svg(config: SweepConfig, history: History) -> str:
    """Draw the metric of each trial by its number, and the best one so far as a line.

    Args:
        config: of the sweep.
        history: its trials.
    """
    metric = config.objective
    if metric is None:
        return drawing(WIDTH, 40, [text(WIDTH / 2, 24, "The sweep has no metric.", fill=PALE_INK)], font=_FONT)
    name = metric.name
    left, right, top, bottom = 66, WIDTH - 16, 46, 240
    trials = history.trials
    valued = [trial for trial in trials if trial.value is not None and trial.state is not TrialState.WAITING]
    y_axis = metric_axis([float(trial.value) for trial in valued if trial.value is not None], metric)
    x_axis = NumberAxis(trials[0].number if trials else 0, trials[-1].number if trials else 1)

    def x(trial: Trial) -> str:
        return _px(left + (right - left) * (x_axis.place(trial.number) or 0.0))

    def y(trial: Trial) -> str:
        return _px(bottom - (bottom - top) * (y_axis.place(trial.value) or 0.0))

    more = " (logarithmic)" if y_axis.is_log else (" (values beyond are at the edge)" if y_axis.is_cut else "")
    parts = [title(16, 20, f"{shortened(name, 40)} by trial{more}", max_chars=80)]
    for share, words in y_axis.ticks if valued else ():
        line = bottom - (bottom - top) * share
        parts.append(f'<path d="M{left} {_px(line)}H{right}" stroke="{GRID}"/>')
        parts.append(text(left - 8, round(line + 4, 1), shortened(words, 9), "end", fill=PALE_INK))
    parts.append(f'<path d="M{left} {bottom + 8}H{right}" stroke="{PALE_INK}"/>')
    whole = dict.fromkeys((share, words) for share, words in x_axis.ticks if "." not in words)
    for share, words in whole if trials else ():
        parts.append(text(round(left + (right - left) * share, 1), bottom + 24, words, fill=PALE_INK))
    parts.append(text(right, bottom + 40, "trial", "end", fill=PALE_INK))
    if not valued:
        parts.append(text((left + right) / 2, (top + bottom) / 2, "No trial has a value yet.", fill=PALE_INK))

    groups: dict[TrialState, list[Trial]] = {}
    for trial in valued:
        groups.setdefault(trial.state, []).append(trial)
    legend: list[tuple[str, str, str]] = []
    for state, colour in _RINGS.items():
        if others := _fewer(groups.get(state, ()), MAX_MARKS // 4):
            rings = "".join(f"M{x(trial)} {y(trial)}m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0" for trial in others)
            parts.append(f'<path d="{rings}" fill="#ffffff" stroke="{colour}"/>')
            legend.append(("○", state.value, colour))
    finished = groups.get(TrialState.FINISHED, [])
    if finished:
        dots = "".join(f"M{x(trial)} {y(trial)}h0" for trial in _fewer(finished, MAX_MARKS))
        size = 7 if len(finished) <= 200 else 5
        parts.append(
            f'<path d="{dots}" stroke="{DATA}" stroke-opacity="0.6" stroke-width="{size}" stroke-linecap="round"/>'
        )
        legend.insert(0, ("●", "finished", DATA))
    if finished:
        bests = _running_best(metric, finished)
        stairs = f"M{x(bests[0])} {y(bests[0])}" + "".join(f"H{x(trial)}V{y(trial)}" for trial in bests[1:])
        parts.append(f'<path d="{stairs}H{right}" fill="none" stroke="{BEST}" stroke-width="2"/>')
        best = bests[-1]
        words = f"best: trial {best.number}, {format_number(best.value or 0.0)}"
        parts.append(f'<circle cx="{x(best)}" cy="{y(best)}" r="5" fill="{BEST}" stroke="#ffffff"/>')
        parts.append(text(right, 20, words, "end", fill=BEST, more='font-weight="600"'))
    bad = [trial for trial in trials if trial.value is None and _has_no_good_end(trial)]
    if bad:
        crosses = "".join(f"M{x(trial)} {bottom + 8}m-3-3l6 6m0-6l-6 6" for trial in _fewer(bad, MAX_MARKS // 4))
        parts.append(f'<path d="{crosses}" stroke="{BAD}" stroke-width="1.5"/>')
        legend.append(("×", "failed, or no finite value", BAD))
    at = 16
    for sign, meaning, colour in legend:
        parts.append(text(at, bottom + 40, sign, "start", fill=colour, more='font-size="13"'))
        parts.append(text(at + 13, bottom + 40, meaning, "start", fill=PALE_INK))
        at += 28 + int(_CHAR * len(meaning))
    return drawing(WIDTH, bottom + 52, parts, f"History of {name}", font=_FONT)


def _running_best(metric: Metric, finished: Sequence[Trial]) -> list[Trial]:
    """Return the trials that were better than all before them."""
    bests: list[Trial] = []
    for trial in finished:
        if trial.value is not None and (not bests or metric.score(trial.value) < metric.score(bests[-1].value or 0.0)):
            bests.append(trial)
    return bests


def _has_no_good_end(trial: Trial) -> bool:
    return trial.state is TrialState.FAILED or (trial.state is TrialState.FINISHED and trial.metric is not None)


# --- parallel coordinates ---


def parallel_svg(config: SweepConfig, history: History, important: Iterable[str] = ()) -> str:
    """Draw each finished trial as a line over an axis for each parameter, and one for the metric.

    Args:
        config: of the sweep.
        history: its trials; those that have finished with a finite value are drawn.
        important: names of parameters, those that are drawn first when not all have room.
    """
    metric = config.objective
    known = [one for one in history.trials if one.state is TrialState.FINISHED and one.value is not None]
    varying = [parameter for parameter in config.parameters if parameter.distribution.points != 1]
    parameters = _most_important(varying, list(important))
    left, right, top, bottom = 72, WIDTH - 72, 64, 300
    heading = "Parameters and metric of each trial"
    if len(parameters) < len(varying):
        heading += f": the {len(parameters)} most important of {len(varying)}"
    parts = [title(16, 20, heading, max_chars=90)]
    if not known or metric is None or not parameters:
        words = "No finished trial has a value yet." if parameters and metric else "Nothing to compare."
        parts.append(text(WIDTH / 2, 60, words, fill=PALE_INK))
        return drawing(WIDTH, 90, parts, heading, font=_FONT)

    shown = _ranked_part(metric, known, MAX_LINES)
    axes: list[tuple[str, Axis]] = [
        (".".join(path), parameter_axis(each, values_of(known, path))) for path, each in parameters
    ]
    axes.append((metric.name, metric_axis([float(one.value) for one in known if one.value is not None], metric)))
    places = [round(left + (right - left) * at / (len(axes) - 1), 1) for at in range(len(axes))]

    def line(trial: Trial) -> str:
        values = [value_or_missing(trial.params, path) for path, _ in parameters]
        drawn, pen = "", "M"
        for (_, axis), at, value in zip(axes, places, [*values, trial.value], strict=True):
            share = None if value is MISSING else axis.place(value)
            if share is None:
                pen = "M"
                continue
            drawn += f"{pen}{at:g} {_px(bottom - (bottom - top) * share)}"
            pen = "L"
        return drawn

    size = -(-len(shown) // len(_SHADES))
    for place, colour in enumerate(_SHADES):
        if lines := "".join(line(trial) for trial in shown[place * size : (place + 1) * size]):
            parts.append(f'<path d="{lines}" fill="none" stroke="{colour}" stroke-opacity="0.8"/>')
    parts.append(f'<path d="{line(shown[-1])}" fill="none" stroke="{BEST}" stroke-width="2.5"/>')
    room = (right - left) / (len(axes) - 1)
    for at, (name, axis) in zip(places, axes, strict=True):
        parts += _vertical_axis(at, top, bottom, name, axis, room, is_last=at == places[-1])
    words = f"best: trial {shown[-1].number}"
    parts.append(text(WIDTH - 16, 20, words, "end", fill=BEST, more='font-weight="600"'))
    if len(shown) < len(known):
        fewer = f"{len(shown)} of {len(known):,} finished trials are drawn: the best, and an even part of the others"
        parts.append(text(16, bottom + 26, fewer, "start", fill=PALE_INK))
    return drawing(WIDTH, bottom + 36, parts, heading, font=_FONT)


def _vertical_axis(
    at: float, top: float, bottom: float, name: str, axis: Axis, room: float, *, is_last: bool
) -> list[str]:
    """Draw an axis with its name above it, and its marks at its side."""
    parts = [f'<path d="M{at:g} {top}V{bottom}" stroke="{INK}" stroke-width="1.2"/>']
    chars = max(5, int(room / (_CHAR + 1)))
    weight = 'font-weight="600"'
    parts.append(text(at, top - 14, abbreviated(name, chars), fill=BEST if is_last else INK, more=weight))
    if axis.is_log:
        parts.append(text(at, bottom + 13, "log", fill=PALE_INK, more='font-size="9"'))
    side, anchor = (7, "start") if is_last else (-5, "end")
    longest = min(10, max(5, int((room - 8) / _CHAR))) if room < 80 else 10
    for share, words in axis.ticks:
        y = round(bottom - (bottom - top) * share, 1)
        parts.append(f'<path d="M{at - 3:g} {_px(y)}h6" stroke="{INK}"/>')
        parts.append(text(at + side, round(y + 3.5, 1), abbreviated(words, longest), anchor, more=_HALO))
    return parts


def _most_important(varying: Sequence[Parameter], important: list[str]) -> list[Parameter]:
    """Return the parameters that have room, in their own order."""
    order = {name: place for place, name in enumerate(important)}
    first = sorted(varying, key=lambda each: order.get(".".join(each.path), len(order)))[:MAX_AXES]
    return [each for each in varying if each in first]


def _ranked_part(metric: Metric, known: Sequence[Trial], most: int) -> list[Trial]:
    """Return the trials from the worst to the best; of too many, an even part of those that are not among the best."""
    ranked = sorted(known, key=lambda trial: metric.score(trial.value or 0.0), reverse=True)
    if len(ranked) <= most:
        return ranked
    best = most // 3
    return [*_fewer(ranked[:-best], most - best), *ranked[-best:]]


# --- importance ---


def importance_svg(importances: Importances) -> str:
    """Draw a bar for each parameter, the most important one first.

    Args:
        importances: what was measured; none of a parameter gives an empty drawing.
    """
    shown = importances.parameters[:MAX_BARS]
    left, right, top, line = 190, WIDTH - 230, 52, 24
    parts = [title(16, 20, "Importance of the parameters"), text(16, 36, importances.by, "start", fill=PALE_INK)]
    for place, one in enumerate(shown):
        y = top + place * line
        width = max(1.0, (right - left) * one.share)
        parts.append(text(left - 10, y + 13, abbreviated(one.name, int((left - 26) / _CHAR)), "end"))
        parts.append(f'<path d="M{left} {y + 3}h{right - left}v13h{left - right}z" fill="{GRID}" fill-opacity="0.5"/>')
        parts.append(f'<path d="M{left} {y + 3}h{_px(width)}v13h-{_px(width)}z" fill="{DATA}"/>')
        parts.append(text(right + 10, y + 13, f"{one.share:.2f}", "start"))
        parts.append(text(right + 52, y + 13, _direction(one), "start", fill=PALE_INK))
    if not shown:
        words = f"It needs {MIN_VALUES} finished trials with a value; there are {importances.values}."
        parts[1:] = [text(16, 42, words, "start", fill=PALE_INK)]
    return drawing(WIDTH, top + len(shown) * line + 8, parts, "Importance of the parameters", font=_FONT)


def _direction(one: Importance) -> str:
    """Say which way the metric goes with the parameter, where it goes one way."""
    if one.correlation is None or abs(one.correlation) < 0.3:
        return ""
    return f"more {'raises' if one.correlation > 0 else 'lowers'} it ({one.correlation:+.2f})"


# --- helpers ---


def _fewer(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Return so many trials, evenly over all; the first and the last stay."""
    if len(trials) <= most:
        return list(trials)
    last = len(trials) - 1
    return [trials[place * last // (most - 1)] for place in range(most)]


def _px(value: float) -> str:
    """Write a length in as few digits as matter."""
    return f"{round(value, 1):g}" if math.isfinite(value) else "0"
