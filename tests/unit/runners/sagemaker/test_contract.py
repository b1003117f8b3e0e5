"""The contract of remote runners, kept by training jobs of a fake account; AWS's own client is real."""

from __future__ import annotations

from pathlib import Path

from prefect_launch.testing.runner_contract import RemoteRunnerContract, World
from tests.unit.runners.sagemaker.world import SageMakerWorld


class TestSageMakerRunner(RemoteRunnerContract):
    """Each promise of the contract; the jobs wait for a file, and none for a time."""

    limit_seconds = 60.0
    stop_margin_seconds = 30.0
    tells_end_of_stop = False
    starts_at_once = False

    def _pause(self, world: World) -> str:
        return f"until [ -e {_gate(world)} ]; do sleep 0.02; done;"

    def _go_on(self, world: World) -> None:
        _gate(world).touch()


def _gate(world: World) -> Path:
    assert isinstance(world, SageMakerWorld)
    return world.folder / "go"
