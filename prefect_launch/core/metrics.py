"""Metrics of a run: the history of each metric, bounded in size, and the lines that a job reports them in.

The steps of a metric are a set, and the last value of a step counts, so lines may come twice and in any order. A
history of more points than are kept is thinned evenly; its first, last, lowest and highest points stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_launch.core.validation import clean_text
from prefect_launch.inputs.metrics import MAX_LINE_BYTES, MAX_NAME_CHARS, MAX_STEP, STEP, written_number

#: Points of one metric that are kept; a chart is not much wider in pixels.
MAX_POINTS: Final = 500
#: Metrics of one run that are kept. Together with `MAX_POINTS` it bounds what is written to the server at a time.
MAX_METRICS: Final = 50
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
#: What a number that is not finite is called in JSON.
_NOT_FINITE: Final[Mapping[str, float]] = {
    "nan": math.nan,
    "inf": math.inf,
    "infinity": math.inf,
    "-inf": -math.inf,
    "-infinity": -math.inf,
}

#: A step and the value at it.
Point = tuple[int, float]


def read_number(value: object) -> float | None:
    """Return a value of JSON as a number; NaN and infinity are texts there. `None` when it is no number."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value.strip().lower().removeprefix("+"))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) <= MAX_STEP:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def parse_line(text: bytes) -> tuple[int, dict[str, float]]:
    """Read a line of metrics, without its mark.

    Returns:
        The step, and the values by name.

    Raises:
        ValueError: with what is wrong with it, in words.
    """
    if len(text) > MAX_LINE_BYTES:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        found = json.loads(text, parse_constant=str)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError:
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    step = found.pop(STEP, None)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        raise ValueError(f"its {STEP!r} is not a whole number from 0 to 2**53")
    values = {}
    for name, value in found.items():
        number = read_number(value)
        if number is None:
            raise ValueError("a value is not a number")
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise ValueError(f"a name has not 1 to {MAX_NAME_CHARS} printable characters")
        values[clean_text(name)] = number
    return step, values


@dataclass
class Series:
    """The history of one metric.

    Attributes:
        count: how many steps were reported.
        stride: every so many of them are kept.
        kept: the value at each step that is kept, in the order of their arrival.
        last: the point of the highest step.
        low: the point of the lowest finite value; `None` when there is none.
        high: the point of the highest finite value.
    """

    count: int = 0
    stride: int = 1
    kept: dict[int, float] = field(default_factory=dict)
    last: Point | None = None
    low: Point | None = None
    high: Point | None = None

    def add(self, step: int, value: float) -> None:
        """Add the value at a step; it takes the place of an earlier one."""
        is_new = step not in self.kept and (self.stride == 1 or self.last is None or step > self.last[0])
        if step in self.kept or (is_new and self.count % self.stride == 0):
            self.kept[step] = value
        self.count += is_new
        if self.last is None or step >= self.last[0]:
            self.last = (step, value)
        if step in (self.low and self.low[0], self.high and self.high[0]):
            self._find_extremes()
        if math.isfinite(value):
            self.low = (step, value) if self.low is None or value < self.low[1] else self.low
            self.high = (step, value) if self.high is None or value > self.high[1] else self.high
        if len(self.kept) > MAX_POINTS:
            self.stride *= 2
            self.kept = dict(list(self.kept.items())[::2])

    def _find_extremes(self) -> None:
        """Find the lowest and the highest point again: one of them is another value now."""
        points = [point for point in (*self.kept.items(), self.last) if point and math.isfinite(point[1])]
        self.low = min(points, key=lambda point: point[1], default=None)
        self.high = max(points, key=lambda point: point[1], default=None)

    def points(self) -> list[Point]:
        """Return what is kept, by its steps."""
        ends = dict(point for point in (self.low, self.high, self.last) if point is not None)
        return sorted({**self.kept, **ends}.items())

    def before(self, step: int) -> Series:
        """Return the history up to a step, without it."""
        if self.last is None or self.last[0] < step:
            return self
        cut = Series(stride=self.stride)
        for point in self.points():
            if point[0] < step:
                cut.kept[point[0]] = point[1]
                cut.last = point
        cut.count = len(cut.kept) * self.stride
        cut._find_extremes()
        return cut

    def dump(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "count": self.count,
            "stride": self.stride,
            "steps": list(self.kept),
            "values": [written_number(value) for value in self.kept.values()],
            **{name: _dump_point(getattr(self, name)) for name in ("last", "low", "high")},
        }

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Series:
        """Read what `dump` returned.

        Raises:
            ValueError: when it is something else.
        """
        try:
            values = [_number(value) for value in data["values"]]
            kept = dict(zip(map(int, data["steps"]), values, strict=True))
            ends = {name: _load_point(data[name]) for name in ("last", "low", "high")}
            return cls(count=int(data["count"]), stride=max(1, int(data["stride"])), kept=kept, **ends)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"it is no history of a metric: {error!r}") from None


