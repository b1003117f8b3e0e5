"""A job leaves its results where the agent finds them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.errors import LaunchError
from prefect_launch.inputs import output_dir, save_outputs
from tests.unit.inputs.conftest import Launch


class Scalar:
    """What NumPy's and torch's scalars have in common."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def item(self) -> float:
        if len(self.values) != 1:
            raise ValueError("only one element tensors can be converted to Python scalars")
        return self.values[0]


def test_outputs_are_kept_in_the_launched_folder(launched: Launch, tmp_path: Path) -> None:
    launched()
    file = save_outputs(accuracy=0.97, steps=10, best=True, note="日本\n", nothing=None)

    assert file == tmp_path / "out/outputs.json"
    assert output_dir() == tmp_path / "out"
    expected = {"accuracy": 0.97, "steps": 10, "best": True, "note": "日本\n", "nothing": None}
    assert json.loads(file.read_text()) == expected


def test_later_outputs_are_added_to_earlier_ones(launched: Launch) -> None:
    launched()
    save_outputs(a=1, b=1)

    assert json.loads(save_outputs(b=2, c=3).read_text()) == {"a": 1, "b": 2, "c": 3}


def test_program_that_was_not_launched_has_a_folder_too(job_dir: Path) -> None:
    assert save_outputs(a=1) == job_dir / "outputs/outputs.json"


def test_scalar_of_a_library_counts_as_its_number(launched: Launch) -> None:
    launched()

    assert json.loads(save_outputs(loss=Scalar(0.5)).read_text()) == {"loss": 0.5}


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [1], (1,), float("nan"), float("inf"), b"x", {1}, object(), Scalar(1, 2), Scalar(float("nan")), Path()],
)
def test_value_that_is_no_output_is_refused_and_nothing_written(launched: Launch, tmp_path: Path, value: Any) -> None:
    launched()
    save_outputs(kept=1)

    with pytest.raises(LaunchError, match="'wrong'"):
        save_outputs(right=1, wrong=value)
    assert json.loads((tmp_path / "out/outputs.json").read_text()) == {"kept": 1}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": {"b": 1}}', '{"a": NaN}'])
def test_outputs_file_that_is_none_is_named(launched: Launch, text: str) -> None:
    launched()
    (output_dir() / "outputs.json").write_text(text)

    with pytest.raises(LaunchError):
        save_outputs(a=1)


def test_output_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, job_dir: Path) -> None:
    (job_dir / "file").write_text("")
    monkeypatch.setenv("LAUNCH_OUTPUT_DIR", str(job_dir / "file/below"))

    with pytest.raises(LaunchError, match="LAUNCH_OUTPUT_DIR"):
        output_dir()


def test_processes_that_save_at_once_lose_nothing(launched: Launch, tmp_path: Path) -> None:
    launched()
    code = (
        "import sys; from prefect_launch.inputs import save_outputs\n"
        "for n in range(25): save_outputs(**{sys.argv[1] + str(n): n})"
    )
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": str(root)}
    ranks = [subprocess.Popen([sys.executable, "-c", code, rank], env=env) for rank in "abcd"]

    assert [rank.wait(60) for rank in ranks] == [0] * 4
    assert len(json.loads((tmp_path / "out/outputs.json").read_text())) == 100
    assert os.listdir(tmp_path / "out") == ["outputs.json"]


def test_outputs_file_that_is_a_mount_point_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_mounted(*paths: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "outputs.json").touch()
    monkeypatch.setenv("LAUNCH_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(os, "replace", is_mounted)

    save_outputs(loss=1)
    save_outputs(steps=2)

    assert json.loads((tmp_path / "outputs.json").read_text()) == {"loss": 1, "steps": 2}
    assert [path.name for path in tmp_path.glob("*.tmp")] == []
