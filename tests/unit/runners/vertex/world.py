"""Runners and plans of the tests of Vertex AI's runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.vertex.runner import VertexRunner
from prefect_launch.testing.runner_contract import MISSING
from tests.support.vertex import BUCKET, TestAccount, VertexCloud

SPEC: dict[str, Any] = {
    "worker_pool_specs": [
        {
            "machine_spec": {"machine_type": "n1-standard-4"},
            "replica_count": 1,
            "container_spec": {"image_uri": "${image_uri}"},
        }
    ],
    "staging_bucket": f"gs://{BUCKET}/team",
}


class VertexWorld:
    def __init__(self, folder: Path, cloud: VertexCloud) -> None:
        self.folder = folder
        self.cloud = cloud
        self.runners: list[VertexRunner] = []

    def runner(self, home: str = "home") -> VertexRunner:
        runner = VertexRunner(self.folder / home, httpx.MockTransport(self.cloud.answer))
        runner.clouds = Clouds()
        vars(runner.clouds)["gcp"] = TestAccount()
        self.runners.append(runner)
        return runner

    def plan(
        self, script: str = "exit 0", *, args: Sequence[str] = (), env: Mapping[str, str] | None = None, **changes: Any
    ) -> RunPlan:
        item = str(uuid4())
        run_dir = self.folder / "runs" / item
        run_dir.mkdir(parents=True)
        plan = RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            image="europe-docker.pkg.dev/team/train:1",
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            options={"spec": SPEC},
            labels={Labels.ITEM: item, Labels.AGENT: "Box 1.ünï"},
        )
        return plan.model_copy(update=changes)

    def fill(self) -> None:
        self.cloud.machines = 0

    def free(self) -> None:
        self.cloud.resize(1_000)

    def lose_answers(self, count: int) -> None:
        self.cloud.lost_answers = count
