"""Sweep as an Optuna study in a SQLite file of its own, for optuna-dashboard and Optuna's own functions.

It is a copy for people to look at; no sampler reads it. The file is always a new one: Optuna's tables do not go
together with those of another program, such as Prefect's.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.errors import SpecError, clause
from prefect_launch.inputs.metrics import written_number
from prefect_launch.sweeps.axes import Axis, CategoryAxis, NumberAxis, parameter_axis
from prefect_launch.sweeps.distributions import IntUniform, value_key
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.report import SweepReport
from prefect_launch.sweeps.samplers.bayes import prepare_optuna
from prefect_launch.sweeps.search_space import MISSING, value_or_missing, values_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

#: What Optuna calls a trial of each state; one that has finished without a finite value has failed there.
_STATES: Final = {
    TrialState.WAITING: "WAITING",
    TrialState.RUNNING: "RUNNING",
    TrialState.FINISHED: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
}


def export_study(report: SweepReport, path: Path) -> None:
    """Write a sweep as an Optuna study of the sweep's name.

    Args:
        report: of the sweep, which has a metric.
        path: of the SQLite file, which is not there yet.

    Raises:
        SpecError: when the sweep has no metric, the file is there, or it cannot be written.
        AgentConfigError: when Optuna is not installed.
    """
    metric = report.config.objective
    if metric is None:
        raise SpecError(f"The sweep {report.name} has no metric, and an Optuna study needs one.")
    prepare_optuna()
    from optuna import create_study
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.pool import StaticPool

    if path.exists():
        raise SpecError(f"The file {str(path)!r} is there already, and a study is written to a new one. Name another.")
    # In memory first: Optuna commits several times for each trial, and a disk takes three times as long as all else.
    in_memory = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    storage = RDBStorage("sqlite://", engine_kwargs=in_memory)
    study = create_study(study_name=report.name, direction=metric.goal, storage=storage)
    study.set_metric_names([metric.name])
    study.add_trials(_frozen_trials(report))
    try:
        with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(path),))
    except OperationalError as error:
        path.unlink(missing_ok=True)
        raise SpecError(f"Cannot write the study to {str(path)!r}: {clause(error.orig)}. Name another file.") from error


def _frozen_trials(report: SweepReport) -> list[FrozenTrial]:
    trials = report.trials.history.trials
    axes: dict[str, tuple[tuple[str, ...], Axis, bool]] = {}
    for path, each in report.config.parameters:
        axes[".".join(path)] = (path, parameter_axis(each, values_of(trials, path)), isinstance(each, IntUniform))
    return [_frozen(report, trial, axes) for trial in trials]


def _frozen(report: SweepReport, trial: Trial, axes: dict[str, tuple[tuple[str, ...], Axis, bool]]) -> FrozenTrial:
    from optuna.trial import TrialState as States
    from optuna.trial import create_trial

    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name, (path, axis, is_whole) in axes.items():
        value = value_or_missing(trial.params, path)
        if value is not MISSING and axis.place(value) is not None:
            params[name] = _choice(axis, value) if isinstance(axis, CategoryAxis) else value
            distributions[name] = _distribution(axis, is_whole)
    value = trial.value
    state = States[_STATES.get(trial.state, "FAIL")]
    if state == States.COMPLETE and value is None:
        state = States.FAIL
    told: dict[str, Any] = {"trial": trial.number, "state": trial.state.value, "cause": trial.cause}
    told |= {
        "item": str(report.trials.items[trial.number].item.id),
        "metric": None if trial.metric is None else written_number(trial.metric),
    }
    frozen = create_trial(
        state=state,
        value=value if state in (States.COMPLETE, States.PRUNED) else None,
        params=params,
        distributions=distributions,
        user_attrs={name: attribute for name, attribute in told.items() if attribute is not None},
        intermediate_values={step: each for step, each in enumerate(trial.steps) if math.isfinite(each)},
    )
    item = report.trials.items[trial.number].item
    if item.start_time is not None:
        frozen.datetime_start = _local(item.start_time)
        if frozen.datetime_complete is not None:
            frozen.datetime_complete = _local(item.end_time or item.start_time)
    return frozen


def _local(moment: datetime) -> datetime:
    """Return a moment as Optuna has it: in this machine's time, without a zone."""
    return moment.astimezone().replace(tzinfo=None)


def _distribution(axis: Axis, is_whole: bool) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, CategoryAxis):
        return CategoricalDistribution([_plain(value) for value in axis.values])
    assert isinstance(axis, NumberAxis)
    if is_whole:
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.is_log)


def _choice(axis: CategoryAxis, value: Any) -> Any:
    """Return a value as it stands among the choices: 3 and 3.0 are one of them."""
    return _plain(next(one for one in axis.values if value_key(one) == value_key(value)))


def _plain(value: Any) -> Any:
    """Return what Optuna takes as a choice: lists and mappings are text there."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
