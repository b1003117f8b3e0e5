"""Fixtures of the tests of Ray's runner."""

from __future__ import annotations

import pytest

from prefect_launch.runners.remote.ray import cluster
from prefect_launch.runners.remote.ray.runner import RayRunner


@pytest.fixture(autouse=True)
def _nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API in memory looks after no job that has ended, and shows each at once."""
    monkeypatch.setattr(cluster, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(RayRunner, "lag_seconds", 0.2)
    monkeypatch.setattr(RayRunner, "poll_seconds", 0.1)
    monkeypatch.setattr(RayRunner, "log_seconds", 0.1)
