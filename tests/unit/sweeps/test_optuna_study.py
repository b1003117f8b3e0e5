"""A sweep as an Optuna study in a file of its own."""

from __future__ import annotations

import math
from datetime import timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from optuna import load_study
from optuna.trial import TrialState as States

from prefect_launch.errors import SpecError
from prefect_launch.sweeps.config import parse_sweep
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.optuna_study import export_study
from prefect_launch.sweeps.report import SweepReport
from tests.support.sweeping import BEGUN, finished, trials_of

CONFIG = {
    "method": "random",
    "metric": {"name": "acc", "goal": "maximize"},
    "parameters": {
        "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1.0},
        "layers": {"min": 1, "max": 5},
        "shape": {"values": [[1, 2], "big", None, 3]},
        "noise": {"distribution": "normal"},
        "group": {"parameters": {"seed": {"value": 7}}},
    },
}


def params(lr: float, shape: object) -> dict[str, object]:
    return {"lr": lr, "layers": 2, "shape": shape, "noise": -0.5 * lr, "group": {"seed": 7}}


def report_of(*trials: Trial, **config: object) -> SweepReport:
    return SweepReport("mine", UUID(int=5), "running", "", parse_sweep({**CONFIG, **config}), trials_of(*trials))


def test_study_has_every_trial_with_its_own_values_ranges_and_state(tmp_path: Path) -> None:
    report = report_of(
        finished(0, 0.5, **params(0.1, [1, 2])),
        finished(1, 0.9, **params(0.01, None)),
        finished(2, math.nan, **params(0.01, 3.0)),
        Trial(3, params(0.2, "big"), TrialState.PRUNED, 0.3, (0.1, 0.3)),
        Trial(4, params(0.2, "big"), TrialState.FAILED, cause="exit code 3"),
        Trial(5, {"lr": 0.2}, TrialState.RUNNING),
        Trial(6, params(0.2, "big"), TrialState.CANCELLED),
    )
    file = tmp_path / "study.db"
    export_study(report, file)
    study = load_study(study_name="mine", storage=f"sqlite:///{file}")
    assert [trial.state for trial in study.trials] == [
        *(States.COMPLETE, States.COMPLETE, States.FAIL, States.PRUNED, States.FAIL, States.RUNNING, States.FAIL)
    ]
    assert (study.best_trial.number, study.best_value) == (1, 0.9)
    assert study.metric_names == ["acc"]
    first = study.trials[0]
    assert first.params == {"lr": 0.1, "layers": 2, "shape": "[1, 2]", "noise": -0.05, "group.seed": 7}
    assert first.distributions["lr"].log  # type: ignore[attr-defined]
    assert (first.distributions["layers"].low, first.distributions["layers"].high) == (1, 5)  # type: ignore[attr-defined]
    assert first.duration == timedelta(seconds=9)
    assert first.datetime_start is not None
    assert first.datetime_start.astimezone(timezone.utc) == BEGUN
    assert study.trials[5].datetime_complete is None
    assert study.trials[2].params["shape"] == 3
    assert study.trials[2].user_attrs["metric"] == "NaN"
    assert study.trials[3].intermediate_values == {0: 0.1, 1: 0.3}
    assert study.trials[4].user_attrs["cause"] == "exit code 3"
    assert study.trials[5].params == {"lr": 0.2}
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_study_is_written_to_a_new_file_that_can_be_written_or_to_none(tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    file.write_bytes(b"somebody else's")
    with pytest.raises(SpecError, match="is there already"):
        export_study(report_of(finished(0, 0.5, **params(0.1, 3))), file)
    assert file.read_bytes() == b"somebody else's"
    with pytest.raises(SpecError, match="Cannot write the study"):
        export_study(report_of(), tmp_path / "missing" / "study.db")
    with pytest.raises(SpecError, match="has no metric"):
        export_study(report_of(metric=None), tmp_path / "study.db")
    assert [path.name for path in tmp_path.iterdir()] == ["prefect.db"]
