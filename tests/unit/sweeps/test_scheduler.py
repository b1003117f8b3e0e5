"""Decisions of the scheduler: every small sweep in every order of events, and each rule by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from prefect_launch.sweeps.config import SweepConfig, parse_sweep
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.scheduler import (
    Action,
    Command,
    Control,
    EndSweep,
    Outcome,
    QueueTrial,
    StopTrial,
    decide,
)

WAITING, RUNNING, FINISHED, FAILED = TrialState.WAITING, TrialState.RUNNING, TrialState.FINISHED, TrialState.FAILED
LOSS = {"name": "loss"}


def config(workers: int = 2, method: str = "random", **given: Any) -> SweepConfig:
    parameters = {"x": {"values": [0, 1, 2, 3]}}
    return parse_sweep({"method": method, "parameters": parameters, "scheduler": {"num_workers": workers}, **given})


def ask(history: History) -> Mapping[str, Any]:
    """Sampler without an end: the trial's number."""
    return {"x": history.next_number}


def only(points: int) -> Any:
    """Sampler with so many points."""
    return lambda history: ask(history) if history.next_number < points else None


def trials(*states: TrialState, metric: float | None = None, **given: Any) -> History:
    return History(tuple(Trial(k, {"x": k}, state, metric, **given) for k, state in enumerate(states)))


def queued(actions: tuple[Action, ...]) -> list[tuple[int, int]]:
    """Number and try of what is queued, when nothing else is done."""
    assert all(isinstance(action, QueueTrial) for action in actions)
    return [(action.number, action.attempt) for action in actions if isinstance(action, QueueTrial)]


def end(actions: tuple[Action, ...]) -> EndSweep:
    (action,) = actions
    assert isinstance(action, EndSweep)
    return action


# --- every order of events of small sweeps ---


def applied(history: History, action: Action) -> History:
    """What an action makes of the trials, at once."""
    by_number = {trial.number: trial for trial in history.trials}
    if isinstance(action, QueueTrial):
        by_number[action.number] = Trial(action.number, action.params, WAITING, tries=action.attempt)
    elif isinstance(action, StopTrial):
        by_number[action.number] = replace(by_number[action.number], state=action.becomes)
    return replace(history, trials=tuple(by_number[number] for number in sorted(by_number)))


def events(history: History) -> Iterator[History]:
    """Each thing that may happen to one trial by itself."""
    moves = {WAITING: (RUNNING, TrialState.CANCELLED), RUNNING: (FINISHED, FAILED, TrialState.PRUNED)}
    for place, trial in enumerate(history.trials):
        for state in moves.get(trial.state, ()):
            moved = replace(trial, state=state, metric=0.5 if state is FINISHED else None)
            yield replace(history, trials=(*history.trials[:place], moved, *history.trials[place + 1 :]))