@dataclass
class Metrics:
    """What one run has reported.

    Attributes:
        attempt: the attempt at the item that reported last.
        series: the history of each metric, by its name.
        outputs: the numbers of `outputs.json`, once the run has ended.
        wandb: the numbers of the summary of an offline W&B run, once the run has ended.
    """

    attempt: int = 1
    series: dict[str, Series] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    wandb: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.series or self.outputs or self.wandb)

    def add(self, step: int, values: Mapping[str, float], *, wanted: str | None = None) -> bool:
        """Add the values at a step; return whether all were taken.

        There is room for `MAX_METRICS` names, and for the one that is wanted whatever the others are.
        """
        for name, value in values.items():
            if name in self.series or name == wanted or len(self.series) < MAX_METRICS:
                self.series.setdefault(name, Series()).add(step, value)
        return values.keys() <= self.series.keys()

    def value(self, name: str) -> float | None:
        """Return the value of a metric: its result in `outputs.json`, or the last one reported, or W&B's summary.

        Returns:
            The value, which may be NaN or infinite; `None` when it was not reported.
        """
        series = self.series.get(name)
        reported = series.last[1] if series is not None and series.last is not None else None
        return next((v for v in (self.outputs.get(name), reported, self.wandb.get(name)) if v is not None), None)

    @property
    def names(self) -> list[str]:
        """The names of all that has a value."""
        return list(dict.fromkeys([*self.series, *self.outputs, *self.wandb]))

    def before(self, step: int) -> Metrics:
        """Return what was reported up to a step, without it, and no final values."""
        kept = {name: series.before(step) for name, series in self.series.items()}
        return Metrics(self.attempt, {name: series for name, series in kept.items() if series.last is not None})

    def dump(self) -> dict[str, Any]:
        """Return it as JSON data that the server can keep."""
        return {
            "attempt": self.attempt,
            "metrics": {name: series.dump() for name, series in self.series.items()},
            "outputs": {name: written_number(value) for name, value in self.outputs.items()},
            "wandb": {name: written_number(value) for name, value in self.wandb.items()},
        }

    @classmethod
    def load(cls, data: Any) -> Metrics:
        """Read what `dump` returned.

        Raises:
            ValueError: when it is something else.
        """
        try:
            series = {str(name): Series.load(one) for name, one in data["metrics"].items()}
            ends = [{str(name): _number(value) for name, value in data[key].items()} for key in ("outputs", "wandb")]
            return cls(int(data["attempt"]), series, *ends)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it holds no metrics: {error!r}") from None

    def fields(self) -> dict[str, Any]:
        """Return the values for programs, by the metric's name."""
        return {name: self._field(name) for name in self.names}

    def _field(self, name: str) -> dict[str, Any]:
        value = self.value(name)
        found: dict[str, Any] = {"value": None if value is None else written_number(value)}
        series = self.series.get(name)
        if series is not None:
            points = series.points()
            found |= {name: _dump_point(getattr(series, name)) for name in ("last", "low", "high")}
            found |= {"count": series.count, "steps": [step for step, _ in points]}
            found["values"] = [written_number(value) for _, value in points]
        return found


def sparkline(values: list[float], width: int = 24) -> str:
    """Draw values as a line of block characters; what is not finite is an `×`.

    Args:
        values: in their order.
        width: the most characters; of more values, one of each equal part is drawn.
    """
    if len(values) > width:
        values = [values[index * (len(values) - 1) // (width - 1)] for index in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(value, low, high) for value in values)


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "×"
    # Halves, for the distance of two floats may be beyond the largest one.
    share = (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
    return _BLOCKS[min(int(share * len(_BLOCKS)), len(_BLOCKS) - 1)]


def format_number(value: float) -> str:
    """Write a number for people, with 5 digits that count."""
    return str(written_number(value)) if not math.isfinite(value) else f"{value:.5g}"


def numbers_in(found: Mapping[str, Any], wanted: str | None = None) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a flat dict of results, `MAX_METRICS` of them at most: texts other than NaN are none.

    Args:
        found: the results.
        wanted: the one that comes first, and so is not left out.
    """
    taken = 0
    for name, value in sorted(found.items(), key=lambda one: one[0] != wanted):
        number = read_number(value)
        if number is not None and taken < MAX_METRICS and len(name) <= MAX_NAME_CHARS:
            taken += 1
            yield clean_text(name), number


def _number(value: object) -> float:
    number = read_number(value)
    if number is None:
        raise ValueError(f"{str(value)[:50]!r} is no number")
    return number


def _dump_point(point: Point | None) -> list[Any] | None:
    return None if point is None else [point[0], written_number(point[1])]


def _load_point(data: Any) -> Point | None:
    return None if data is None else (int(data[0]), _number(data[1]))
