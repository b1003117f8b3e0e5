"""Filters and order of runs: which a table has, by what each asked for and what it came to."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

import yaml

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import parse_duration
from prefect_launch.errors import SpecError, unknown_name
from prefect_launch.server.values import PAGE
from prefect_launch.spec.scheduling import Priority

#: A run as a flat row: its values by column.
Row = Mapping[str, Any]

#: Groups of columns: one for each input, output or metric of the runs.
INPUTS: Final = "inputs"
OUTPUTS: Final = "outputs"
METRICS: Final = "metrics"
GROUPS: Final = (INPUTS, OUTPUTS, METRICS)
#: The columns of every row.
COLUMNS: Final = (
    *("id", "name", "run_id", "queue", "state", "message", "priority", "job", "image", "digest", "author"),
    *("entity", "project", "sweep_id", "attempts", "created", "started", "ended"),
    *("waited_seconds", "duration_seconds", "url"),
)
#: How long ago a run was queued: it changes all the time, so that no row has it.
AGE: Final = "age"
#: Columns that a list heads with other names, and shows in words.
_HEADINGS: Final[Mapping[str, str]] = {"prio": "priority", "took": "duration_seconds", "waited": "waited_seconds"}
#: How a text is read that such a column is compared with.
_READERS: Final[Mapping[str, Callable[[str], float | None]]] = {
    "priority": Priority.parse,
    "duration_seconds": parse_duration,
    "waited_seconds": parse_duration,
    AGE: parse_duration,
}
#: Runs that are looked through for a filter or an order, newest first.
SEARCHED: Final = 10_000
STATES: Final[Mapping[str, StateType]] = {state.label.lower(): state.type for state in ItemState} | {
    kind.value.lower(): kind for kind in StateType
}
#: Names of states that share their type with others: `pulling` is one kind of `pending`.
_NAMES: Final = {state.label.lower() for state in ItemState if state.label.upper() != state.type.value} - {"queued"}

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_EQUALITY: Final = (operator.eq, operator.ne)
_CONDITION: Final = re.compile(
    r"\s*(?P<column>[^=!<>]*?)\s*(?P<operator>[=!<>]=|[=<>])\s*(?P<value>[^=!<>\s].*?)\s*", re.DOTALL
)


def check_column(name: str, others: Iterable[str] = ()) -> str:
    """Return the name of a column or a group.

    Args:
        name: as it was given.
        others: further names that there are.

    Raises:
        NotFoundError: when no run can have one of that name; names the nearest one.
    """
    if name in COLUMNS or name in GROUPS or name.partition(".")[0] in GROUPS:
        return name
    raise unknown_name("column", name, [*COLUMNS, *others, *GROUPS, *(f"{group}.NAME" for group in GROUPS)])


def _value_column(name: str) -> str:
    """Return the column that a condition or an order looks at, by its name or by a list's heading."""
    return AGE if name == AGE else check_column(_HEADINGS.get(name, name), (*_HEADINGS, AGE))


def _value(row: Row, column: str) -> Any:
    if column != AGE:
        return row.get(column)
    created = row["created"]
    return None if created is None else (datetime.now(timezone.utc) - created).total_seconds()


class Condition(NamedTuple):
    """What a row must have in a column, such as `outputs.accuracy > 0.9`."""

    column: str
    operator: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Args:
            text: a column, one of `== != > >= < <=`, and a value as YAML has it.

        Raises:
            SpecError: when it is none, or its value is no time or no priority where the column is one.
            NotFoundError: for an unknown column.
        """
        match = _CONDITION.fullmatch(text)
        if match is None or not match["column"] or match["column"] in GROUPS:
            raise SpecError(
                f"Invalid condition {text!r}: write a column, one of {' '.join(_OPERATORS)}, and a value, such as"
                " 'outputs.accuracy > 0.9'."
            )
        try:
            value = yaml.safe_load(match["value"])
        except yaml.YAMLError:
            value = match["value"]
        column = _value_column(match["column"])
        if isinstance(value, str) and column in _READERS:
            value = _READERS[column](value)
        return cls(column, match["operator"], value)

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether it holds for a row; never for one that has nothing in the column."""
        found = _value(row, self.column)
        if found is None:
            return False
        compare = _OPERATORS[self.operator]
        if _is_number(found) and _is_number(self.value):
            return compare(found, self.value)
        if isinstance(found, datetime):
            return compare(found, parse_moment(str(self.value)))
        if isinstance(found, str):
            return (compare in _EQUALITY or not _is_number(self.value)) and compare(found, str(self.value))
        return compare in _EQUALITY and compare(found, self.value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_moment(text: str) -> datetime:
    """Return a point in time.

    Args:
        text: how long ago it was, such as `2h` or `7d`; or a date or time as ISO 8601 has it, in this machine's zone
            unless it says another.

    Raises:
        SpecError: when it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(timezone.utc) - timedelta(seconds=parse_duration(text or "nothing") or 0.0)
        except (SpecError, OverflowError):
            raise SpecError(
                f"Invalid time {text!r}: give how long ago it was, such as 90min or 7d, or a date such as 2026-11-27 or"
                " '2026-11-27 14:30'."
            ) from None
    return found.astimezone(timezone.utc)


@dataclass(frozen=True)
class RunFilter:
    """Which runs a table has, and in which order.

    Attributes:
        queue: only of this queue.
        job: only of this job; with a version or an alias, only of that version.
        states: only in one of these states, in lower case.
        since: only those that were queued at this time or later.
        where: only those for which all of these hold.
        sort: the column to sort by; with a `-` before it, the highest value comes first. By default, the newest first.
        limit: how many at most.
    """

    queue: str | None = None
    job: str | None = None
    states: tuple[str, ...] = ()
    since: datetime | None = None
    where: tuple[Condition, ...] = ()
    sort: str | None = None
    limit: int = PAGE

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in STATES:
                raise unknown_name("state", state, STATES)
        if self.sort is not None and self._sorted_by in GROUPS:
            raise SpecError(f"Invalid order {self.sort!r}: name one of its columns, such as {self.sort}.NAME.")

    @property
    def columns(self) -> list[str]:
        """The columns that it looks at."""
        return [each.column for each in self.where] + ([self._sorted_by] if self.sort else [])

    @property
    def _sorted_by(self) -> str:
        return _value_column((self.sort or "").removeprefix("-"))

    def check_seen(self, seen: Collection[str]) -> None:
        """Refuse an input, output or metric that no run has, where runs have others of its group.

        Raises:
            NotFoundError: naming the nearest one.
        """
        for column in self.columns:
            group = column.partition(".")[0]
            others = [name for name in seen if name.startswith(f"{group}.")]
            if group in GROUPS and others and column not in seen:
                raise unknown_name("column", column, others)

    def fits(self, row: Row) -> bool:
        """Whether a row is one of these, beyond what the server filters by."""
        exact = bool(self.states) and set(self.states) <= _NAMES
        if exact and row["state"] not in self.states:
            return False
        if self.since is not None and (row["created"] or self.since) < self.since:
            return False
        return all(each.holds(row) for each in self.where)

    def place(self, row: Row) -> tuple[bool, tuple[int, float, str]]:
        """Return what to sort a row by, in the order of `descends`; those with nothing in the column come last."""
        value = _value(row, self._sorted_by)
        return (value is None) is not self.descends, _order(value)

    @property
    def descends(self) -> bool:
        """Whether the highest value comes first."""
        return (self.sort or "").startswith("-")


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, datetime):
        return 0, value.timestamp(), ""
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0.0, str(value))
