"""What the tests of the agent share: a queue on an in-memory server, and agents on an in-memory machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A queue `gpu` of containers, a machine, and agents on it."""
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses that spare real servers, engines and drivers: those in memory answer at once."""
    monkeypatch.setattr("prefect_launch.agent.item.logs.SETTLE_SECONDS", (0.01, 0.02, 0.04))
    monkeypatch.setattr("prefect_launch.agent.runner_health._PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("prefect_launch.agent.devices.allocator._READ_SECONDS", 0.1)