SWEEPS = {
    "run cap": (config(2, run_cap=3), Control(), ask),
    "more workers than trials": (config(9, run_cap=2), Control(), ask),
    "all points": (config(2, method="grid"), Control(), only(3)),
    "no points": (config(2, method="custom", sampler="s"), Control(), only(0)),
    "failures": (config(2, run_cap=4, max_failures=2), Control(), ask),
    "target": (config(2, run_cap=3, metric={**LOSS, "target": 0.5}), Control(), ask),
    "time limit": (config(2, timeout=10), Control(elapsed_seconds=10), ask),
    "stopped": (config(2, run_cap=3), Control(Command.STOP), ask),
    "retries": (config(2, run_cap=3), Control(retries={0: 2, 2: 3}), ask),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_small_sweep_holds_its_limits_and_ends_in_every_order_of_events(name: str) -> None:
    sweep, control, sampler = SWEEPS[name]
    workers, cap = sweep.scheduler.num_workers, sweep.run_cap or math.inf
    # A sweep may be stopped, or reach its time, at any moment: with trials in every state.
    late = [trials(RUNNING), trials(FINISHED, WAITING)] if name in ("stopped", "time limit") else []
    todo = [History(), *late]
    seen, ends = {str(each) for each in todo}, 0
    while todo:
        history = todo.pop()
        actions = decide(sweep, history, control, sampler)
        assert actions == decide(sweep, replace(history, trials=history.trials[::-1]), control, sampler)
        assert actions or history.open, f"nothing is done and nothing is awaited: {history}"
        if any(isinstance(action, EndSweep) for action in actions):
            assert not history.open
            assert len(actions) == 1
            ends += 1
            continue
        # Killed after each action, or before the first one.
        following = [*events(history)]
        for action in actions:
            history = applied(history, action)
            following.append(history)
            assert len(history.open) <= workers
            assert len(history.trials) <= cap
            assert all(trial.params == {"x": trial.number} for trial in history.trials)
        for each in following:
            if str(each) not in seen:
                seen.add(str(each))
                todo.append(each)
    assert ends


def test_trial_that_is_told_to_stop_twice_and_goes_on_for_a_while_ends_the_sweep_once_it_is_gone() -> None:
    sweep, control = config(2), Control(Command.STOP)
    running = trials(FINISHED, RUNNING, WAITING)

    first = decide(sweep, running, control, ask)

    assert first == decide(sweep, running, control, ask)
    assert [action.number for action in first if isinstance(action, StopTrial)] == [1, 2]
    for action in first:
        running = applied(running, action)
    assert end(decide(sweep, running, control, ask)) == EndSweep(Outcome.STOPPED, "The sweep was stopped.")


# --- each rule ---


def test_free_places_are_filled_with_the_next_numbers() -> None:
    assert queued(decide(config(3), trials(FINISHED, RUNNING), Control(), ask)) == [(2, 1), (3, 1)]
    assert queued(decide(config(3), trials(RUNNING, WAITING, RUNNING), Control(), ask)) == []


def test_each_new_trial_is_asked_for_with_those_before_it_as_waiting() -> None:
    asked: list[History] = []

    def noted(history: History) -> Mapping[str, Any]:
        asked.append(history)
        return ask(history)

    decide(config(3), trials(FINISHED), Control(), noted)

    assert [[trial.state for trial in history.trials] for history in asked] == [
        *([FINISHED], [FINISHED, WAITING], [FINISHED, WAITING, WAITING]),
    ]


def test_number_of_a_deleted_item_is_free_again_in_a_grid_alone() -> None:
    history = History((Trial(0, {"x": 0}, FINISHED), Trial(2, {"x": 2}, FINISHED)))

    assert queued(decide(config(2, method="grid"), history, Control(), ask)) == [(1, 1), (3, 1)]
    assert queued(decide(config(2), history, Control(), ask)) == [(3, 1), (4, 1)]


def test_cap_counts_numbers_and_no_retries() -> None:
    history = trials(FAILED, FINISHED, FINISHED, tries=3)

    assert end(decide(config(2, run_cap=3), history, Control(), ask)).outcome is Outcome.FINISHED
    assert queued(decide(config(2, run_cap=3), history, Control(retries={0: 4}), ask)) == [(0, 4)]
    assert queued(decide(config(2, run_cap=4), history, Control(), ask)) == [(3, 1)]


def test_retry_has_the_same_parameters_goes_first_and_takes_a_place() -> None:
    history = replace(trials(FAILED, FINISHED), trials=(Trial(0, {"x": "kept"}, FAILED), Trial(1, {}, FINISHED)))

    actions = decide(config(2), history, Control(retries={0: 2}), ask)

    assert actions == (QueueTrial(0, 2, {"x": "kept"}), QueueTrial(2, 1, {"x": 2}))
    assert queued(decide(config(1), applied(history, actions[0]), Control(retries={0: 2}), ask)) == []


def test_pause_queues_nothing_and_runs_the_stopped_trials_again_when_it_goes_on() -> None:
    sweep, running = config(2, run_cap=4), trials(FINISHED, RUNNING, WAITING)

    assert decide(sweep, running, Control(Command.DRAIN), ask) == ()
    held = running
    for action in decide(sweep, running, Control(Command.PAUSE), ask):
        assert isinstance(action, StopTrial)
        held = applied(held, action)

    assert not held.open
    assert decide(sweep, held, Control(Command.PAUSE), ask) == ()
    assert queued(decide(sweep, held, Control(), ask)) == [(1, 2), (2, 2)]
    assert queued(decide(sweep, trials(FINISHED), Control(), ask)) == [(1, 1), (2, 1)]


def test_drained_sweep_with_all_its_trials_ended_ends() -> None:
    assert end(decide(config(2, run_cap=1), trials(FINISHED), Control(Command.DRAIN), ask)).outcome is Outcome.FINISHED


@pytest.mark.parametrize(
    ("trial", "reached"),
    [
        (Trial(0, {}, FINISHED, 0.9), True),
        (Trial(0, {}, RUNNING, None, (0.5, 0.95, 0.2)), True),
        (Trial(0, {}, TrialState.PRUNED, 0.9), True),
        (Trial(0, {}, FAILED, 0.99), False),
        (Trial(0, {}, FINISHED, 0.89), False),
        (Trial(0, {}, FINISHED, math.inf), False),
        (Trial(0, {}, FINISHED, math.nan), False),
        (Trial(0, {}, FINISHED), False),
    ],
)
def test_target_ends_the_sweep_once_any_trial_reaches_it(trial: Trial, reached: bool) -> None:
    sweep = config(2, metric={"name": "acc", "goal": "maximize", "target": 0.9})
    other = Trial(1, {}, RUNNING)

    actions = decide(sweep, History((trial, other)), Control(), ask)

    stops = [action for action in actions if isinstance(action, StopTrial)]
    assert bool(stops) == reached
    assert all(stop.reason.startswith("Trial 0 reached the target 0.9, with acc 0.9") for stop in stops)
    assert 1 in {stop.number for stop in stops} or not reached


def test_sweep_whose_first_five_trials_all_fail_fails_with_the_commonest_cause() -> None:
    causes = ["out of memory", "exit code 1", "exit code 1", None, "exit code 1"]
    failed = History(tuple(Trial(k, {}, FAILED, cause=cause) for k, cause in enumerate(causes)))
    one_good = History((*failed.trials, Trial(5, {}, FINISHED)))

    told = end(decide(config(2), failed, Control(), ask))

    assert told == EndSweep(Outcome.FAILED, "5 trials failed; the commonest cause (3): exit code 1")
    assert queued(decide(config(2), one_good, Control(), ask))
    assert queued(decide(config(2), History(failed.trials[:4]), Control(), ask))
    assert queued(decide(config(2), failed, Control(retries={0: 2}), ask))[0] == (0, 2)


def test_failures_that_are_allowed_are_counted_also_beside_good_trials() -> None:
    sweep = config(2, max_failures=2)

    assert end(decide(sweep, trials(FAILED, FINISHED, FAILED), Control(), ask)).outcome is Outcome.FAILED
    assert queued(decide(sweep, trials(FAILED, FINISHED), Control(), ask))


def test_sweep_with_no_good_trial_at_its_end_has_failed() -> None:
    sweep = config(2, run_cap=2)

    assert end(decide(sweep, trials(FAILED, FAILED, cause="exit code 2"), Control(), ask)) == EndSweep(
        Outcome.FAILED, "2 trials failed; the commonest cause (2): exit code 2"
    )
    assert (
        end(decide(sweep, trials(FAILED, FINISHED), Control(), ask)).message
        == "All 2 trials have ended. 1 of them failed."
    )


def test_time_limit_stops_what_runs_and_then_ends() -> None:
    sweep = config(2, timeout="2h")

    (stop,) = decide(sweep, trials(RUNNING), Control(elapsed_seconds=7200), ask)

    assert stop == StopTrial(0, TrialState.CANCELLED, "The sweep reached its time limit, 2 h.")
    assert queued(decide(sweep, trials(FINISHED), Control(elapsed_seconds=7199), ask))


def test_worse_trial_is_stopped_early_and_its_place_stays_taken_until_it_is_gone() -> None:
    sweep = config(2, metric=LOSS, early_terminate={"type": "hyperband", "min_iter": 1})
    history = History((Trial(0, {}, RUNNING, steps=(1.0,)), Trial(1, {}, RUNNING, steps=(2.0, 2.5))))

    (stop,) = decide(sweep, history, Control(), ask)

    assert stop == StopTrial(1, TrialState.PRUNED, "The trial was stopped early at step 2.")
    assert queued(decide(sweep, applied(history, stop), Control(), ask)) == [(2, 1)]
