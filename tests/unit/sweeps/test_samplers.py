"""Samplers: which point each trial has, by the history alone."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

import pytest

from prefect_launch.errors import AgentConfigError, NotFoundError
from prefect_launch.sweeps.config import SweepConfig, parse_sweep
from prefect_launch.sweeps.distributions import DISTRIBUTIONS, MAX_QUANTILE, MIN_QUANTILE, Continuous
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.samplers.base import Sampler, next_params
from prefect_launch.sweeps.samplers.registry import SAMPLERS, make_sampler
from prefect_launch.sweeps.search_space import point_key

SWEEP = "0198b2a4-0000-7000-8000-000000000001"
LOSS = {"metric": {"name": "loss"}}
RANGE = {"x": {"min": -5.0, "max": 5.0}, "n": {"min": 1, "max": 8}, "c": {"values": ["a", [1, 2], None]}}


def config(method: str, parameters: Mapping[str, Any], **more: Any) -> SweepConfig:
    return parse_sweep({"method": method, "parameters": parameters, **(LOSS if method == "bayes" else {}), **more})


def points(sampler: Sampler, count: int) -> list[dict[str, Any]]:
    """The first points, all of them still running."""
    history = History()
    for _ in range(count):
        params = next_params(sampler, history)
        if params is None:
            break
        history = history.with_trial(params)
    return [dict(trial.params) for trial in history.trials]


def ended(number: int, params: Mapping[str, Any], metric: float | None, state: str = "finished") -> Trial:
    return Trial(number, params, TrialState(state), metric)


# --- grid ---


def test_grid_gives_each_combination_once_with_the_last_name_fastest() -> None:
    sampler = make_sampler(
        config("grid", {"b": {"values": [1, 2]}, "a": {"values": ["x", "y"]}, "k": {"value": 0}}), SWEEP
    )

    assert points(sampler, 9) == [{"a": a, "b": b, "k": 0} for a in "xy" for b in (1, 2)]


def test_grid_point_counts_as_used_whatever_became_of_its_trial() -> None:
    sampler = make_sampler(config("grid", {"a": {"values": [1, 2, 3]}}), SWEEP)
    trials = tuple(ended(k, {"a": k + 1}, None, state) for k, state in enumerate(("failed", "cancelled", "pruned")))

    assert next_params(sampler, History(trials)) is None


def test_number_that_no_trial_has_is_asked_for_again() -> None:
    sampler = make_sampler(config("grid", {"a": {"values": [1, 2, 3]}}), SWEEP)
    history = History((ended(0, {"a": 1}, 0.1), ended(2, {"a": 3}, 0.1)))

    assert history.next_number == 1
    assert next_params(sampler, history) == {"a": 2}


def test_last_points_of_a_grid_of_billions_are_given_without_the_others() -> None:
    sampler = make_sampler(config("grid", {name: {"min": 0, "max": 99_999} for name in "abc"}), SWEEP)

    class Late(History):
        next_number = 10**15 - 1

    assert next_params(sampler, Late()) == {"a": 99_999, "b": 99_999, "c": 99_999}


def test_step_of_a_grid_has_no_dust_of_floats() -> None:
    sampler = make_sampler(config("grid", {"a": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}}), SWEEP)

    assert [point["a"] for point in points(sampler, 20)] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


# --- random ---


def test_random_point_depends_on_sweep_seed_and_number_alone() -> None:
    space = config("random", RANGE)
    first = points(make_sampler(space, SWEEP), 20)
    failed = tuple(ended(k, params, None, "failed") for k, params in enumerate(first[:7]))

    assert points(make_sampler(space, SWEEP), 20) == first
    assert next_params(make_sampler(space, SWEEP), History(failed)) == first[7]
    assert points(make_sampler(space, "another"), 20) != first
    assert points(make_sampler(config("random", RANGE, seed=1), SWEEP), 20) != first


def test_random_points_are_the_same_on_every_machine_and_python() -> None:
    (point,) = points(make_sampler(config("random", RANGE), SWEEP), 1)

    assert point == {"c": None, "n": 3, "x": pytest.approx(1.0418421493586685)}


def test_one_more_parameter_changes_no_other_value() -> None:
    more = {**RANGE, "extra": {"distribution": "normal"}}
    before = points(make_sampler(config("random", RANGE), SWEEP), 5)

    after = points(make_sampler(config("random", more), SWEEP), 5)

    assert [{name: value for name, value in point.items() if name != "extra"} for point in after] == before


def test_nested_parameters_are_one_value_and_a_dotted_name_stays_one_name() -> None:
    group = {"o": {"parameters": {"lr": {"value": 1}, "in": {"parameters": {"k": {"value": 2}}}}}, "o.lr": {"value": 3}}

    assert points(make_sampler(config("random", group), SWEEP), 1) == [{"o": {"lr": 1, "in": {"k": 2}}, "o.lr": 3}]


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        ({"min": -(2**63), "max": 2**64 - 1}, -(2**63), 2**64 - 1),
        ({"min": -1.7e308, "max": 1.7e308}, -1.7e308, 1.7e308),
        ({"distribution": "log_uniform_values", "min": 5e-324, "max": 1.7e308}, 5e-324, 1.7e308),
        ({"distribution": "log_uniform", "min": -700, "max": 700}, 0, math.exp(700)),
        ({"distribution": "inv_log_uniform", "min": -1, "max": 2}, math.exp(-2.01), math.exp(1.01)),
        ({"distribution": "normal", "mu": 1e300, "sigma": 1e299}, 0, 2e300),
        ({"distribution": "log_normal", "sigma": 80}, 0, 1.7e308),
        ({"distribution": "beta", "a": 1e-3, "b": 1e6}, 0, 1),
        ({"distribution": "q_normal", "sigma": 0}, 0, 0),
    ],
)
def test_ends_of_a_range_and_huge_values_are_drawn_without_overflow(
    shape: dict[str, Any], low: float, high: float
) -> None:
    ((_, kind),) = config("random", {"a": shape}).parameters

    drawn = [kind.draw(quantile) for quantile in (MIN_QUANTILE, 0.3, 0.5, 0.7, MAX_QUANTILE)]

    assert drawn == sorted(drawn)
    assert all(low <= value <= high and math.isfinite(value) for value in drawn)


CONTINUOUS: dict[str, dict[str, Any]] = {
    **{"uniform": {"min": -2, "max": 3}, "log_uniform": {"min": -5, "max": 2}, "beta": {"a": 2, "b": 0.5}},
    **{"log_uniform_values": {"min": 1e-5, "max": 10}, "inv_log_uniform_values": {"min": 0.1, "max": 7}},
    **{"inv_log_uniform": {"min": -1, "max": 3}, "normal": {"mu": 3, "sigma": 0.1}, "log_normal": {"sigma": 2}},
}


@pytest.mark.parametrize("name", [name for name, kind in DISTRIBUTIONS.items() if issubclass(kind, Continuous)])
def test_quantile_of_a_drawn_value_is_the_one_that_it_was_drawn_at(name: str) -> None:
    shape = CONTINUOUS[name.removeprefix("q_")]
    shape = {**shape, "q": 1e-9} if name.startswith("q_") else shape
    ((_, kind),) = config("random", {"a": {"distribution": name, **shape}}).parameters
    assert isinstance(kind, Continuous)

    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert kind.quantile(kind.draw(quantile)) == pytest.approx(quantile, abs=1e-5)
    assert [kind.quantile(-1e9), kind.quantile(1e9)] == pytest.approx([0, 1])


# --- bayes ---


def loss(params: Mapping[str, Any]) -> float:
    return float((params["x"] - 2) ** 2 + 0.5 * (params["n"] - 4) ** 2 + 3 * (params["c"] != [1, 2]))


def played(sampler: Sampler, count: int, *, workers: int = 4, fail_every: int = 5) -> History:
    """Run trials, several at a time, told out of order, some failing."""
    history, chance = History(), random.Random(0)
    while len(history.trials) < count or history.open:
        while len(history.open) < workers and len(history.trials) < count:
            params = next_params(sampler, history)
            assert params is not None
            history = history.with_trial(params)
        done = chance.choice(history.open)
        failed = fail_every and done.number % fail_every == 2
        told = ended(
            done.number, done.params, None if failed else loss(done.params), "failed" if failed else "finished"
        )
        history = History(tuple(told if trial.number == done.number else trial for trial in history.trials))
    return history


def test_bayes_finds_a_better_point_than_random_search_with_failures_and_trials_in_parallel() -> None:
    best = {
        method: min(loss(trial.params) for trial in played(make_sampler(config(method, RANGE), SWEEP), 40).trials[20:])
        for method in ("bayes", "random")
    }

    assert best["bayes"] < best["random"] / 2


def test_bayes_made_anew_from_the_same_history_gives_the_same_point() -> None:
    space = config("bayes", RANGE)
    history = played(make_sampler(space, SWEEP), 20)
    shuffled = History(tuple(random.Random(1).sample(history.trials, len(history.trials))))

    asked = [next_params(make_sampler(space, SWEEP), each) for each in (history, history, shuffled)]

    assert asked[0] == asked[1] == asked[2]


def test_points_in_parallel_are_all_different_also_when_few_are_left() -> None:
    sampler = make_sampler(config("bayes", {"a": {"values": [1, 2, 3]}, "b": {"min": 0, "max": 3}}), SWEEP)

    given = points(sampler, 50)

    assert len({point_key(point) for point in given}) == len(given) == 12


def test_all_points_of_a_rounded_range_are_tried_before_there_are_no_more() -> None:
    shape = {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}
    sampler = make_sampler(config("bayes", {"a": shape, "w": {"values": [1, 2], "probabilities": [1, 0]}}), SWEEP)

    assert sorted(point["a"] for point in points(sampler, 50)) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("impute", ["worst", "best", "latest"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1e308, -1e308])
def test_failed_and_diverged_trials_never_break_the_sampler(value: float | None, impute: str) -> None:
    sampler = make_sampler(config("bayes", RANGE, metric={"name": "loss", "impute": impute}), SWEEP)
    good = played(sampler, 12, fail_every=0).trials
    bad = (
        ended(12, {"x": 1.0, "n": 2, "c": "a"}, value, "failed"),
        ended(13, {"x": 1.5, "n": 2, "c": "a"}, value),
        ended(14, {"x": 1.5, "n": 3, "c": "a"}, value, "pruned"),
        ended(15, {"x": 1.5, "n": 4, "c": "a"}, value, "cancelled"),
    )

    for trials in (bad, (*good, *bad)):
        assert next_params(sampler, History(tuple(Trial(k, t.params, t.state, t.metric) for k, t in enumerate(trials))))


def test_trials_of_another_space_are_left_out_and_break_nothing() -> None:
    sampler = make_sampler(config("bayes", RANGE), SWEEP)
    strange: list[dict[str, Any]] = [
        *({}, {"x": "far", "n": 1, "c": "a"}, {"x": 99.0, "n": 1, "c": "a"}, {"x": 0.0, "n": 2.5, "c": "z"}),
        *({"x": {"y": 1}, "n": 1, "c": "a"}, {"x": True, "n": 1, "c": "a"}, {"x": None, "n": None, "c": None}),
    ]
    history = played(sampler, 12)

    mixed = History(history.trials, prior=tuple(ended(k, params, 0.0) for k, params in enumerate(strange)))

    assert next_params(sampler, mixed) == next_params(sampler, history)


def test_earlier_runs_warm_the_sampler_and_count_as_no_trials() -> None:
    sampler = make_sampler(config("bayes", RANGE), SWEEP)
    prior = played(make_sampler(config("random", RANGE), "before"), 60, fail_every=0).trials

    warm = list(points_after(sampler, History(prior=prior), 5))

    assert History(prior=prior).next_number == 0
    assert sum(loss(params) for params in warm) < sum(loss(params) for params in points(sampler, 5))


def points_after(sampler: Sampler, history: History, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        params = next_params(sampler, history)
        assert params is not None
        yield params
        history = History((*history.trials, ended(history.next_number, params, loss(params))), prior=history.prior)


def test_sweep_of_constants_alone_has_one_point() -> None:
    for method in ("grid", "bayes"):
        assert points(make_sampler(config(method, {"a": {"value": 1}}), SWEEP), 3) == [{"a": 1}]


def test_bayes_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(AgentConfigError, match=r"pip install 'prefect-launch\[sweeps\]'"):
        make_sampler(config("bayes", RANGE), SWEEP)


# --- a third party's ---


class Halving(Sampler):
    """Gives 1, 1/2, 1/4, …, by the history."""

    def ask(self, history: History) -> dict[str, Any] | None:
        return {"x": 0.5**history.next_number} if history.next_number < 3 else None


class Broken(Sampler):
    """Gives what the sweep's seed says: something that no trial can have."""

    def ask(self, history: History) -> Any:
        answers: list[Any] = [3, {"x": math.nan}, {1: 2}, {"x": object()}]
        return 1 / 0 if self.config.seed == len(answers) else answers[self.config.seed]


