"""The world of the unit tests of the resource `prefect`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_launch.runners.remote.prefect import payload
from tests.unit.runners.prefect.world import PrefectWorld


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PrefectWorld]:
    """A work pool and its worker of this test alone."""
    world = PrefectWorld(tmp_path)
    yield world
    for runner in world.runners:
        await runner.aclose()
    world.close()


@pytest.fixture(autouse=True)
def _gone_is_believed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server in memory says at once, and for good, that a flow run is not there."""
    monkeypatch.setattr(payload, "GONE_SECONDS", 0.2)
