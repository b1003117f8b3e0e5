"""Distributions of a sweep's parameters, as W&B's sweep files name them.

A distribution over the reals gives its value at each quantile, and the quantile of each value; a sampler works on the
quantiles, 0 to 1, and knows nothing of the shapes. A discrete one has numbered points, counted without a list of them.
Values, ranges and rounding are those of W&B's own package, except that a rounded value has no floating-point dust
(0.3, not 0.30000000000000004).
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prefect_launch.core.validation import json_fault

#: exp() of more than this is no finite number.
_MAX_EXPONENT: Final = 709.0
#: No quantile of 53 bits lies further from the mean, in standard deviations.
_MAX_DEVIATIONS: Final = 8.5
_STANDARD: Final = NormalDist()
#: The quantiles nearest to 0 and 1 that are drawn: every distribution has a finite value there.
MIN_QUANTILE: Final = 2.0**-53
MAX_QUANTILE: Final = 1 - 2.0**-53
#: A value at this quantile is not the end of its range, which a rule may exclude: nobody draws it.
_NEAR_AN_END: Final = 1e-9


def _number(value: object) -> object:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            pass
        else:
            raise ValueError("it must be a number, and is text. Remove the quotes")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("it must be a number")
    if not math.isfinite(value):
        raise ValueError("it must be a finite number")
    return value


def _whole(value: object) -> object:
    _number(value)
    if not isinstance(value, int):
        raise ValueError("it must be a whole number, written in digits alone, such as 1000")
    return value


Number = Annotated[int | float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]


class Distribution(BaseModel):
    """What one parameter may be.

    Attributes:
        name: the word of the key `distribution`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]

    @property
    def points(self) -> int | None:
        """How many different values there are; `None` for a range of the reals."""
        raise NotImplementedError

    def point(self, index: int) -> Any:
        """Return one of the different values.

        Args:
            index: its number, from 0 below `points`.
        """
        raise NotImplementedError

    def draw(self, quantile: float) -> Any:
        """Return the value at a quantile.

        Args:
            quantile: above 0 and below 1.
        """
        raise NotImplementedError

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that a rule for the values can be tried with: each of a list, and what lies next to the ends."""
        return (self.draw(_NEAR_AN_END), self.draw(1 - _NEAR_AN_END))

    @property
    def grid_points(self) -> int | None:
        """How many values a grid has of it; `None` when a grid cannot have it."""
        return self.points

    def grid_point(self, index: int) -> Any:
        """Return one of the values that a grid has of it.

        Args:
            index: its number, from 0 below `grid_points`.
        """
        return self.point(index)


# --- discrete ---


class Constant(Distribution):
    """One value, whatever it is."""

    name = "constant"
    value: Any

    @property
    def points(self) -> int:
        return 1

    def point(self, index: int) -> Any:
        return self.value

    def draw(self, quantile: float) -> Any:
        return self.value


class Categorical(Distribution):
    """One of some values, each as likely as the others; a value that stands twice is as likely as two."""

    name = "categorical"
    values: tuple[Any, ...]

    @model_validator(mode="before")
    @classmethod
    def _check_list(cls, data: Any) -> Any:
        if not isinstance(data.get("values"), (list, tuple)) or not data["values"]:
            raise ValueError("values must be a list of at least one value. For a constant, write 'value'")
        return data

    @cached_property
    def different(self) -> tuple[Any, ...]:
        """The values without those that stand there already; 3 and 3.0 are the same."""
        found: dict[str, Any] = {}
        for value in self._possible:
            found.setdefault(value_key(value), value)
        return tuple(found.values())

    @property
    def _possible(self) -> tuple[Any, ...]:
        return self.values

    @property
    def points(self) -> int:
        return len(self.different)

    def point(self, index: int) -> Any:
        return self.different[index]

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.different

    def draw(self, quantile: float) -> Any:
        return self.values[min(int(quantile * len(self.values)), len(self.values) - 1)]


class WeightedCategorical(Categorical):
    """One of some values, each with its probability."""

    name = "categorical_w_probabilities"
    probabilities: tuple[Annotated[Number, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _check_probabilities(self) -> WeightedCategorical:
        if len(self.probabilities) != len(self.values):
            raise ValueError(
                f"probabilities must have one number for each of the {len(self.values)} values, and has"
                f" {len(self.probabilities)}"
            )
        if not math.isclose(sum(self.probabilities), 1.0, rel_tol=1e-5, abs_tol=1e-8):
            raise ValueError(f"probabilities must sum to 1, and sum to {sum(self.probabilities):g}")
        return self

    @property
    def _possible(self) -> tuple[Any, ...]:
        return tuple(value for value, probability in zip(self.values, self.probabilities, strict=True) if probability)

    @property
    def grid_points(self) -> None:
        return None

    def draw(self, quantile: float) -> Any:
        below = 0.0
        for value, probability in zip(self.values, self.probabilities, strict=True):
            below += probability
            if quantile < below:
                return value
        return self._possible[-1]


class IntUniform(Distribution):
    """Whole numbers of a range, both ends included."""

    name = "int_uniform"
    min: Whole
    max: Whole

    @model_validator(mode="after")
    def _check_order(self) -> IntUniform:
        _check_range(self.min, self.max)
        return self

    @property
    def points(self) -> int:
        return self.max - self.min + 1

    def point(self, index: int) -> int:
        return self.min + index

    def quantile(self, value: int) -> float:
        """Return the quantile in the middle of those at which a value is drawn."""
        return (2 * (value - self.min) + 1) / (2 * self.points)

    def draw(self, quantile: float) -> int:
        # In whole numbers: a float has not the digits of a range of 64 bits.
        return min(self.min + ((int(quantile * 2**53) * self.points) >> 53), self.max)


# --- over the reals ---


class Continuous(Distribution):
    """A range of the reals."""

    @property
    def points(self) -> int | None:
        return None

    def quantile(self, value: float) -> float:
        """Return the quantile of a value, 0 to 1; of one outside of the range, that of the nearest end."""
        raise NotImplementedError


class Uniform(Continuous):
    """Every number of a range as likely."""

    name = "uniform"
    min: Number
    max: Number

    @model_validator(mode="after")
    def _check_order(self) -> Uniform:
        _check_range(self.min, self.max)
        self._check_bounds()
        return self

    def _check_bounds(self) -> None:
        pass

    def draw(self, quantile: float) -> Any:
        return _between(float(self.min), quantile, float(self.max))

    def quantile(self, value: float) -> float:
        return _share(float(self.min), value, float(self.max))


class LogUniformValues(Uniform):
    """The logarithm uniform, between two positive values."""

    name = "log_uniform_values"

    def _check_bounds(self) -> None:
        if self.min <= 0:
            raise ValueError(f"min must be above 0 for a logarithm, and is {self.min}. 'log_uniform' takes exponents")

    def draw(self, quantile: float) -> Any:
        value = math.exp(_between(math.log(self.min), quantile, math.log(self.max)))
        return min(max(value, float(self.min)), float(self.max))

    def quantile(self, value: float) -> float:
        return 0.0 if value <= 0 else _share(math.log(self.min), math.log(value), math.log(self.max))


class InverseLogUniformValues(LogUniformValues):
    """The logarithm of 1/x uniform: the same distribution as `log_uniform_values`."""

    name = "inv_log_uniform_values"


class LogUniform(Uniform):
    """The logarithm uniform; the ends are exponents of e. Deprecated by W&B."""

    name = "log_uniform"

    def _check_bounds(self) -> None:
        _check_exponents(self.min, self.max, self.name)

    def draw(self, quantile: float) -> Any:
        return math.exp(_between(float(self.min), quantile, float(self.max)))

    def quantile(self, value: float) -> float:
        return 0.0 if value <= 0 else _share(float(self.min), math.log(value), float(self.max))


class InverseLogUniform(LogUniform):
    """The logarithm of 1/x uniform; the ends are exponents of e, for 1/x. Deprecated by W&B."""

    name = "inv_log_uniform"

    def draw(self, quantile: float) -> Any:
        return math.exp(-_between(float(self.min), 1 - quantile, float(self.max)))

    def quantile(self, value: float) -> float:
        return 0.0 if value <= 0 else 1 - _share(float(self.min), -math.log(value), float(self.max))


class Normal(Continuous):
    """The normal distribution; no bounds."""

    name = "normal"
    mu: Number = 0.0
    sigma: Annotated[Number, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _check_bounds(self) -> Normal:
        if not math.isfinite(abs(self.mu) + _MAX_DEVIATIONS * self.sigma):
            raise ValueError("mu and sigma are too large for finite values")
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        # What lies far out may never be drawn, so it refuses nothing.
        return (self.draw(0.5),)

    def draw(self, quantile: float) -> Any:
        return self.mu + self.sigma * _STANDARD.inv_cdf(quantile)

    def quantile(self, value: float) -> float:
        return _STANDARD.cdf((value - self.mu) / self.sigma) if self.sigma else 0.5


class LogNormal(Normal):
    """The exponential of a normal distribution."""

    name = "log_normal"

    @model_validator(mode="after")
    def _check_bounds(self) -> LogNormal:
        _check_exponents(self.mu - _MAX_DEVIATIONS * self.sigma, self.mu + _MAX_DEVIATIONS * self.sigma, self.name)
        return self

    def draw(self, quantile: float) -> Any:
        return math.exp(super().draw(quantile))

    def quantile(self, value: float) -> float:
        return 0.0 if value <= 0 else super().quantile(math.log(value))


class Beta(Continuous):
    """The beta distribution on 0 to 1."""

    name = "beta"
    a: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    b: Annotated[Number, Field(gt=0, le=1e6)] = 1.0

    @property
    def extremes(self) -> tuple[Any, ...]:
        # As for the normal distribution.
        return (self.draw(0.5),)

    def draw(self, quantile: float) -> Any:
        low, high = 0.0, 1.0
        # 60 halves of 0 to 1 are finer than a float's digits.
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.quantile(middle) < quantile else (low, middle)
        return (low + high) / 2

    def quantile(self, value: float) -> float:
        return _incomplete_beta(min(max(value, 0.0), 1.0), float(self.a), float(self.b))


# --- rounded ---


class Quantized(Continuous):
    """A distribution over the reals, rounded to a multiple of `q`."""

    q: Annotated[Number, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _check_step(self) -> Quantized:
        try:
            fault = json_fault([self.draw(MIN_QUANTILE), self.draw(MAX_QUANTILE)])
        except (ArithmeticError, ValueError):
            fault = "too many multiples"
        if fault:
            raise ValueError(f"q, {self.q}, is too small, or the range too large, to count its multiples")
        return self

    def draw(self, quantile: float) -> Any:
        return _multiple(round(super().draw(quantile) / self.q), self.q)


class QUniform(Quantized, Uniform):
    """`uniform`, rounded to a multiple of `q`. In a grid: from `min` in steps of `q`, without `max`."""

    name = "q_uniform"

    @property
    def points(self) -> int:
        return round(self.max / self.q) - round(self.min / self.q) + 1

    @property
    def grid_points(self) -> int:
        steps = (Decimal(str(self.max)) - Decimal(str(self.min))) / Decimal(str(self.q))
        return math.ceil(steps)

    def point(self, index: int) -> Any:
        return _multiple(round(self.min / self.q) + index, self.q)

    def grid_point(self, index: int) -> Any:
        return _multiple(index, self.q, self.min)


class QLogUniformValues(Quantized, LogUniformValues):
    """`log_uniform_values`, rounded to a multiple of `q`."""

    name = "q_log_uniform_values"


class QLogUniform(Quantized, LogUniform):
    """`log_uniform`, rounded to a multiple of `q`. Deprecated by W&B."""

    name = "q_log_uniform"


class QNormal(Quantized, Normal):
    """`normal`, rounded to a multiple of `q`."""

    name = "q_normal"


class QLogNormal(Quantized, LogNormal):
    """`log_normal`, rounded to a multiple of `q`."""

    name = "q_log_normal"


class QBeta(Quantized, Beta):
    """`beta`, rounded to a multiple of `q`."""

    name = "q_beta"


#: The class of each word of the key `distribution`.
DISTRIBUTIONS: Final[dict[str, type[Distribution]]] = {
    kind.name: kind
    for kind in (
        *(Constant, Categorical, WeightedCategorical, IntUniform, Uniform, LogUniform, LogUniformValues),
        *(InverseLogUniform, InverseLogUniformValues, Normal, LogNormal, Beta),
        *(QUniform, QLogUniform, QLogUniformValues, QNormal, QLogNormal, QBeta),
    )
}


def value_key(value: Any) -> str:
    """Return a text that equal values of a parameter share: 3 and 3.0 are equal, 1 and true are not."""
    return json.dumps(_whole_where_equal(value), sort_keys=True)


def _whole_where_equal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_where_equal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole_where_equal(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --- arithmetic ---


def _check_range(low: float, high: float) -> None:
    if low >= high:
        hint = ". For one value, write 'value'" if low == high else ""
        raise ValueError(f"min must be below max; they are {low} and {high}{hint}")


def _check_exponents(low: float, high: float, name: str) -> None:
    if not (abs(low) <= _MAX_EXPONENT and abs(high) <= _MAX_EXPONENT):
        raise ValueError(
            f"the ends of {name!r} are powers of e, and e to the power of {high if abs(high) >= abs(low) else low:g} is"
            " no finite number above 0"
        )


def _between(low: float, share: float, high: float) -> float:
    """Return the number at a share of the way; `high - low` may be no finite number."""
    return min(max(low * (1 - share) + high * share, low), high)


def _share(low: float, value: float, high: float) -> float:
    # Halves: the whole distance may be no finite number.
    return min(max((value / 2 - low / 2) / (high / 2 - low / 2), 0.0), 1.0)


def _multiple(times: int, step: float, start: float = 0) -> Any:
    """Return `start + times * step` by its decimal digits; a whole number when both are written so."""
    exact = Decimal(str(start)) + times * Decimal(str(step))
    return int(exact) if isinstance(step, int) and isinstance(start, int) else float(exact)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function, the beta distribution's cumulative one."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _beta_fraction(1 - x, b, a) / b
    return front * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method."""
    tiny, least = 1e-300, 1e-15
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 10_000):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + factor * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + factor / c
            c = c if abs(c) > tiny else tiny
            result *= c * d
        if abs(c * d - 1) < least:
            break
    return result
