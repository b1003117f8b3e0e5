"""One measured figure beside its floor and its goal, and the table of all of them.

A figure alone says little about a program and much about the machine; beside a floor that was measured in the same
run it says what the program adds. Every benchmark module gives a list of figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

#: A narrower table breaks its words; a log file or a pipe has no width of its own.
_WIDTH = 150


@dataclass(frozen=True)
class Goal:
    """What a figure is to hold.

    Attributes:
        words: as the table shows it, such as "≤ floor + 50 ms".
        limit: the same as a number, in the figure's unit.
        at_least: whether the figure is to be at least the limit; else at most.
    """

    words: str
    limit: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """Whether a value holds it."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        name: what it is of, such as "launch_add, one caller".
        value: the figure.
        unit: of the value and of the floor, such as "ms" or "items/s".
        floor: the same thing done with nothing of ours in the way, in the same run; `None` when there is none.
        floor_name: what the floor is, such as "python -c pass".
        goal: what to hold; `None` for a figure that is only told.
    """

    name: str
    value: float
    unit: str
    floor: float | None
    floor_name: str
    goal: Goal | None = None

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of its floor."""
        return self.value / self.floor if self.floor else None


def at_most_over(floor: float, margin: float, unit: str) -> Goal:
    """Return the goal to stay within a margin over the floor."""
    return Goal(f"≤ floor + {margin:g} {unit}", floor + margin)


def at_most_times(floor: float, factor: float) -> Goal:
    """Return the goal to stay within a multiple of the floor."""
    return Goal(f"≤ {factor:g} × floor", floor * factor)


def at_least_times(floor: float, factor: float) -> Goal:
    """Return the goal to reach a share of the floor."""
    return Goal(f"≥ {factor:.2g} × floor", floor * factor, at_least=True)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed.

    Args:
        values: at least one.
        share: between 0 and 1; 0.99 of fewer than a hundred values is their highest.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def steady_rate(ends: Sequence[float], parallel: int) -> float:
    """Return how many things were done a second, from the first one's end to the last one's.

    Those that were under way at the first end are not counted, which is on the low side.

    Args:
        ends: when each was done, in seconds; more than `parallel`.
        parallel: how many were worked on at a time.
    """
    return (len(ends) - parallel) / (max(ends) - min(ends))


def print_table(figures: Iterable[Figure], *, console: Console | None = None) -> None:
    """Print figures as a table, one a line.

    Args:
        figures: in the order to show them.
        console: where to; standard output when left out.
    """
    table = Table("what", "measured", "floor", "ratio", "floor is", "goal", "met", title="prefect-launch, measured")
    for column in table.columns[:4]:
        column.no_wrap = True
    for column in table.columns[1:4]:
        column.justify = "right"
    for figure in figures:
        table.add_row(
            figure.name,
            _number(figure.value, figure.unit),
            "–" if figure.floor is None else _number(figure.floor, figure.unit),
            "–" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.floor_name,
            figure.goal.words if figure.goal else "–",
            _met(figure),
        )
    own = Console()
    (console or (own if own.width >= _WIDTH else Console(width=_WIDTH))).print(table)


def _met(figure: Figure) -> str:
    if figure.goal is None:
        return "–"
    return "yes" if figure.goal.met_by(figure.value) else "NO"


def _number(value: float, unit: str) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
