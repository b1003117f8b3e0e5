"""Hyperband early stopping, as W&B counts it: which running trials are stopped at which band.

A band is a number of reported values of the metric, not of epochs. At a band, the best 1/eta of all trials that have
reached it go on. This is not Optuna's Hyperband, which puts trials into brackets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

from prefect_launch.sweeps.config import EarlyTerminate, Metric
from prefect_launch.sweeps.history import History, TrialState

#: As many as W&B looks at.
_MAX_BANDS = 100


def bands(rule: EarlyTerminate) -> tuple[int, ...]:
    """Return the numbers of steps at which trials are compared, in their order.

    With `max_iter` and `s`: `s` bands below `max_iter`, each 1/eta of the next. Else from `min_iter` on, each eta times
    the one before.
    """
    if rule.max_iter is not None and rule.s is not None:
        below = (rule.max_iter / rule.eta**number for number in range(1, int(rule.s) + 1))
        return tuple(reversed([int(band) for band in takewhile(lambda band: band >= 1, below)]))
    first = rule.min_iter or 1
    powers = takewhile(math.isfinite, (first * float(rule.eta) ** number for number in range(_MAX_BANDS)))
    return tuple(int(band) for band in powers)


def trials_to_stop(rule: EarlyTerminate, metric: Metric, history: History) -> tuple[int, ...]:
    """Return the numbers of the running trials that are stopped now.

    Args:
        rule: the sweep's `early_terminate`.
        metric: what trials are compared by.
        history: the trials; the steps of those that ended count too.
    """
    scores = {
        trial.number: [metric.score(value) for value in trial.steps if math.isfinite(value)] for trial in history.trials
    }
    compared = [band for band in bands(rule) if any(len(steps) >= band for steps in scores.values())]
    limits = {band: _limit(rule, band, list(scores.values())) for band in compared}
    return tuple(
        trial.number
        for trial in history.trials
        if trial.state is TrialState.RUNNING and _is_worse(rule, scores[trial.number], limits)
    )


def _limit(rule: EarlyTerminate, band: int, scores: Sequence[Sequence[float]]) -> float:
    """Return the worst score at a band with which a trial continues."""
    reached = sorted(steps[band - 1] for steps in scores if len(steps) >= band)
    return reached[int(1 / rule.eta * len(reached))]


def _is_worse(rule: EarlyTerminate, steps: Sequence[float], limits: dict[int, float]) -> bool:
    """Whether a trial is worse than the limit of the last band that it has reached."""
    band = max((band for band in limits if band <= len(steps)), default=None)
    if band is None:
        return False
    return (steps[band - 1] if rule.strict else min(steps)) > limits[band]
