"""Chart of a run's metrics: Markdown with an SVG in a data address, which both of Prefect's UIs draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from prefect_launch.core.metrics import Metrics, Point, Series, format_number, sparkline
from prefect_launch.core.svg import BAD, DATA, GRID, drawing, markdown_code, markdown_image, text, title

#: Metrics that have a chart; the table has all.
_MAX_CHARTS: Final = 8
#: Points of a line: there are not many more pixels.
_MAX_POINTS: Final = 250
_WIDTH, _HEIGHT, _COLUMNS = 420, 220, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 34, 30
#: The lines of a chart, in their order: colours that are told apart with any kind of sight, none of them `BAD`.
_COLOURS: Final = (DATA, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#6b4c9a", "#8c6d31", "#374151")
#: In a table, more blocks run over the side bar of the newer UI.
_TREND_CHARS: Final = 10


class Axis(NamedTuple):
    """What the steps of a chart are.

    Attributes:
        name: of the axis.
        label: writes a step.
        base: a value that each chart shows; infinite: none.
    """

    name: str = "step"
    label: Callable[[int], str] = str
    base: float = math.inf


_STEPS: Final = Axis()


def metrics_markdown(metrics: Metrics, run_id: str) -> str:
    """Return the Markdown that shows a run's metrics.

    Args:
        metrics: of the run.
        run_id: the launch run id.
    """
    charted = {name: series for name, series in metrics.series.items() if series.last is not None}
    lines = [f"## Metrics of run `{run_id}`", ""]
    if charted:
        drawn = chart_svg(dict(list(charted.items())[:_MAX_CHARTS]))
        lines += [markdown_image(drawn, "Charts of the metrics by step"), ""]
        if len(charted) > _MAX_CHARTS:
            lines += [f"The first {_MAX_CHARTS} of {len(charted)} metrics have a chart.", ""]
    lines += ["| Metric | Last | Step | Lowest | Highest | Steps | Trend |", "|---|---|---|---|---|---|---|"]
    lines += [_row(metrics, name) for name in metrics.names]
    return "\n".join(lines) + "\n"


def _row(metrics: Metrics, name: str) -> str:
    value, series = metrics.value(name), metrics.series.get(name, Series())
    trend = sparkline([value for _, value in series.points()], width=_TREND_CHARS) if series.last else ""
    cells = [
        markdown_code(name),
        "" if value is None else format_number(value),
        str(series.last[0]) if series.last else "",
        *("" if point is None else f"{format_number(point[1])} at {point[0]}" for point in (series.low, series.high)),
        str(series.count or ""),
        trend,
    ]
    return f"| {' | '.join(cells)} |"


def chart_svg(charted: Mapping[str, Series]) -> str:
    """Draw a chart of each metric by its steps, side by side."""
    return lines_svg({name: {name: series} for name, series in charted.items()})


def lines_svg(charted: Mapping[str, Mapping[str, Series]], axis: Axis = _STEPS) -> str:
    """Draw charts side by side, each with a line for each series, in the order of their colours.

    Args:
        charted: the series by name, by the title of their chart; each series has a value.
        axis: what the steps are.
    """
    columns = min(_COLUMNS, max(1, len(charted)))
    rows = -(-len(charted) // columns)
    width, height = columns * _WIDTH, rows * _HEIGHT
    parts = []
    for index, (name, lines) in enumerate(charted.items()):
        row, column = divmod(index, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">{_chart(name, lines, axis)}</g>')
    return drawing(width, height, parts)


def line_colour(place: int) -> str:
    """Return the colour of a line by its place among those of a chart, from 0."""
    return _COLOURS[place % len(_COLOURS)]


def _chart(name: str, lines: Mapping[str, Series], axis: Axis) -> str:
    drawn = {place: _fewer(series.points()) for place, series in enumerate(lines.values()) if series.last is not None}
    low = min(axis.base, *(_finite(series.low, math.inf) for series in lines.values()))
    high = max((_finite(series.high, -math.inf) for series in lines.values()), default=0.0)
    low, high = (low, high) if low <= high else (0.0, 0.0)
    first = min(points[0][0] for points in drawn.values())
    last = max(points[-1][0] for points in drawn.values())
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(step: int) -> float:
        return round(_LEFT + inner_width * ((step - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        # Halves, for the distance of two floats may be beyond the largest one.
        share = (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
        return round(_TOP + inner_height * (1 - share), 1)

    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        title(_LEFT, 20, name),
        *(
            f'<path d="M{_LEFT} {line}H{right}" stroke="{GRID}"/>'
            for line in (_TOP, round((_TOP + bottom) / 2, 1), bottom)
        ),
        text(_LEFT - 6, bottom + 4, format_number(low), "end"),
    ]
    if high > low:
        parts.append(text(_LEFT - 6, _TOP + 4, format_number(high), "end"))
    parts.append(text(_LEFT, bottom + 18, axis.label(first)))
    parts.append(text((_LEFT + right) / 2, bottom + 18, axis.name))
    if last > first:
        parts.append(text(right, bottom + 18, axis.label(last), "end"))
    for place, points in drawn.items():
        for piece in _pieces(points):
            line = " ".join(f"{x(step)},{y(value)}" for step, value in piece)
            colour = line_colour(place)
            if len(piece) > 1:
                parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            else:
                parts.append(f'<circle cx="{x(piece[0][0])}" cy="{y(piece[0][1])}" r="3" fill="{colour}"/>')
    bad = [step for points in drawn.values() for step, value in points if not math.isfinite(value)]
    parts += [f'<path d="M{x(step)} {_TOP}V{bottom}" stroke="{BAD}" stroke-opacity="0.5"/>' for step in bad]
    if bad:
        parts.append(text(right, 20, "red: NaN or infinite", "end"))
    return "".join(parts)


def _fewer(points: Sequence[Point]) -> list[Point]:
    if len(points) <= _MAX_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[index * last // (_MAX_POINTS - 1)] for index in range(_MAX_POINTS)]


def _pieces(points: Sequence[Point]) -> list[list[Point]]:
    """Return the runs of finite points between those that are not."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _finite(point: Point | None, default: float) -> float:
    return default if point is None else point[1]
