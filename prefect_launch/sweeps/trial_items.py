"""Trials as items: the launch config of a trial, the record of it that its item carries, and the trial that it tells.

The record is a label of the item, written in the call that makes the item. An item with the sweep's tag and no record
is no trial: somebody has queued it with the sweep's id by hand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.metrics import Metrics
from prefect_launch.core.names import short_id
from prefect_launch.core.states import LAST_LINE, StateType
from prefect_launch.errors import NotFoundError, SpecError, nearest_name
from prefect_launch.server.values import Item
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.sweeps.config import SOURCES, Metric, SweepConfig
from prefect_launch.sweeps.history import History, Trial, TrialState

#: Label of a trial's item: its `TrialRecord`, as JSON.
TRIAL_LABEL: Final = "prefect-launch.trial"
#: Label of an item that the sweep has cancelled: its `StopRecord`, as JSON.
STOP_LABEL: Final = "prefect-launch.trial-stop"
_LINE_CHARS: Final = 200
_NUMBER: Final = re.compile(r"\d+(?:[.:\d]*\d)?(?:[eE][+-]?\d+)?")
#: What a run has become, by the state that its item has ended in.
ENDS: Final[Mapping[StateType, TrialState]] = {
    StateType.COMPLETED: TrialState.FINISHED,
    StateType.FAILED: TrialState.FAILED,
    StateType.CRASHED: TrialState.FAILED,
    StateType.CANCELLED: TrialState.CANCELLED,
}


class TrialRecord(BaseModel):
    """What an item is a trial of."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(ge=0, description="k, from 0.")
    attempt: int = Field(ge=1, description="From 1; another try has the same parameters.")
    params: dict[str, Any] = Field(description="The parameters that the sampler gave.")


class StopRecord(BaseModel):
    """Why the sweep has cancelled an item."""

    model_config = ConfigDict(frozen=True)

    becomes: TrialState = Field(description="The state of the trial once the item is cancelled.")
    reason: str = Field(description="Why, for people.")


def sweep_tag(sweep_id: UUID) -> str:
    """Return the tag of a sweep's items."""
    return f"sweep:{sweep_id}"


def trial_key(sweep_id: UUID, record: TrialRecord) -> str:
    """Return the idempotency key of a trial's item: the server makes one item for it, however often it is asked."""
    return f"sweep-{sweep_id}-trial-{record.number}-try-{record.attempt}"


# --- the item of a trial ---


def trial_spec(config: SweepConfig, sweep_id: UUID, record: TrialRecord) -> LaunchSpec:
    """Return what the item of a trial asks for.

    Raises:
        SpecError: when the configuration names no job or several, or the command names a variable.
        LaunchError: as `parse_spec` does.
    """
    again = "" if record.attempt == 1 else f"-{record.attempt}"
    data: dict[str, Any] = {
        **config.launch.config,
        **_source(config),
        "overrides": config.trial_overrides(record.params),
        "sweep_id": str(sweep_id),
        "run_id": f"{short_id(sweep_id)}-{record.number}{again}",
        "name": f"{(config.name or 'sweep')[:150]}-{short_id(sweep_id)}-{record.number}{again}",
    }
    data |= {name: value for name in ("project", "entity") if (value := getattr(config, name)) is not None}
    if "retries" in config.model_fields_set:
        data["retries"] = config.retries.model_dump(mode="json", exclude_unset=True)
    objective = config.objective
    if objective is not None and objective.pattern is not None:
        data["metric"] = {"name": objective.name, "pattern": objective.pattern}
    if not any(data.get(name) for name in SOURCES):
        program = f" Make one of the program first: 'prefect-launch job create code . -E \"python {config.program}\"'."
        raise SpecError(
            "The sweep names no job. Give --job or --docker-image, or the key job or image_uri in its file."
            + (program if config.program else "")
        )
    return parse_spec(data).check_source()


def _source(config: SweepConfig) -> dict[str, Any]:
    if config.job is not None:
        return {"job": config.job}
    return {"docker": {"docker_image": config.image_uri}} if config.image_uri is not None else {}


# --- the history of the items ---


