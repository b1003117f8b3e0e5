"""Decisions of a sweep's scheduler: what to do next, as a pure function of the configuration and the history.

Nothing here is remembered between two decisions, and nothing is done: the caller queues, stops and ends. Each action
may be carried out twice, or not at all, and the next decision is right again. A number is queued at most once for each
try; a sweep ends only when none of its trials waits or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from prefect_launch.core.metrics import format_number
from prefect_launch.core.units import counted, format_duration
from prefect_launch.sweeps.config import Metric, SweepConfig
from prefect_launch.sweeps.failures import failures_by_cause
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.hyperband import trials_to_stop

#: Without `max_failures`: a sweep whose first trials all failed is hopeless.
_HOPELESS_FAILURES: Final = 5

#: Gives the parameters of the trial `history.next_number`; `None` when there are no more points.
Ask = Callable[[History], Mapping[str, Any] | None]


class Command(str, Enum):
    """What a person wants of a sweep."""

    RUN = "run"
    #: No new trials; those that are queued or run finish.
    DRAIN = "drain"
    #: No new trials; those that are queued or run are stopped, and run again when the sweep continues.
    PAUSE = "pause"
    #: All trials are stopped, and the sweep ends.
    STOP = "stop"


@dataclass(frozen=True)
class Control:
    """What is known of a sweep besides its trials.

    Attributes:
        command: what a person wants of it.
        elapsed_seconds: how long it has run, pauses left out.
        retries: numbers of trials that a person wants to run again, with the try that is wanted: 2 is the first retry.
        made: how many trials were made so far, those included whose items were deleted since.
    """

    command: Command = Command.RUN
    elapsed_seconds: float = 0.0
    retries: Mapping[int, int] = field(default_factory=dict)
    made: int = 0


class Outcome(str, Enum):
    """How a sweep ends."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    #: It has not ended: it continues in another process when it is resumed.
    PAUSED = "paused"


@dataclass(frozen=True)
class QueueTrial:
    """Queue a trial: a new one, or another try of one that ended.

    Attributes:
        number: k.
        attempt: from 1; another try has the same parameters.
        params: its parameters.
    """

    number: int
    attempt: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class StopTrial:
    """Cancel a trial's item.

    Attributes:
        number: k.
        becomes: the state that the trial then has.
        reason: why, for people.
    """

    number: int
    becomes: TrialState
    reason: str


@dataclass(frozen=True)
class EndSweep:
    """End the sweep; none of its trials waits or runs.

    Attributes:
        outcome: how.
        message: why, for people.
    """

    outcome: Outcome
    message: str


Action = QueueTrial | StopTrial | EndSweep


def decide(config: SweepConfig, history: History, control: Control, ask: Ask) -> tuple[Action, ...]:
    """Return what to do now; nothing means to wait.

    Args:
        config: the sweep's configuration.
        history: its trials.
        control: what else is known of it.
        ask: the sampler; asked for each new trial in turn, with those before it as waiting ones.
    """
    if config.method != "grid":
        # A deleted item of a grid leaves a point to try; elsewhere its number is used up.
        history = history.without_gaps(control.made)
    if end := reason_to_end(config, history, control):
        stopped = tuple(StopTrial(trial.number, TrialState.CANCELLED, end.message) for trial in history.open)
        return stopped or (end,)
    if control.command is Command.PAUSE and history.open:
        reason = "The sweep was paused."
        return tuple(StopTrial(trial.number, TrialState.HELD, reason) for trial in history.open)
    stops = _early_stops(config, history)
    # The place of a trial is free once it has stopped, not when its stop is requested.
    queued = _to_queue(config, history, control, ask) if control.command is Command.RUN else ()
    if not (stops or queued or history.open) and _is_complete(config, history, control):
        return (_end_of_all(config, history),)
    return (*stops, *queued)


# --- when a sweep ends before its time ---


