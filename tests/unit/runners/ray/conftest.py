"""Fixtures of the tests of Ray's runner."""

from __future__ import annotations

import pytest

from prefect_launch.runners.remote.ray import cluster


@pytest.fixture(autouse=True)
def _nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API in memory looks after no job that has ended."""
    monkeypatch.setattr(cluster, "_SETTLE_SECONDS", 0.0)
