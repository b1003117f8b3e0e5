"""History of a sweep: its trials as a frozen value, which a sampler and the scheduler decide by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any


class TrialState(str, Enum):
    """What has become of a trial."""

    #: Its item waits in the queue, is about to be queued, or runs.
    WAITING = "waiting"
    RUNNING = "running"
    #: It ended with success.
    FINISHED = "finished"
    #: It was stopped early for being worse than the others; its value is the last one.
    PRUNED = "pruned"
    #: It ended without success, whoever was at fault.
    FAILED = "failed"
    #: A person cancelled it, or the sweep ended.
    CANCELLED = "cancelled"
    #: A pause of the sweep stopped it: it runs again when the sweep continues.
    HELD = "held"

    @property
    def is_open(self) -> bool:
        """Whether it takes a worker's place."""
        return self in (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: k, from 0.
        params: its parameters, by name; a group of them is a mapping.
        state: what has become of it.
        metric: its value of the sweep's metric at its end, or the last one; `None` when there is none. May be NaN.
        steps: the values of the metric that it reported, in their order.
        tries: how many items it has had.
        cause: why it failed, for people.
        cause_key: what it has in common with all that failed for the same cause; by default the cause itself.
    """

    number: int
    params: Mapping[str, Any]
    state: TrialState = TrialState.WAITING
    metric: float | None = None
    steps: tuple[float, ...] = ()
    tries: int = 1
    cause: str | None = None
    cause_key: str | None = None

    @property
    def value(self) -> float | None:
        """Its metric, else its last step; `None` when that is no finite number."""
        found = self.metric if self.metric is not None else (self.steps[-1] if self.steps else None)
        return found if found is not None and math.isfinite(found) else None


@dataclass(frozen=True)
class History:
    """The trials of a sweep, each number once.

    Attributes:
        trials: the trials, in the order of their numbers, however they were given.
        prior: trials of earlier sweeps that a sampler learns from; they are not counted.
    """

    trials: tuple[Trial, ...] = ()
    prior: tuple[Trial, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", tuple(sorted(self.trials, key=lambda trial: trial.number)))

    @cached_property
    def next_number(self) -> int:
        """The lowest number that no trial has: that of the trial which is asked for."""
        used = {trial.number for trial in self.trials}
        return next(number for number in range(len(used) + 1) if number not in used)

    @property
    def open(self) -> tuple[Trial, ...]:
        """The trials that wait or run."""
        return tuple(trial for trial in self.trials if trial.state.is_open)

    @property
    def made(self) -> int:
        """How many numbers are known to be used up: those up to the highest one."""
        return max((trial.number for trial in self.trials), default=-1) + 1

    def without_gaps(self, made: int = 0) -> History:
        """Return the history with a cancelled trial for each number that is missing below the highest.

        Args:
            made: how many trials were made, as is known from elsewhere: the highest ones may be missing as well.
        """
        used = {trial.number for trial in self.trials}
        missing = [number for number in range(max(made, self.made)) if number not in used]
        gone = tuple(Trial(number, {}, TrialState.CANCELLED) for number in missing)
        return replace(self, trials=(*self.trials, *gone)) if gone else self

    def with_trial(self, params: Mapping[str, Any]) -> History:
        """Return the history with one more waiting trial, under the next number."""
        return replace(self, trials=(*self.trials, Trial(self.next_number, params)))
