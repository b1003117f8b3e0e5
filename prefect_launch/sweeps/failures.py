"""Failures of a sweep's trials, by their cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prefect_launch.sweeps.history import Trial, TrialState


@dataclass(frozen=True)
class Failure:
    """Trials that failed for the same cause.

    Attributes:
        cause: as the first of them has it, for people; in one line.
        trials: their numbers.
    """

    cause: str
    trials: tuple[int, ...]


def failures_by_cause(trials: Iterable[Trial]) -> list[Failure]:
    """Return the causes of the trials that failed, the commonest one first; of equal ones, that of the first trial."""
    causes: dict[str, str] = {}
    numbers: dict[str, list[int]] = {}
    for trial in trials:
        if trial.state is TrialState.FAILED:
            cause = " ".join((trial.cause or "No reason was given.").split())
            key = trial.cause_key or cause
            causes.setdefault(key, cause)
            numbers.setdefault(key, []).append(trial.number)
    found = [Failure(causes[key], tuple(same)) for key, same in numbers.items()]
    return sorted(found, key=lambda failure: (-len(failure.trials), failure.trials[0]))
