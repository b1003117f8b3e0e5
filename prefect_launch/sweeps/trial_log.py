"""Trial log of a sweep: one line for each trial that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from prefect_launch.core.metrics import format_number
from prefect_launch.core.units import counted
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.trial_items import SweepTrials

_SHOWN_PARAMS: Final = 8


class TrialLog:
    """Tells of the trials of one sweep.

    Args:
        report: is called with each line.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._shown: dict[int, Trial] | None = None
        self._has_told_why = False

    def show(self, trials: SweepTrials, config: SweepConfig) -> None:
        """Tell of each trial that is new or in another state than at the last call.

        Args:
            trials: all trials of the sweep.
            config: the sweep's configuration.
        """
        now = {trial.number: replace(trial, steps=()) for trial in trials.history.trials}
        if self._shown is None and now:
            states = ", ".join(f"{count} {state.value}" for state, count in trials.counts.items())
            self._report(f"The sweep has {counted(len(now), 'trial')}: {states}.")
        elif self._shown is not None:
            for number, trial in now.items():
                was = self._shown.get(number)
                if was is None or (was.state, was.tries) != (trial.state, trial.tries):
                    self._report(describe_trial(trial, config))
        self._shown = now
        waiting = (one.item for number, one in trials.items.items() if now[number].state is TrialState.WAITING)
        why = next((item.message for item in waiting if item.message), None)
        if why and not self._has_told_why:
            # Its queue said so as it was made: it is paused, or no agent is online.
            self._report(why)
            self._has_told_why = True


def describe_trial(trial: Trial, config: SweepConfig) -> str:
    """Return one line about a trial."""
    again = f" (try {trial.tries})" if trial.tries > 1 else ""
    metric = config.objective
    # Also one that is no finite number: it says why the trial is never the best.
    found = trial.metric if trial.metric is not None else next(iter(trial.steps[-1:]), None)
    value = "" if trial.state.is_open or metric is None or found is None else f", {metric.name} {format_number(found)}"
    if trial.state is TrialState.FAILED:
        return f"trial {trial.number}{again} failed: {trial.cause}"
    return f"trial {trial.number}{again} {trial.state.value}{value}: {params_in_words(trial.params)}"


def params_in_words(params: Mapping[str, Any]) -> str:
    """Return the first parameters of a trial in one line."""
    shown = [f"{name}={format_number(value) if isinstance(value, float) else value}" for name, value in params.items()]
    return ", ".join(shown[:_SHOWN_PARAMS]) + (", …" if len(shown) > _SHOWN_PARAMS else "")
