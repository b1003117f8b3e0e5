"""Importance of a sweep's parameters: how much each of them alone decides on the metric.

Our own measure is the share of the metric's variance that a parameter explains, by ranks and without what chance would
explain (epsilon squared of a one-way analysis of variance: Kruskal and Wallis's test). A parameter of many numbers is
cut into groups of as many trials each. It is 0 to 1, sees curves, and does not see what only two parameters together
do. A sweep by `bayes` with 50 values or more has Optuna's PED-ANOVA in its place, where Optuna is installed: how much a
parameter decides on being among the best tenth; all parameters together are 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from prefect_launch.errors import AgentConfigError
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.distributions import value_key
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.search_space import MISSING, value_or_missing

#: Values of the metric that a measure needs.
MIN_VALUES: Final = 10
#: Values that Optuna's needs: five of them are among the best tenth.
_MIN_OPTUNA_VALUES: Final = 50
_MAX_GROUPS: Final = 8


@dataclass(frozen=True)
class Importance:
    """How much one parameter decides.

    Attributes:
        name: of the parameter, with dots.
        share: 0 to 1.
        correlation: Spearman's rank correlation with the metric, -1 to 1; `None` for what are no numbers.
    """

    name: str
    share: float
    correlation: float | None = None


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides.

    Attributes:
        by: what measured it, in words.
        parameters: the most important one first; empty when there are too few values.
        values: how many values of the metric there are.
    """

    by: str
    parameters: tuple[Importance, ...]
    values: int


def measure_importance(config: SweepConfig, history: History) -> Importances:
    """Measure the importance of all parameters that vary.

    Args:
        config: of the sweep.
        history: its trials; those that have finished with a finite value count.
    """
    known = [one for one in history.trials if one.state is TrialState.FINISHED and one.value is not None]
    by = "share of the metric's variance that it explains alone, by ranks"
    if len(known) < MIN_VALUES or config.objective is None:
        return Importances(by, (), len(known))
    ranks = _ranks([one.value or 0.0 for one in known])
    found = [_own(path, known, ranks) for path, each in config.parameters if each.points != 1]
    if config.method == "bayes" and len(known) >= _MIN_OPTUNA_VALUES:
        with suppress(AgentConfigError):
            shares = _by_optuna(config, known)
            found = [replace(one, share=shares.get(one.name, 0.0)) for one in found]
            by = "PED-ANOVA by Optuna: how much it decides on being among the best tenth; all together are 1"
    return Importances(by, tuple(sorted(found, key=lambda one: (-one.share, one.name))), len(known))


def _by_optuna(config: SweepConfig, known: list[Trial]) -> dict[str, float]:
    from prefect_launch.sweeps.samplers.bayes import BayesSampler

    return BayesSampler(config, "").importance(History(tuple(known)))


def _own(path: tuple[str, ...], known: list[Trial], ranks: list[float]) -> Importance:
    """Measure one parameter by the ranks of the metric; trials that have none of it are one group."""
    found = (value_or_missing(trial.params, path) for trial in known)
    values: list[Any] = [None if value is MISSING else value for value in found]
    numbers = [float(value) for value in values if _is_number(value)]
    correlation = _correlation(_ranks(numbers), ranks) if len(numbers) == len(values) else None
    return Importance(".".join(path), _explained(_groups(values), ranks), correlation)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _groups(values: Sequence[Any]) -> list[str]:
    """Return the group of each value: equal values are one, and of many numbers, neighbours are."""
    keys = [value_key(value) for value in values]
    most = max(2, min(_MAX_GROUPS, math.isqrt(len(values))))
    if len(set(keys)) <= most or not all(map(_is_number, values)):
        return keys
    ranks = _ranks([float(value) for value in values])
    return [str(min(int((rank - 0.5) * most / len(values)), most - 1)) for rank in ranks]


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equal values share the middle of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
        start = end
    return ranks


def _explained(groups: Sequence[str], ranks: Sequence[float]) -> float:
    """Return the share of the ranks' variance between the groups, without what chance would give."""
    count = len(ranks)
    mean = sum(ranks) / count
    total = sum((rank - mean) ** 2 for rank in ranks)
    members: dict[str, list[float]] = {}
    for group, rank in zip(groups, ranks, strict=True):
        members.setdefault(group, []).append(rank)
    free = count - len(members)
    if not total or free <= 0 or len(members) < 2:
        return 0.0
    between = sum(len(one) * (sum(one) / len(one) - mean) ** 2 for one in members.values())
    return min(max((between - (len(members) - 1) * (total - between) / free) / total, 0.0), 1.0)


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    middle = (len(first) + 1) / 2
    both = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    size = math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))
    return max(-1.0, min(1.0, both / size)) if size else None
