"""The contract of remote runners, on a server in memory and a worker that starts real wrappers of real jobs."""

from __future__ import annotations

from pathlib import Path

from prefect_launch.testing.runner_contract import RemoteRunnerContract, World
from tests.unit.runners.prefect.world import PrefectWorld


class TestPrefectRunner(RemoteRunnerContract):
    """Each promise of the contract, kept in another work pool; its jobs wait for a file, and none for a time."""

    limit_seconds = 60.0
    stop_margin_seconds = 30.0
    starts_at_once = False

    def _pause(self, world: World) -> str:
        return f"until [ -e {_gate(world)} ]; do sleep 0.02; done;"

    def _go_on(self, world: World) -> None:
        _gate(world).touch()


def _gate(world: World) -> Path:
    assert isinstance(world, PrefectWorld)
    return world.folder / "go"
