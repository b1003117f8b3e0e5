"""Failures of a sweep's trials, by their cause.

How long a run has taken makes no other cause of it, nor do the numbers in the last line of its log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prefect_launch.sweeps.history import Trial, TrialState

_DURATION: Final = re.compile(r"(?:\b\d+(?:\.\d+)? (?:ms|s|min|h|d)\b ?)+")
#: Stands before the last line of a trial's log, in its cause.
LAST_LINE_LABEL: Final = " Last line: "
_NUMBER: Final = re.compile(r"\d+(?:[.:\d]*\d)?(?:[eE][+-]?\d+)?")


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
            said, label, line = cause.partition(LAST_LINE_LABEL)
            key = _DURATION.sub("", said) + label + _NUMBER.sub("0", line)
            causes.setdefault(key, cause)
            numbers.setdefault(key, []).append(trial.number)
    found = [Failure(causes[key], tuple(same)) for key, same in numbers.items()]
    return sorted(found, key=lambda failure: (-len(failure.trials), failure.trials[0]))
