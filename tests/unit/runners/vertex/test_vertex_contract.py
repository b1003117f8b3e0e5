"""The runner's contract on a fake of Google Cloud that runs the jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest

from prefect_launch.testing.runner_contract import RemoteRunnerContract
from tests.support.vertex import VertexCloud
from tests.unit.runners.vertex.world import VertexWorld


@pytest.fixture
async def world(tmp_path: Path, cloud: VertexCloud) -> AsyncIterator[VertexWorld]:
    world = VertexWorld(tmp_path, cloud)
    yield world
    for runner in world.runners:
        await runner.aclose()


class TestVertex(RemoteRunnerContract):
    """Each promise of the contract, kept by custom jobs."""

    starts_at_once: ClassVar[bool] = False
    stop_margin_seconds: ClassVar[float] = 10.0
    tells_end_of_stop: ClassVar[bool] = False
    tells_exit_code: ClassVar[bool] = False