def reason_to_end(config: SweepConfig, history: History, control: Control) -> EndSweep | None:
    """Return how a sweep ends now, whatever is still to be tried; `None` when it continues.

    Args:
        config: the sweep's configuration.
        history: its trials.
        control: what else is known of it.
    """
    if control.command is Command.STOP:
        return EndSweep(Outcome.STOPPED, "The sweep was stopped.")
    if config.objective and (winner := _winner(config.objective, history)) is not None:
        number, value = winner
        found = f"{config.objective.name} {format_number(value)}"
        message = f"Trial {number} reached the target {config.objective.target:g}, with {found}."
        return EndSweep(Outcome.FINISHED, message)
    failed = _failed(history, control)
    if len(failed) >= (config.max_failures or _HOPELESS_FAILURES) and (config.max_failures or not _succeeded(history)):
        return EndSweep(Outcome.FAILED, _commonest_cause(failed))
    if config.timeout is not None and control.elapsed_seconds >= config.timeout:
        return EndSweep(Outcome.FINISHED, f"The sweep reached its time limit, {format_duration(config.timeout)}.")
    return None


def _winner(metric: Metric, history: History) -> tuple[int, float] | None:
    """Return the number of the first trial with a value that is the target or better, and that value."""
    counted = {TrialState.RUNNING, TrialState.FINISHED, TrialState.PRUNED}
    reached = (
        (trial.number, value)
        for trial in history.trials
        if trial.state in counted
        for value in (*trial.steps, trial.metric)
        if value is not None and metric.reaches_target(value)
    )
    return next(reached, None)


def _failed(history: History, control: Control) -> list[Trial]:
    """Return the failed trials, without those that run again."""
    return [
        trial
        for trial in history.trials
        if trial.state is TrialState.FAILED and control.retries.get(trial.number, 0) <= trial.tries
    ]


def _succeeded(history: History) -> bool:
    return any(trial.state in (TrialState.FINISHED, TrialState.PRUNED) for trial in history.trials)


def _commonest_cause(failed: list[Trial]) -> str:
    commonest = failures_by_cause(failed)[0]
    return f"{counted(len(failed), 'trial')} failed; the commonest cause ({len(commonest.trials)}): {commonest.cause}"


# --- what is queued and stopped meanwhile ---


def _early_stops(config: SweepConfig, history: History) -> tuple[StopTrial, ...]:
    if config.early_terminate is None or config.objective is None:
        return ()
    steps = {trial.number: len(trial.steps) for trial in history.trials}
    return tuple(
        StopTrial(number, TrialState.PRUNED, f"The trial was stopped early at step {steps[number]}.")
        for number in trials_to_stop(config.early_terminate, config.objective, history)
    )


def _to_queue(config: SweepConfig, history: History, control: Control, ask: Ask) -> tuple[QueueTrial, ...]:
    free = config.scheduler.num_workers - len(history.open)
    again = [
        QueueTrial(trial.number, trial.tries + 1, trial.params)
        for trial in history.trials
        if not trial.state.is_open and _runs_again(trial, control)
    ]
    queued = again[: max(free, 0)]
    while len(queued) < free and not _is_capped(config, history):
        params = ask(history)
        if params is None:
            break
        queued.append(QueueTrial(history.next_number, 1, params))
        history = history.with_trial(params)
    return tuple(queued)


def _runs_again(trial: Trial, control: Control) -> bool:
    return trial.state is TrialState.HELD or control.retries.get(trial.number, 0) > trial.tries


def _is_capped(config: SweepConfig, history: History) -> bool:
    return config.run_cap is not None and len(history.trials) >= config.run_cap


# --- the end of all trials ---


def _is_complete(config: SweepConfig, history: History, control: Control) -> bool:
    """Whether a sweep with no open trial and none to queue is done."""
    if any(_runs_again(trial, control) for trial in history.trials):
        return False
    # A sweep that runs queues nothing only once its points, or its number of trials, are used up.
    return control.command is Command.RUN or _is_capped(config, history)


def _end_of_all(config: SweepConfig, history: History) -> EndSweep:
    failed = [trial for trial in history.trials if trial.state is TrialState.FAILED]
    if failed and not _succeeded(history):
        return EndSweep(Outcome.FAILED, _commonest_cause(failed))
    count = len(history.trials)
    trials = "1 trial has" if count == 1 else f"All {count} trials have"
    return EndSweep(Outcome.FINISHED, f"{trials} ended." + (f" {len(failed)} of them failed." if failed else ""))
