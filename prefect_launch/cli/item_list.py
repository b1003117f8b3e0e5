"""Command `prefect-launch item list`: items as a table, with columns of choice, filtered and sorted."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prefect_launch.cli.item_view import due_in_words, short_source
from prefect_launch.cli.options import JsonOption
from prefect_launch.cli.output import Column, ago, at, lasted, print_json, print_table, terminal_columns
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import fields_of, source_of
from prefect_launch.core.names import short_ids

if TYPE_CHECKING:
    from prefect_launch.client.run_filter import RunFilter
    from prefect_launch.client.runs_table import Run

#: Columns that are shown unless others are chosen; in a terminal of `_WIDE` characters, and in a file, some more.
_NARROW: Final = ("id", "name", "queue", "state", "prio", "job", "age", "took", "starts")
_WIDE: Final = 120
#: Items that are shown unless another number is given.
_SHOWN: Final = 50
#: Inputs that are shown there by default: those of one job are few.
_MAX_INPUTS: Final = 4
#: What a list shows in words of its own, by the column's name.
_WORDS: Final[Mapping[str, Callable[[Run], object]]] = {
    "prio": lambda run: run.handle.priority.name.lower(),
    "job": lambda run: short_source(source_of(run.item)),
    "age": lambda run: ago(run.item.created).removesuffix(" ago"),
    "took": lambda run: lasted(run.row["duration_seconds"]),
    "waited": lambda run: lasted(run.row["waited_seconds"]),
    "starts": lambda run: due_in_words(run.item),
}
_RIGHT: Final = ("age", "took", "waited", "starts")
_GIVE_WAY: Final = ("name", "queue", "job", "author", "message", "image", "url", "inputs", "outputs", "metrics")

ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "-C",
        "--columns",
        metavar="NAMES",
        help="Columns to show, by commas: id, name, state, age, took, waited, author, …; and inputs, outputs and"
        " metrics, or one of them, such as outputs.accuracy.",
    ),
]


def list_(
    queue: Annotated[str | None, typer.Option("-q", "--queue", metavar="QUEUE", help="Only of this queue.")] = None,
    job: Annotated[
        str | None, typer.Option("-j", "--job", metavar="JOB", help="Only of this job; with :v3, of that version.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="STATE", help="Only in this state, such as queued or failed. Repeat for more."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only what was queued after it: 2h or 7d ago, or a date."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "-w", "--where", metavar="CONDITION", help="Only where it holds: 'outputs.accuracy > 0.9'. Repeat for more."
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="COLUMN", help="Lowest first; -COLUMN: highest first. Default: newest first."),
    ] = None,
    columns: ColumnsOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help=f"How many at most. Default: {_SHOWN}.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List items, newest first."""
    from prefect_launch.client.run_filter import Condition, RunFilter, parse_moment
    from prefect_launch.client.runs_table import read_runs

    wanted = RunFilter(
        queue=queue,
        job=job,
        states=tuple(one.lower() for one in state or ()),
        since=None if since is None else parse_moment(since),
        where=tuple(map(Condition.parse, where or ())),
        sort=sort,
        limit=limit or _SHOWN + 1,
    )
    chosen = _chosen(columns or ())
    api = connected()
    runs = api.call(lambda session: read_runs(api, session, wanted, chosen or ()))
    has_more = limit is None and len(runs) > _SHOWN
    _print(runs[:_SHOWN] if has_more else runs, chosen, wanted, as_json=json)
    if has_more:
        typer.echo(f"There are more than these {_SHOWN}: --limit N shows more.", err=True)


def _print(runs: Sequence[Run], chosen: tuple[str, ...] | None, wanted: RunFilter, *, as_json: bool) -> None:
    if as_json:
        print_json([{**fields_of(run.handle, run.item), **_values(run, chosen or ())} for run in runs])
        return
    empty = "There are no items. Put one on a queue with: prefect-launch add -j JOB -q QUEUE"
    if wanted.queue or wanted.job or wanted.states or wanted.since or wanted.where:
        empty = "No item matches these options."
    print_runs(runs, chosen or _by_default(runs), empty=empty)


def _by_default(runs: Sequence[Run]) -> list[str]:
    shown = [name for name in _NARROW if name != "starts" or any(due_in_words(run.item) for run in runs)]
    width = terminal_columns()
    if width is not None and width < _WIDE:
        return shown
    authors = ["author"] if any(run.row["author"] for run in runs) else []
    inputs = _expanded("inputs", runs)
    return [*shown, *authors, *(inputs if len(inputs) <= _MAX_INPUTS else ())]


def _chosen(given: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of the chosen columns; None for none."""
    from prefect_launch.client.run_filter import check_column

    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    return tuple(name if name in _WORDS else check_column(name, _WORDS) for name in names) or None


def _values(run: Run, names: Collection[str]) -> dict[str, Any]:
    """Return the values of a run in some columns, for programs."""
    return {
        name: value
        for name, value in run.row.items()
        if name in names or ("." in name and any(name.startswith(f"{chosen}.") for chosen in names))
    }


def print_runs(runs: Sequence[Run], names: Sequence[str], *, empty: str) -> None:
    """Print runs as a table."""
    columns, rows = cells_of(runs, names)
    print_table(columns, rows, empty=empty)


def cells_of(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Column], list[list[object]]]:
    """Return the columns and the rows of a table of runs."""
    shown = list(dict.fromkeys(column for name in names for column in _expanded(name, runs)))
    leaves = [name.partition(".")[2] for name in shown]
    short = short_ids([run.handle.id for run in runs])
    numeric = [name in _RIGHT or _is_numeric(name, runs) for name in shown]
    columns = [
        Column(_title(name, leaves), right=right, gives_way=not right and name.partition(".")[0] in _GIVE_WAY)
        for name, right in zip(shown, numeric, strict=True)
    ]
    return columns, [[short[run.handle.id] if name == "id" else cell_of(run, name) for name in shown] for run in runs]


def _title(name: str, leaves: Sequence[str]) -> str:
    """Return the heading of a column: an input's own name, with its group where two have it."""
    _, dot, leaf = name.partition(".")
    if not dot:
        return name.replace("_", " ").upper()
    return leaf if leaves.count(leaf) == 1 else name


def _expanded(name: str, runs: Sequence[Run]) -> list[str]:
    """Return a group's columns in these runs, or the column itself."""
    from prefect_launch.client.run_filter import GROUPS

    if name not in GROUPS:
        return [name]
    return sorted({column for run in runs for column in run.row if column.startswith(f"{name}.")})


def _is_numeric(name: str, runs: Sequence[Run]) -> bool:
    found = [run.row.get(name) for run in runs]
    return any(isinstance(value, (int, float)) for value in found)


def cell_of(run: Run, name: str) -> object:
    """Return what a run has in a column, for people."""
    words = _WORDS.get(name)
    return text_of(run.row.get(name)) if words is None else words(run)


def text_of(value: object) -> str:
    """Return a value of a row for people."""
    from prefect_launch.core.metrics import format_number

    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float, datetime, str)):
        return json_module.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, datetime):
        return at(value)
    return format_number(value) if isinstance(value, float) else str(value)
