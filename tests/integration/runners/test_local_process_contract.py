"""The runner's contract on real processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.testing.runner_contract import MISSING, ExecContract, RunnerContract


class ProcessWorld:
    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.runs = folder / "runs"

    def runner(self) -> LocalProcessRunner:
        return LocalProcessRunner(self.home)

    def plan(self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> RunPlan:
        item = str(uuid4())
        run_dir = self.runs / item
        code = run_dir / "code"
        code.mkdir(parents=True)
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            code_dir=code,
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            labels={Labels.ITEM: item, Labels.AGENT: "contract"},
        )


@pytest.fixture
def world(tmp_path: Path) -> ProcessWorld:
    return ProcessWorld(tmp_path)


class TestLocalProcess(RunnerContract, ExecContract):
    """Each promise of the contract, kept by processes."""
