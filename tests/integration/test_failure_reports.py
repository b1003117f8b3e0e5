"""Failure reports of containers, of an item and of a direct launch, on a real server and a real engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch import ExecutionError, launch
from tests.support.live import Site, prefect_client

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine

HOLDS_100_MB = "import time; held = b'x' * 100_000_000; time.sleep(2.5); raise SystemExit(3)"


def test_failure_report_of_a_container_shows_its_peak_memory_and_its_image(
    prefect_server: PrefectServerProcess, engine: DockerEngine, python_image: str, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    command = {"entry_point": ["python", "-c", HOLDS_100_MB]}
    (run,) = site.add({"docker": {"docker_image": python_image}, "overrides": command})
    site.work_off()
    assert site.states(run) == ["Queued", "Pending", "Running", "Failed"]
    (page,) = [artifact for artifact in site.artifacts(run) if str(artifact.key).startswith("failure-report-")]
    peak = re.search(r"peak memory \| `(\d+) MiB`", page.data)
    assert peak is not None, page.data
    assert 95 <= int(peak[1]) <= 200
    assert "sha256:" in page.data
    assert str(tmp_path) not in page.data


def test_launch_that_fails_leaves_its_failure_report_and_no_container(
    prefect_server: PrefectServerProcess,
    engine: DockerEngine,
    shell_image: str,
    tmp_path: Path,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    with pytest.raises(ExecutionError, match="exit code 9"):
        launch(site.api, docker_image=shell_image, entry_point=["sh", "-c", "echo badly; exit 9"], run_id=unique)
    client = engine.client()
    try:
        mine = {"label": f"prefect-launch.run-id={unique}"}
        assert client.containers.list(all=True, filters=mine) == []
    finally:
        client.close()
    with prefect_client() as prefect:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[f"failure-report-{unique}"]))
        (page,) = prefect.read_artifacts(artifact_filter=wanted)
    assert "badly" in str(page.data)
    assert str(tmp_path) not in str(page.data)
