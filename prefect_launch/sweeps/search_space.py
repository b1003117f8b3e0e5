"""Search space of a sweep: its points, by number or at random, without a list of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prefect_launch.sweeps.distributions import value_key
from prefect_launch.sweeps.history import Trial
from prefect_launch.sweeps.parameters import Parameter


def number_of_points(parameters: Iterable[Parameter]) -> int | None:
    """Return how many different points a sampler can draw; `None` when there is a range of the reals."""
    return _product(distribution.points for _, distribution in parameters)


def number_of_grid_points(parameters: Iterable[Parameter]) -> int | None:
    """Return how many points the grid has; `None` when a grid cannot have one of the parameters."""
    return _product(distribution.grid_points for _, distribution in parameters)


def _product(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else math.prod(count for count in known if count is not None)


def point(parameters: Iterable[Parameter], number: int) -> dict[str, Any]:
    """Return one point that a sampler can draw, by its number.

    Args:
        parameters: all with a count of points.
        number: from 0 below the number of points.
    """
    return _numbered([(path, each.points, each.point) for path, each in parameters], number)


def grid_point(parameters: Iterable[Parameter], number: int) -> dict[str, Any]:
    """Return one point of the grid, by its number; the last parameter runs fastest.

    Args:
        parameters: all with a count of grid points.
        number: from 0 below the number of grid points.
    """
    return _numbered([(path, each.grid_points, each.grid_point) for path, each in parameters], number)


def _numbered(digits: list[tuple[tuple[str, ...], int | None, Callable[[int], Any]]], number: int) -> dict[str, Any]:
    """Return the point of a number whose digits, each with a base of its own, are the parameters'."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for path, base, value in reversed(digits):
        number, digit = divmod(number, base or 1)
        found.append((path, value(digit)))
    return nested(reversed(found))


def extreme_points(parameters: Iterable[Parameter]) -> Iterator[dict[str, Any]]:
    """Yield points that have each value of every list, and both ends of every range: as many as the longest list has.

    Args:
        parameters: any.
    """
    columns = [(path, distribution.extremes) for path, distribution in parameters]
    for number in range(max((len(values) for _, values in columns), default=0)):
        yield nested((path, values[number % len(values)]) for path, values in columns)


def random_point(parameters: Iterable[Parameter], key: str) -> dict[str, Any]:
    """Return a point drawn at random; the same key gives the same point, on every machine and Python.

    Each parameter has a quantile of its own from the key and its name: one more parameter changes no other.

    Args:
        parameters: any.
        key: what the point belongs to, such as the sweep, the seed and the trial's number.
    """
    return nested((path, distribution.draw(_quantile(f"{key}/{'/'.join(path)}"))) for path, distribution in parameters)


def _quantile(key: str) -> float:
    return (hashed(key, 52) + 0.5) / 2**52


def hashed(key: str, bits: int) -> int:
    """Return a number of so many bits, at most 64, that a text alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> (64 - bits)


def nested(values: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Return values by path as mappings in mappings; a dotted name stays one name."""
    point: dict[str, Any] = {}
    for (*groups, name), value in values:
        place = point
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return point


def value_at(point: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at a path.

    Raises:
        KeyError: when there is none.
    """
    found: Any = point
    for name in path:
        if not isinstance(found, Mapping):
            raise KeyError(name)
        found = found[name]
    return found


#: Stands for a value that a point does not have.
MISSING: Final = object()


def value_or_missing(point: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at a path, or `MISSING`."""
    try:
        return value_at(point, path)
    except KeyError:
        return MISSING


def values_of(trials: Iterable[Trial], path: tuple[str, ...]) -> list[Any]:
    """Return the values at a path of those trials that have one."""
    return [value for trial in trials if (value := value_or_missing(trial.params, path)) is not MISSING]


def point_key(point: Mapping[str, Any]) -> str:
    """Return a text that equal points share."""
    return value_key(point)
