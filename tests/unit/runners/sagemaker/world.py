"""Where the unit tests of the resource `sagemaker` run: a fake account, whose jobs are processes here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect_launch.runners.base import Labels, RunPlan, run_name
from prefect_launch.runners.remote.sagemaker.runner import SageMakerRunner
from prefect_launch.testing.runner_contract import MISSING
from tests.support.sagemaker import IMAGE, QUEUE, FakeAws


class QuickRunner(SageMakerRunner):
    """A runner that asks its account more often than AWS would bear."""

    lag_seconds = 0.2
    poll_seconds = 0.1
    least_poll_seconds = 0.05
    log_seconds = 0.1
    settle_seconds = 0.1


class SageMakerWorld:
    """An account, and runners in it.

    Args:
        folder: of the test.
        aws: the account.
    """

    def __init__(self, folder: Path, aws: FakeAws) -> None:
        self.folder = folder
        self.aws = aws
        self.runners: list[QuickRunner] = []

    def runner(self) -> QuickRunner:
        """Return a new runner, as an agent that has just started makes one."""
        runner = QuickRunner(self.folder / "home")
        self.runners.append(runner)
        return runner

    def plan(
        self,
        script: str,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> RunPlan:
        """Return a plan whose command runs a script."""
        item = str(uuid4())
        run_dir = self.folder / "runs" / item
        run_dir.mkdir(parents=True)
        fields: dict[str, Any] = {
            "command": (MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            "args": tuple(args),
            "env": dict(env or {}),
            "image": IMAGE,
            "options": QuickRunner.check_options({**QUEUE, **(options or {})}),
            "labels": {Labels.ITEM: item, Labels.ATTEMPT: "1", Labels.QUEUE: "train & test", Labels.AGENT: "contract"},
        }
        return RunPlan(item_id=item, run_id=item[:8], run_dir=run_dir, **{**fields, **changes})

    def name(self, plan: RunPlan) -> str:
        """Return the name of a plan's first training job."""
        return run_name(plan.item_id, plan.attempt)

    def fill(self) -> None:
        """Let no further job start."""
        self.aws.is_full = True

    def free(self) -> None:
        """Let what waits start."""
        self.aws.free()

    def lose_answers(self, count: int) -> None:
        """Do the work of the next calls, and lose their answers."""
        self.aws.lost_answers = count
