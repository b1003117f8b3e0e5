"""Line charts for the documentation, as SVG: computed values as lines, measured ones as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prefect_launch.core.metric_chart import line_colour
from prefect_launch.core.svg import GRID, drawing, text, title

Point = tuple[float, float]

_WIDTH: Final = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 700, 40, 300
_LEGEND_LINE: Final = 18
_TICKS: Final = 5


@dataclass(frozen=True)
class Axis:
    """An axis that begins at 0.

    Attributes:
        name: what it counts, with its unit.
        end: the largest value; what is beyond is not drawn.
    """

    name: str
    end: float

    def ticks(self) -> list[tuple[float, str]]:
        """Return where it has a number, as shares of its length, and the numbers."""
        return [(part / _TICKS, f"{self.end * part / _TICKS:g}") for part in range(_TICKS + 1)]


def line_chart(
    name: str,
    x: Axis,
    y: Axis,
    lines: Mapping[str, Sequence[Point]],
    dots: Mapping[str, Sequence[Point]] | None = None,
) -> str:
    """Draw lines, dots, or both.

    Args:
        name: heading of the chart.
        x: the horizontal axis.
        y: the vertical axis.
        lines: their points by name, ascending.
        dots: points by name; those that are named like a line have its colour.
    """
    dots = dots or {}

    def at(point: Point) -> str:
        across, up = point[0] / x.end, point[1] / y.end
        return f"{_LEFT + across * (_RIGHT - _LEFT):.1f} {_BOTTOM - up * (_BOTTOM - _TOP):.1f}"

    def inside(point: Point) -> bool:
        return point[0] <= x.end and point[1] <= y.end

    parts = [title(16, 22, name, max_chars=100)]
    for share, number in y.ticks():
        line = round(_BOTTOM - share * (_BOTTOM - _TOP), 1)
        parts.append(f'<path d="M{_LEFT} {line}H{_RIGHT}" stroke="{GRID}"/>')
        parts.append(text(_LEFT - 8, line + 4, number, "end"))
    for share, number in x.ticks():
        parts.append(text(round(_LEFT + share * (_RIGHT - _LEFT), 1), _BOTTOM + 16, number))
    parts.append(text(_RIGHT, _BOTTOM + 32, x.name, "end"))
    parts.append(text(_RIGHT, 22, y.name, "end"))
    names = list(dict.fromkeys((*lines, *dots)))
    for place, each in enumerate(names):
        colour, line = line_colour(place), _BOTTOM + 34 + place * _LEGEND_LINE
        if drawn := [at(point) for point in lines.get(each, ()) if inside(point)]:
            parts.append(f'<path d="M{"L".join(drawn)}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<path d="M16 {line - 4}h18" stroke="{colour}" stroke-width="2"/>')
        if seen := [at(point) for point in dots.get(each, ()) if inside(point)]:
            marks = "".join(f"M{point}h0" for point in seen)
            parts.append(f'<path d="{marks}" stroke="{colour}" stroke-width="8" stroke-linecap="round"/>')
            parts.append(f'<path d="M25 {line - 4}h0" stroke="{colour}" stroke-width="8" stroke-linecap="round"/>')
        parts.append(text(40, line, each, "start"))
    return drawing(_WIDTH, _BOTTOM + 34 + len(names) * _LEGEND_LINE, parts, name)
