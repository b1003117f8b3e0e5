"""Hyperband's bands, and which trials are stopped at them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefect_launch.sweeps.config import EarlyTerminate, Metric
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.hyperband import bands, trials_to_stop

LOSS = Metric(name="loss")


def rule(**given: Any) -> EarlyTerminate:
    return EarlyTerminate(type="hyperband", **given)


def history(*steps: list[float], ended: int = 0) -> History:
    """Running trials with these steps; the first ones have ended."""
    states = [TrialState.FINISHED] * ended + [TrialState.RUNNING] * (len(steps) - ended)
    return History(
        tuple(Trial(k, {}, state, steps=tuple(each)) for k, (each, state) in enumerate(zip(steps, states, strict=True)))
    )


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({"min_iter": 3}, (3, 9, 27, 81)),
        ({"min_iter": 1, "eta": 1.5}, (1, 1, 2, 3, 5)),
        ({"max_iter": 27, "s": 2}, (3, 9)),
        ({"max_iter": 27, "s": 2, "eta": 2}, (6, 13)),
        ({"max_iter": 27, "s": 9}, (1, 3, 9)),
    ],
)
def test_bands_are_those_of_wandb(given: dict[str, Any], first: tuple[int, ...]) -> None:
    assert bands(rule(**given))[: len(first)] == first
    assert "min_iter" in given or len(bands(rule(**given))) == len(first)


def test_worse_trials_are_stopped_at_the_band_that_they_have_reached() -> None:
    told = history([10, 9], [10, 10], [10, 8, 8], [10, 7, 7], [10, 6, 6], ended=1)

    assert trials_to_stop(rule(max_iter=5, eta=2, s=2), LOSS, told) == (1,)


def test_nothing_is_stopped_before_the_first_band() -> None:
    assert trials_to_stop(rule(min_iter=3), LOSS, history([1, 1], [9, 9], [])) == ()


def test_greater_is_better_when_the_metric_says_so() -> None:
    told = history([0.1], [0.5], [0.9])

    assert trials_to_stop(rule(min_iter=1), Metric(name="acc", goal="maximize"), told) == (0,)
    assert trials_to_stop(rule(min_iter=1), LOSS, told) == (2,)


def test_best_step_so_far_counts_when_not_strict() -> None:
    told = history([1, 9, 9], [2, 2, 2], [3, 3, 3], [4, 4, 4])

    assert trials_to_stop(rule(min_iter=3), LOSS, told) == (0, 3)
    assert trials_to_stop(rule(min_iter=3, strict=False), LOSS, told) == (3,)


def test_steps_that_are_no_numbers_do_not_count() -> None:
    assert trials_to_stop(rule(min_iter=2), LOSS, history([1, math.nan], [9, math.inf], [9, 9, 9])) == ()
