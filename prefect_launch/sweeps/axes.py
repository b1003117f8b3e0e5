"""Axes of charts: where a value stands between the ends of an axis, and the marks on it.

An axis is of numbers, linear or logarithmic, or of categories. What has no place on an axis, such as NaN or a text
among numbers, is left out by the chart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prefect_launch.sweeps.config import Metric
from prefect_launch.sweeps.distributions import (
    Categorical,
    Constant,
    Distribution,
    IntUniform,
    InverseLogUniform,
    LogNormal,
    LogUniform,
    LogUniformValues,
    Uniform,
    value_key,
)
from prefect_launch.sweeps.trial_table import value_in_words

#: Positive numbers whose ends differ by this factor are on a logarithmic axis, where nothing else says which.
_LOG_FACTOR: Final = 1_000.0
_TICKS: Final = 5
#: A metric's axis ends at values that are beyond the middle four fifths by so many times their width, where there are
#: enough values to tell.
_CUT_FACTOR: Final = 5.0
_CUT_VALUES: Final = 10
#: Categories that have a mark; of more, some have none.
_MARKED: Final = 12
#: Different numbers of a list that are categories; more of them are on an axis of numbers.
_CATEGORIES: Final = 20

#: A mark: its share of the axis from 0 to 1, and what it says.
Tick = tuple[float, str]


class Axis:
    """Where the values of something stand.

    Attributes:
        is_log: whether the axis is logarithmic.
    """

    is_log: bool = False

    def place(self, value: Any) -> float | None:
        """Return the share of the axis that is below a value, 0 to 1; `None` when it has no place."""
        raise NotImplementedError

    @property
    def ticks(self) -> list[Tick]:
        """The marks, from the lowest."""
        raise NotImplementedError


@dataclass(frozen=True)
class NumberAxis(Axis):
    """Numbers from a low end to a high one.

    Attributes:
        low: the low end.
        high: the high end.
        is_log: whether the axis is logarithmic.
        is_cut: whether numbers beyond an end stand at it; else they have no place.
    """

    low: float
    high: float
    is_log: bool = False
    is_cut: bool = False

    def place(self, value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        if self.is_log and value <= 0:
            return None
        if self.low >= self.high:
            return 0.5 if value == self.low else None
        if self.is_cut:
            value = min(max(value, self.low), self.high)
        low, at, high = (math.log(one) if self.is_log else float(one) for one in (self.low, value, self.high))
        # Halves, for the distance of two floats may be beyond the largest one.
        share = (at / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
        return min(max(share, 0.0), 1.0) if -1e-9 <= share <= 1 + 1e-9 else None

    @property
    def ticks(self) -> list[Tick]:
        marks = [self.low, *self._round_marks(), self.high] if self.low < self.high else [self.low]
        placed = [(share, _in_words(mark)) for mark in marks if (share := self.place(mark)) is not None]
        ends, between = [placed[0], placed[-1]] if len(placed) > 1 else placed, placed[1:-1]
        # A round mark that is close to an end would be drawn over it.
        return sorted({*ends, *(one for one in between if 0.08 < one[0] < 0.92)})

    def _round_marks(self) -> list[float]:
        return _log_marks(self.low, self.high) if self.is_log else _linear_marks(self.low, self.high)


def _in_words(mark: float) -> str:
    """Write the number of a mark in few characters: `0.25`, `6e-06`, `800k`."""
    for factor, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 10_000 <= abs(mark) < 1e15 and abs(mark) >= factor:
            return f"{mark / factor:.4g}{sign}"
    words = f"{mark:.4g}"
    return f"{mark:.1e}".replace(".0e", "e") if "e" in words else words


def _linear_marks(low: float, high: float) -> list[float]:
    width = high - low
    if not math.isfinite(width) or width / _TICKS <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(width / _TICKS))
    step = next((power * factor for factor in (1, 2, 5) if width / (power * factor) <= _TICKS), power * 10)
    if not step or low + step == low:
        return []
    first = math.ceil(low / step)
    return [number * step for number in range(first, first + _TICKS + 2) if low < number * step < high]


def _log_marks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = max(1, (last - first) // _TICKS)
    marks = [
        factor * 10.0**power for power in range(first, last + 1, every) for factor in factors if -300 < power < 300
    ]
    return [mark for mark in marks if low < mark < high]


class CategoryAxis(Axis):
    """Values one beside the other; numbers are sorted, others keep their order.

    Args:
        values: the values; of equal ones, the first.

    Attributes:
        values: the different values, in their places.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        different: dict[str, Any] = {}
        for value in values:
            different.setdefault(value_key(value), value)
        if all(_is_number(value) for value in different.values()):
            different = dict(sorted(different.items(), key=lambda pair: float(pair[1])))
        self.values = list(different.values())
        self._places = {key: place for place, key in enumerate(different)}

    def place(self, value: Any) -> float | None:
        place = self._places.get(value_key(value))
        return None if place is None else self._share(place)

    def _share(self, place: int) -> float:
        return place / (len(self.values) - 1) if len(self.values) > 1 else 0.5

    @property
    def ticks(self) -> list[Tick]:
        every = -(-len(self.values) // _MARKED)
        marked = range(0, len(self.values), every)
        return [(self._share(place), value_in_words(self.values[place])) for place in marked]


def number_axis(values: Sequence[float], *, is_log: bool | None = None) -> NumberAxis:
    """Return the axis that finite numbers need.

    Args:
        values: the numbers; none of them gives an axis from 0 to 1.
        is_log: whether it is logarithmic, where that can be. `None`: when all are positive, and far apart.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if is_log is None:
        is_log = low > 0 and high / low >= _LOG_FACTOR
    return NumberAxis(low, high, is_log and low > 0)


def metric_axis(values: Sequence[float], metric: Metric) -> NumberAxis:
    """Return the axis of a metric: cut where few bad values are so far away that the others would be one line.

    Args:
        values: finite numbers.
        metric: whose goal says which are bad.
    """
    axis = number_axis(values)
    if axis.is_log or len(values) < _CUT_VALUES:
        return axis
    ordered = sorted(values)
    tenth = len(ordered) // 10
    low, high = ordered[tenth], ordered[-1 - tenth]
    room = (high - low) * _CUT_FACTOR
    if room <= 0 or not math.isfinite(room):
        return axis
    if metric.goal == "minimize":
        kept = [value for value in ordered if value <= high + room]
    else:
        kept = [value for value in ordered if value >= low - room]
    return NumberAxis(kept[0], kept[-1], is_cut=len(kept) < len(ordered))


def parameter_axis(distribution: Distribution, values: Sequence[Any]) -> Axis:
    """Return the axis of a parameter: all that it may be, and what trials have had.

    Args:
        distribution: what it may be.
        values: what trials have had.
    """
    if isinstance(distribution, Constant):
        return CategoryAxis([distribution.value, *values])
    if isinstance(distribution, Categorical):
        different = distribution.different
        if len(different) <= _CATEGORIES or not all(_is_number(value) for value in different):
            return CategoryAxis([*different, *values])
        return number_axis([float(value) for value in [*different, *values] if _is_number(value)])
    ends = _ends(distribution)
    is_log = isinstance(distribution, (LogUniformValues, LogUniform, LogNormal))
    return number_axis([float(value) for value in [*ends, *values] if _is_number(value)], is_log=is_log)


def _ends(distribution: Distribution) -> tuple[float, ...]:
    """Return the lowest and the highest value, where there are such."""
    if isinstance(distribution, InverseLogUniform):
        return math.exp(-distribution.max), math.exp(-distribution.min)
    if isinstance(distribution, LogUniform):
        return math.exp(distribution.min), math.exp(distribution.max)
    return (distribution.min, distribution.max) if isinstance(distribution, (Uniform, IntUniform)) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
