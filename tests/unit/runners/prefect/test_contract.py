"""The contract of remote runners, on a server in memory and a worker that starts real wrappers of real jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_launch.testing.runner_contract import RemoteRunnerContract
from tests.unit.runners.prefect.world import PrefectWorld


class TestPrefectRunner(RemoteRunnerContract):
    """Each promise of the contract, kept in another work pool."""

    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[PrefectWorld]:
        world = PrefectWorld(tmp_path)
        yield world
        for runner in world.runners:
            await runner.aclose()
        world.close()