@pytest.fixture
def three_samplers() -> Iterator[None]:
    """Three samplers of another package."""
    names = {"halving": "Halving", "broken": "Broken", "none": "LOSS"}
    with patch.dict(SAMPLERS._places, {name: f"{__name__}:{attribute}" for name, attribute in names.items()}):
        yield


@pytest.mark.usefixtures("three_samplers")
def test_sampler_of_another_package_is_asked_by_its_name() -> None:
    sampler = make_sampler(config("custom", {"x": {"value": 0}}, sampler="halving"), SWEEP)

    assert points(sampler, 9) == [{"x": 1.0}, {"x": 0.5}, {"x": 0.25}]


@pytest.mark.usefixtures("three_samplers")
@pytest.mark.parametrize(
    ("seed", "words"),
    [(0, "returned 3"), (1, "x is nan"), (2, "a name is 1"), (3, "type 'object'"), (4, "ZeroDivisionError")],
)
def test_sampler_that_gives_no_parameters_is_named_with_what_it_gave(seed: int, words: str) -> None:
    sampler = make_sampler(config("custom", {"x": {"value": 0}}, sampler="broken", seed=seed), SWEEP)

    with pytest.raises(AgentConfigError, match=f"'broken'.*{words}"):
        next_params(sampler, History())


@pytest.mark.usefixtures("three_samplers")
def test_name_that_is_not_installed_or_is_no_sampler_is_refused() -> None:
    with pytest.raises(NotFoundError, match=r"Unknown sampler 'halvin'\. Did you mean 'halving'\?"):
        make_sampler(config("custom", {"x": {"value": 0}}, sampler="halvin"), SWEEP)
    with pytest.raises(AgentConfigError, match="no class derived from Sampler"):
        make_sampler(config("custom", {"x": {"value": 0}}, sampler="none"), SWEEP)
