"""The runner of `slurm` on a real Slurm cluster: the contract, and what a cluster does to jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.slurm.runner import SlurmRunner
from prefect_launch.testing.runner_contract import MISSING, RemoteRunnerContract
from tests.support.live import Site
from tests.support.prefect_server import PrefectServerProcess
from tests.support.slurm import SlurmCluster


class SlurmWorld:
    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self.home = folder / "home %j"
        self.runs = folder / "runs %j"
        self.cluster = cluster

    def runner(self) -> SlurmRunner:
        return SlurmRunner(self.home)

    def plan(self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> RunPlan:
        item = str(uuid4())
        run_dir = self.runs / item
        (run_dir / "code").mkdir(parents=True)
        return RunPlan(
            item_id=item,
            run_id=item[:8],
            run_dir=run_dir,
            code_dir=run_dir / "code",
            command=(MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            args=tuple(args),
            env=dict(env or {}),
            options={"memory": "100m"},
            labels={Labels.ITEM: item, Labels.AGENT: "contract"},
        )

    def fill(self) -> None:
        self.cluster.set_nodes("drain")

    def free(self) -> None:
        self.cluster.set_nodes("resume")

    def lose_answers(self, count: int) -> None:
        """Overridden below."""


@pytest.fixture
def world(tmp_path: Path, slurm_cluster: SlurmCluster) -> SlurmWorld:
    return SlurmWorld(tmp_path, slurm_cluster)


class TestSlurm(RemoteRunnerContract):
    """Each promise of the contract, kept by jobs of Slurm."""


# --- an agent on the cluster ---

JOB = """echo one; echo two >&2
printf '{"accuracy": 0.9}' > "$LAUNCH_OUTPUT_DIR/outputs.json"
echo "$LAUNCH_CONFIG" "$SLURM_JOB_NAME"
"""


def site(server: PrefectServerProcess, folder: Path, **queue: Any) -> Site:
    options = {"memory": "100m", **queue}
    name = f"slurm-{uuid4().hex[:6]}"
    return Site(server.api_url, folder, name, resource="slurm", config=options)


def test_item_of_a_slurm_queue_runs_with_its_log_and_outputs(
    prefect_server: PrefectServerProcess, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    place = site(prefect_server, tmp_path)
    place.job(JOB)
    [run] = place.add(overrides={"run_config": {"lr": 0.5}})
    place.work_off()
    assert place.states(run)[-1] == "Completed"
    log = place.log(run).splitlines()
    assert {"one", "two"} <= set(log)
    assert any('{"lr": 0.5}' in line and f"launch-{run.id}-1" in line for line in log)
    (artifact,) = place.artifacts(run)
    assert json.loads(artifact.data) == [{"output": "accuracy", "value": 0.9}]
