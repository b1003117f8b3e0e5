"""One measured figure beside its floor, and the table of all of them.

A figure alone says little about a program and much about the machine; beside a floor that was measured in the same
run it says what the program adds. Every benchmark module has a function `measure() -> list[Figure]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        name: what it is of, such as "launch_add, one caller".
        value: the figure.
        unit: of the value and of the floor, such as "ms" or "items/s".
        floor: the same thing done with nothing of ours in the way, in the same run; `None` when there is none.
        floor_name: what the floor is, such as "python -c pass".
        goal: what to hold, in words, such as "≤ floor + 50 ms".
    """

    name: str
    value: float
    unit: str
    floor: float | None
    floor_name: str
    goal: str

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of its floor."""
        return self.value / self.floor if self.floor else None


def print_table(figures: Iterable[Figure], *, console: Console | None = None) -> None:
    """Print figures as a table, one a line.

    Args:
        figures: in the order to show them.
        console: where to; standard output when left out.
    """
    table = Table("what", "measured", "floor", "ratio", "floor is", "goal", title="prefect-launch, measured")
    for column in table.columns[1:4]:
        column.justify = "right"
    for figure in figures:
        table.add_row(
            figure.name,
            _number(figure.value, figure.unit),
            "–" if figure.floor is None else _number(figure.floor, figure.unit),
            "–" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.floor_name,
            figure.goal,
        )
    (console or Console()).print(table)


def _number(value: float, unit: str) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
