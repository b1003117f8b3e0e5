"""`prefect-launch sweep check`: what a person and a program see of a sweep file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app, run

FILES = Path(__file__).parents[2] / "sweep_files"


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", "check", *arguments])


def test_check_shows_points_limit_and_five_samples_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    shown = check(str(FILES / "read" / "grid-nested.yaml"))

    assert shown.exit_code == 0
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["points", "12"] in lines
    assert ["trials", "at", "most", "12"] in lines
    assert ["TRIAL", "batch", "optimizer.name", "optimizer.options.lr"] in lines
    assert lines[-5:] == [
        *(["0", "8", "adam", "0.1"], ["1", "8", "adam", "0.01"], ["2", "8", "sgd", "0.1"]),
        *(["3", "8", "sgd", "0.01"], ["4", "16", "adam", "0.1"]),
    ]
    assert not list(tmp_path.iterdir())


def test_check_as_json_has_the_exact_values_and_no_warning_among_them() -> None:
    shown = check("--json", str(FILES / "read" / "launch-blocks.yaml"))

    told = json.loads(shown.stdout)
    assert (told["points"], told["trials"], told["num_workers"]) == ("infinite", None, 4)
    assert all(1e-4 < sample["lr"] < 1e-2 for sample in told["samples"])
    assert len({sample["lr"] for sample in told["samples"]}) == 5
    assert any("scheduler.resource" in warning for warning in told["warnings"])


def test_check_says_that_a_file_names_no_job_yet(tmp_path: Path) -> None:
    written = tmp_path / "sweep.yaml"
    for job, is_named in (("", False), ("job: digits", True)):
        written.write_text(f"method: grid\nprogram: train.py\nparameters: {{lr: {{values: [1, 2]}}}}\n{job}\n")
        shown = check(str(written))
        assert shown.exit_code == 0
        assert ("none yet: give -j JOB" in shown.stdout) is not is_named


def test_check_warns_of_a_command_that_is_refused_when_the_sweep_runs_and_shows_no_more_trials_than_there_are(
    tmp_path: Path,
) -> None:
    written = tmp_path / "sweep.yaml"
    written.write_text(
        "method: random\nrun_cap: 2\nprogram: train.py\ncommand: [python, --data, '${envvar:DATA}', '${args}']\n"
        "parameters: {lr: {min: 0.0, max: 1.0}}\n"
    )
    told = json.loads(check("--json", str(written)).stdout)
    assert len(told["samples"]) == told["trials"] == 2
    [warning] = told["warnings"]
    assert "${envvar:DATA} is refused when the sweep runs" in warning


def test_samples_of_bayes_are_different_points_of_a_small_space() -> None:
    told = json.loads(check("--json", str(FILES / "read" / "bayes-lists-as-values.yaml")).stdout)

    assert len({json.dumps(sample) for sample in told["samples"]}) == 5
    assert told["trials"] == 6
    assert not told["warnings"]


def test_broken_file_ends_with_one_line_and_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "check", str(FILES / "refused" / "wrong-goal.yaml")]) == 1

    shown = capsys.readouterr()
    assert shown.err.startswith("Error: Invalid metric.goal 'maximum'")
    assert shown.err.count("\n") == 1
    assert not shown.out
