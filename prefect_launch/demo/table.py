"""The demo's table: one line a run, shown as it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prefect_launch.core.states import StateType
from prefect_launch.server.values import Item

_COLOURS: Final = {
    StateType.RUNNING: "blue",
    StateType.COMPLETED: "green",
    StateType.FAILED: "red",
    StateType.CRASHED: "red",
    StateType.CANCELLED: "yellow",
}


@dataclass(frozen=True)
class Row:
    """One run, as it is now.

    Attributes:
        item: its queue item.
        inputs: what it was asked to do, without the defaults.
        outputs: what it reported; empty before its end.
    """

    item: Item
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """How long it has run, or `None` when it has not started."""
        if self.item.start_time is None:
            return None
        return ((self.item.end_time or datetime.now(timezone.utc)) - self.item.start_time).total_seconds()

    @property
    def accuracy(self) -> float:
        """The share of the test images that it got right; 0 before its end."""
        return float(self.outputs.get("accuracy") or 0.0)


class Board:
    """Shows runs as they go: in a terminal a table that changes; elsewhere a line a change, then the table."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console) if console.is_terminal else None
        self._rows: Sequence[Row] = ()

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._rows:
            self._console.print(table(self._rows))

    def show(self, rows: Sequence[Row]) -> None:
        """Show the runs as they are now."""
        before = {row.item.id: row.item.state_name for row in self._rows}
        self._rows = rows
        if self._live is not None:
            self._live.update(table(rows))
            return
        for row in rows:
            if before.get(row.item.id) != row.item.state_name:
                self._console.print(f"{row.item.name}: {row.item.state_name}")


def table(rows: Sequence[Row]) -> Table:
    """Return the table of some runs."""
    drawn = Table("run", "inputs", "state")
    drawn.add_column("duration", justify="right")
    drawn.add_column("accuracy", justify="right")
    for row in rows:
        drawn.add_row(
            row.item.name,
            "\n".join(f"{key} {value}" for key, value in row.inputs.items()),
            Text(row.item.state_name or "", _COLOURS.get(row.item.state_type or StateType.SCHEDULED, "")),
            "" if row.seconds is None else f"{row.seconds:.1f} s",
            f"{row.accuracy:.2%}" if row.outputs else "",
        )
    return drawn