@dataclass(frozen=True)
class TrialItem:
    """The newest item of a trial.

    Attributes:
        item: as it was read.
        record: what it is a trial of.
        stop: why the sweep has cancelled it, if it has.
    """

    item: Item
    record: TrialRecord
    stop: StopRecord | None = None

    @classmethod
    def of(cls, item: Item) -> TrialItem | None:
        """Read an item; `None` when it is no trial."""
        try:
            record = TrialRecord.model_validate_json(str(item.labels.get(TRIAL_LABEL)))
            told = item.labels.get(STOP_LABEL)
            stop = None if told is None else StopRecord.model_validate_json(str(told))
        except ValidationError:
            return None
        return cls(item, record.model_copy(update={"params": _params(item, record)}), stop)

    def trial(self, objective: Metric | None, metrics: Metrics) -> Trial:
        """Return the trial.

        Args:
            objective: the metric that trials are judged by.
            metrics: what the item has reported.
        """
        state, cause, key = self._state(), None, None
        value: float | None = None
        steps: tuple[float, ...] = ()
        if objective is not None:
            value = metrics.value(objective.name)
            series = metrics.series.get(objective.name)
            steps = () if series is None else tuple(value for _, value in series.points())
            if state is TrialState.FINISHED and value is None:
                state, cause = TrialState.FAILED, _not_reported(objective.name, metrics.names)
        if state is TrialState.FAILED:
            cause, key = (cause, None) if cause else _cause_of(self.item)
        return Trial(self.record.number, self.record.params, state, value, steps, self.record.attempt, cause, key)

    def _state(self) -> TrialState:
        kind = self.item.state_type
        if kind is not None and kind in ENDS:
            ended = ENDS[kind]
            return self.stop.becomes if self.stop is not None and ended is TrialState.CANCELLED else ended
        return TrialState.RUNNING if kind in (StateType.RUNNING, StateType.CANCELLING) else TrialState.WAITING


def _params(item: Item, record: TrialRecord) -> dict[str, Any]:
    """Return the parameters that a trial's item has: somebody may have edited it while it waited."""
    overrides = item.parameters.get("overrides")
    given = overrides.get("run_config") if isinstance(overrides, Mapping) else None
    if not isinstance(given, Mapping):
        return record.params
    return {name: given.get(name, value) for name, value in record.params.items()}


def _cause_of(item: Item) -> tuple[str, str | None]:
    """Return why an item failed, for people, and what it has in common with those that failed for the same cause.

    The last line of its log belongs to it, where the agent has kept that. Runs that ended with the same exit code and
    the same last line, but for its numbers, have the same cause.
    """
    cause = item.message or "No reason was given."
    data = item.state.data if item.state and isinstance(item.state.data, Mapping) else {}
    line = str(data.get(LAST_LINE) or "")
    if line:
        cause = f"{cause} Last line: {line[:_LINE_CHARS]}"
    if data.get("exit_code") is None:
        return cause, None
    how = [data.get(name) for name in ("exit_code", "signal", "oom_killed")]
    return cause, json.dumps([*how, _NUMBER.sub("0", line)])


def _not_reported(name: str, seen: Collection[str]) -> str:
    near = nearest_name(name, seen)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"The metric {name!r} was not reported; seen: {', '.join(sorted(seen)) or 'none'}.{hint}"


@dataclass(frozen=True)
class SweepTrials:
    """The trials of a sweep, as its items tell them.

    Attributes:
        history: what the scheduler and the sampler decide by.
        items: the newest item of each trial, by its number.
    """

    history: History
    items: Mapping[int, TrialItem]

    @property
    def counts(self) -> Counter[TrialState]:
        """How many trials are in each state."""
        return Counter(trial.state for trial in self.history.trials)

    def ranked(self, objective: Metric | None) -> list[Trial]:
        """Return the trials, those with a value first and the best of them at the head."""
        if objective is None:
            return list(self.history.trials)
        return sorted(
            self.history.trials,
            key=lambda trial: (0, objective.score(trial.value)) if trial.value is not None else (1, trial.number),
        )

    def best(self, objective: Metric | None) -> Trial | None:
        """Return the finished trial with the best value; `None` when there is none."""
        finished = (trial for trial in self.ranked(objective) if trial.state is TrialState.FINISHED)
        return next((trial for trial in finished if trial.value is not None), None)


def best_trial(name: str, config: SweepConfig, trials: SweepTrials) -> Trial:
    """Return the best trial of a sweep.

    Args:
        name: of the sweep, for messages.
        config: of the sweep.
        trials: of the sweep.

    Raises:
        NotFoundError: when the sweep has no metric, or no trial has finished with a value of it.
    """
    if config.objective is None:
        raise NotFoundError(f"The sweep {name} has no metric, so none of its trials is the best.")
    found = trials.best(config.objective)
    if found is None:
        raise NotFoundError(f"No trial of the sweep {name} has finished with a finite value of its metric.")
    return found
