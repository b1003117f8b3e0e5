"""A working directory and an environment of each test's own, with nothing of launch in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.planning.environment import JobContext, job_environment

Launch = Callable[..., None]


@pytest.fixture(autouse=True)
def job_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The job's working directory; the test runs in it."""
    for name in list(os.environ):
        if name.startswith(("LAUNCH_", "WANDB_")):
            monkeypatch.delenv(name)
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Put the test into the environment that an agent would make."""

    def launch(*, chunk_bytes: int = 32_670, **fields: Any) -> None:
        context = JobContext(run_id="r1", item_id="i1", output_dir=str(tmp_path / "out"), **fields)
        for name, value in job_environment(context, chunk_bytes=chunk_bytes).items():
            monkeypatch.setenv(name, value)

    return launch
