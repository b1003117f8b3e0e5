"""Fixtures of the tests of Vertex AI's runner: a fake of Google Cloud, and no more waiting than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_launch.runners.remote.vertex import client, jobs, logs, runner
from prefect_launch.runners.remote.vertex.runner import VertexRunner
from tests.support.vertex import VertexCloud


@pytest.fixture(autouse=True)
def _nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        *((client, "_FIRST_PAUSE", 0.01), (client, "_LONGEST_PAUSE", 0.05), (client, "_PATIENCE_SECONDS", 1.0)),
        *((jobs, "_LOOK_SECONDS", 0.05), (logs, "_PACE_SECONDS", 0.02), (logs, "_PAGE_SECONDS", 0.0)),
        *((logs, "_OVERLAP", timedelta(seconds=2)), (runner, "_LOG_SETTLE_SECONDS", 0.2)),
    ):
        monkeypatch.setattr(module, name, value)
    for name, value in (
        *(("lag_seconds", 0.3), ("poll_seconds", 0.1), ("least_poll_seconds", 0.05), ("log_seconds", 0.05)),
        ("stop_margin_seconds", 20.0),
    ):
        monkeypatch.setattr(VertexRunner, name, value)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[VertexCloud]:
    """Google Cloud, whose jobs run as processes of this machine."""
    cloud = VertexCloud(tmp_path / "google")
    yield cloud
    cloud.close()
