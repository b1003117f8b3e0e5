"""Bayesian search: Optuna's TPE sampler, made anew in memory from the sweep's history.

Nothing is stored: the study of one call holds the history, and is thrown away. Every parameter over the reals is a
quantile to Optuna, so that all distributions are alike. Trials that wait or run count as bad ones (constant liar); one
that failed has the value that `metric.impute` says. No point is given twice; once every point was tried, there are no
more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.errors import AgentConfigError
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.distributions import (
    MAX_QUANTILE,
    MIN_QUANTILE,
    Categorical,
    Continuous,
    Distribution,
    IntUniform,
    value_key,
)
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.samplers.base import Sampler
from prefect_launch.sweeps.search_space import (
    hashed,
    nested,
    number_of_points,
    point,
    point_key,
    random_point,
    value_at,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

#: Values that TPE needs before it is better than chance: Optuna's own number.
_STARTUP_TRIALS: Final = 10
#: How often a point is asked for again because it was tried already.
_ASKS: Final = 5
#: A range of more whole numbers than this is sampled by quantiles: Optuna counts with floats.
_MAX_COUNTED: Final = 2**31


class BayesSampler(Sampler):
    """Draws the first points at random, and then where the values so far were best."""

    def __init__(self, config: SweepConfig, sweep_id: str) -> None:
        super().__init__(config, sweep_id)
        #: By the name that Optuna knows it under; a constant is none to it.
        self._searched = {"/".join(path): (path, each) for path, each in config.parameters if each.points != 1}

    def check_requirements(self) -> None:
        prepare_optuna()

    def learns_from(self, trial: Trial) -> bool:
        return self._internal(trial) is not None

    def ask(self, history: History) -> dict[str, Any] | None:
        tried = {point_key(trial.params) for trial in history.trials}
        points = number_of_points(self.config.parameters)
        if points is not None and len(tried) >= points:
            return None
        key = self.key(history.next_number)
        for candidate in self._candidates(history, key):
            if point_key(candidate) not in tried:
                return candidate
        if points is None:
            return random_point(self.config.parameters, f"{key}/new")
        start = hashed(key, 64)
        numbers = ((start + step) % points for step in range(len(tried) + 1))
        untried = (point(self.config.parameters, number) for number in numbers)
        return next((each for each in untried if point_key(each) not in tried), None)

    def _candidates(self, history: History, key: str) -> Iterator[dict[str, Any]]:
        scored = sum(self._score(trial) is not None for trial in (*history.prior, *history.trials))
        if scored < _STARTUP_TRIALS or not self._searched:
            yield from (random_point(self.config.parameters, f"{key}/{ask}" if ask else key) for ask in range(_ASKS))
            return
        prepare_optuna()
        from optuna import create_study
        from optuna.samplers import TPESampler

        sampler = TPESampler(multivariate=True, constant_liar=True, n_startup_trials=0, seed=hashed(key, 32))
        study = create_study(sampler=sampler, direction="minimize")
        study.add_trials(self._trials(history))
        yield from (self._asked(study) for _ in range(_ASKS))

    def _asked(self, study: Study) -> dict[str, Any]:
        asked = study.ask({name: self._distribution(each) for name, (_, each) in self._searched.items()})
        return nested(
            (path, self._value(each, asked.params["/".join(path)]) if each.points != 1 else each.draw(0.5))
            for path, each in self.config.parameters
        )

    def importance(self, history: History) -> dict[str, float]:
        """Return how much each parameter decides, by its dotted name: Optuna's PED-ANOVA, which needs numpy alone.

        Args:
            history: trials with values.

        Raises:
            AgentConfigError: when Optuna is not installed.
        """
        prepare_optuna()
        from optuna import create_study
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        study = create_study(direction="minimize")
        study.add_trials(self._trials(history))
        if not self._searched or not study.trials:
            return {}
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), normalize=True)
        return {".".join(self._searched[name][0]): share for name, share in found.items() if math.isfinite(share)}

    # --- the history as Optuna's trials ---

    def _trials(self, history: History) -> list[FrozenTrial]:
        trials = [*history.prior, *history.trials]
        scores = {id(trial): score for trial in trials if (score := self._score(trial)) is not None}
        best, worst = (min(scores.values()), max(scores.values())) if scores else (None, None)
        found = []
        for trial in trials:
            params = self._internal(trial)
            score = scores.get(id(trial))
            if score is None and trial.state in (TrialState.FAILED, TrialState.FINISHED, TrialState.PRUNED):
                score = self._imputed(trial, best, worst)
            if params is not None:
                found.append(self._frozen(trial, params, score))
        return found

    def _score(self, trial: Trial) -> float | None:
        """Return a trial's value so that less is better; `None` for one that has none of its own."""
        ended = trial.state in (TrialState.FINISHED, TrialState.PRUNED)
        metric = self.config.objective
        return metric.score(trial.value) if metric and ended and trial.value is not None else None

    def _imputed(self, trial: Trial, best: float | None, worst: float | None) -> float | None:
        metric = self.config.objective
        if metric and metric.impute == "latest" and trial.value is not None:
            return metric.score(trial.value)
        return best if metric and metric.impute == "best" else worst

    def _frozen(self, trial: Trial, params: dict[str, Any], score: float | None) -> FrozenTrial:
        from optuna.trial import TrialState as States
        from optuna.trial import create_trial

        state = States.RUNNING if trial.state.is_open else (States.FAIL if score is None else States.COMPLETE)
        return create_trial(
            state=state,
            value=score if state == States.COMPLETE else None,
            params=params,
            distributions={name: self._distribution(each) for name, (_, each) in self._searched.items()},
        )

    def _internal(self, trial: Trial) -> dict[str, Any] | None:
        """Return a trial's parameters as Optuna has them; `None` for a trial that is not of this space."""
        try:
            return {
                name: self._place(each, value_at(trial.params, path)) for name, (path, each) in self._searched.items()
            }
        except (KeyError, TypeError, ValueError):
            return None

    # --- one parameter ---

    def _distribution(self, each: Distribution) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if isinstance(each, Categorical):
            return CategoricalDistribution(tuple(range(each.points)))
        if isinstance(each, IntUniform) and each.points <= _MAX_COUNTED:
            return IntDistribution(each.min, each.max)
        return FloatDistribution(MIN_QUANTILE, MAX_QUANTILE)

    def _value(self, each: Distribution, place: Any) -> Any:
        """Return the value of what Optuna gives: an index, a whole number, or a quantile."""
        if isinstance(each, Categorical):
            return each.point(place)
        return place if isinstance(place, int) else each.draw(place)

    def _place(self, each: Distribution, value: Any) -> Any:
        """Return what Optuna has for a value.

        Raises:
            KeyError, TypeError, ValueError: when the distribution has no such value.
        """
        if isinstance(each, Categorical):
            return [value_key(one) for one in each.different].index(value_key(value))
        if isinstance(value, bool) or not each.draw(MIN_QUANTILE) <= value <= each.draw(MAX_QUANTILE):
            raise ValueError(value)
        if isinstance(each, IntUniform) and each.points <= _MAX_COUNTED:
            return int(value)
        assert isinstance(each, (Continuous, IntUniform))
        return min(max(each.quantile(value), MIN_QUANTILE), MAX_QUANTILE)


def prepare_optuna() -> None:
    """Import Optuna, which takes 1 to 2 s, so only where it is needed, and keep it quiet.

    Raises:
        AgentConfigError: when it is not installed.
    """
    try:
        from optuna import logging
        from optuna.exceptions import ExperimentalWarning
    except ImportError as error:
        raise AgentConfigError(
            f"The method 'bayes' needs Optuna, which cannot be imported ({error})."
            " Install it with: pip install 'prefect-launch[sweeps]'."
        ) from error
    logging.set_verbosity(logging.WARNING)
    # Multivariate TPE and its constant liar have this mark in every version.
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
