"""Output of commands: JSON for programs, tables and short lists for people.

A table is as wide as its values in a pipe or a file. In a narrow terminal, long names are cut first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer

from prefect_launch.core.terminal import printable, unguarded_stdout

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_C1: Final = re.compile(r"[\x7f-\x9f]")
#: Wide enough that no table is cut outside a terminal.
_WIDE_COLUMNS: Final = 1_000
#: Width that a column that gives way keeps while possible.
_READABLE_CHARS: Final = 8
_STYLES: Final[Mapping[str, str]] = {
    "completed": "green",
    "finished": "green",
    "online": "green",
    "polling": "green",
    "draining": "yellow",
    "running": "blue",
    "cancelling": "yellow",
    "paused": "yellow",
    "held": "yellow",
    "pruned": "dim",
    "failed": "red",
    "crashed": "red",
    "cancelled": "dim",
    "offline": "dim",
}


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: heading of the column.
        right: align the values right, as for numbers.
        gives_way: cut this column first when the terminal is too narrow.
        wraps: break its values into lines where others are cut, as for sentences; its heading too.
    """

    title: str
    right: bool = False
    gives_way: bool = False
    wraps: bool = False

    @property
    def least_width(self) -> int:
        """What it has in the narrowest terminal: a heading is not cut."""
        return min(len(self.title), _READABLE_CHARS) if self.wraps else len(self.title)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain)
    # JSON does not escape these, and some terminals interpret them.
    typer.echo(_C1.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or a text when it has no rows."""
    console, filled = _console(), list(rows)
    if filled:
        _print(console, table_of(columns, filled, console.width))
    else:
        typer.echo(empty)


def table_of(columns: Sequence[Column], rows: Iterable[Sequence[object]], width: int) -> Table:
    """Return a table that is at most so many characters wide, unless its titles and numbers need more."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    filled = [[_cell(value) for value in row] for row in rows]
    widths = _fitted(columns, filled, width)
    table.width = sum(widths) + 2 * (len(widths) - 1)
    for column, most in zip(columns, widths, strict=True):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold" if column.wraps else "ellipsis",
            no_wrap=not column.wraps,
            width=most,
        )
    for cells in filled:
        table.add_row(*cells)
    return table


def print_details(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line; skips values that are `None` or empty.

    What is one word, such as an address, stays whole, to be copied: the terminal wraps it where it is too long.
    """
    console, rows = _console(), _details(pairs)
    width, names = console.width, max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        is_word = len(value.plain.split()) == 1
        console.width = max(width, names + 2 + value.cell_len) if is_word else width
        _print(console, _grid([(name, value)], names))


def details_of(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return names and values as a table of two columns; skips values that are `None` or empty."""
    return _grid(_details(pairs))


def _details(pairs: Iterable[tuple[str, object]]) -> list[tuple[str, Text]]:
    return [
        (name, _cell(_yaml(value) if isinstance(value, (Mapping, list, tuple)) else value))
        for name, value in pairs
        if value is not None and value != "" and value != {} and value != []
    ]


def _grid(rows: Iterable[tuple[str, Text]], names: int | None = None) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True, width=names)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def ago(moment: datetime | None) -> str:
    """Return how long ago a moment was, such as `3 min ago`."""
    return "" if moment is None else f"{lasted((datetime.now(timezone.utc) - moment).total_seconds())} ago"


def until(moment: datetime) -> str:
    """Return the time until a moment, rounded to a unit, such as `in 3 min`."""
    seconds = max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    unit = next((size for size in (86_400, 3_600, 60) if seconds >= 2 * size), 1)
    return f"in {lasted(round(seconds / unit) * unit)}"


def lasted(seconds: float | None) -> str:
    """Format a duration in its largest unit: `12 s`, `3 min`, `2 h`, `5 d`."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def at(moment: datetime | None) -> str:
    """Format a moment in this machine's time zone; an empty text for `None`."""
    from prefect_launch.core.units import local_time

    return "" if moment is None else local_time(moment)


def write_file(path: Path, text: str, option: str) -> None:
    """Write a file whole.

    Args:
        path: of the file.
        text: its content.
        option: which named it, for the refusal.

    Raises:
        SpecError: when it cannot be written.
    """
    from prefect_launch.errors import SpecError, clause
    from prefect_launch.inputs.atomic import write_atomically

    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        write_atomically(path, text)
    except OSError as error:
        raise SpecError(f"Cannot write {str(path)!r}: {clause(error)}. Give another file to {option}.") from error


def terminal_columns() -> int | None:
    """Return the width of the terminal in characters; `None` in a pipe or a file."""
    is_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if is_narrow else None


def _console() -> Console:
    from rich.console import Console

    width = terminal_columns()
    return Console(width=width or _WIDE_COLUMNS, highlight=False, soft_wrap=width is None)


def _print(console: Console, table: Table) -> None:
    """Print a table without the spaces that fill its last column; the terminal wraps lines that are too long."""
    with console.capture() as captured:
        console.print(table, crop=False)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> Text:
    from rich.text import Text

    text = printable("" if value is None else str(value))
    return Text(text, style=_STYLES.get(text.lower(), ""))


@contextmanager
def live_screen(*, whole: bool = False) -> Iterator[tuple[Console, Callable[[RenderableType], None]]]:
    """Draw again and again over what was drawn before, until the block ends or Ctrl-C ends the command.

    Args:
        whole: take the whole screen, and give it back at the end.

    Yields:
        The terminal, and what draws on it.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, file=unguarded_stdout())
    try:
        with Live(console=console, screen=whole, auto_refresh=False) as live:
            yield console, partial(live.update, refresh=True)
    except KeyboardInterrupt:  # How one leaves it.
        raise typer.Exit(0) from None


def _fitted(columns: Sequence[Column], rows: list[list[Text]], width: int) -> list[int]:
    """Return the widths by which a table fits: columns that give way or wrap do, the widest first.

    Rich alone would cut every column. Where theirs is not enough, any column gives way; a title never does. A table
    that cannot fit at all keeps its texts readable: the terminal wraps its lines anyway.
    """
    widths = [max([len(column.title), *(row[place].cell_len for row in rows)]) for place, column in enumerate(columns)]
    texts = [place for place, column in enumerate(columns) if not column.right]
    give_way = [place for place, column in enumerate(columns) if column.gives_way or column.wraps]
    steps = ((give_way, _READABLE_CHARS), (give_way, 0), (texts, 0))
    least_sum = sum(columns[place].least_width if place in texts else widths[place] for place in range(len(widths)))
    for may, least in steps if least_sum + 2 * (len(widths) - 1) <= width else steps[:1]:
        left = [place for place in may if widths[place] > max(least, columns[place].least_width)]
        while left and sum(widths) + 2 * (len(widths) - 1) > width:
            widths[max(left, key=lambda place: widths[place])] -= 1
            left = [place for place in left if widths[place] > max(least, columns[place].least_width)]
    return widths


def _yaml(value: object) -> str:
    import yaml

    plain = json.loads(json.dumps(value, default=_plain))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)).rstrip()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, Enum) else str(value)
