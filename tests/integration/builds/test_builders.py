"""Every builder builds the same: with buildx, with the BuildKit of an engine, with its classic builder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.builds import BuildSite
from tests.support.buildx import with_buildx

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine

MAIN = "import six; print('six', six.__version__)"
BACKENDS = {
    "buildx": "with BuildKit (docker buildx)",
    "buildkit": "with the Docker Engine's BuildKit",
    "engine": "with the Docker Engine's classic builder",
}


@pytest.fixture
def site(prefect_server: PrefectServerProcess, engine: DockerEngine, tmp_path: Path, unique: str) -> BuildSite:
    return BuildSite(prefect_server.api_url, tmp_path, unique, resource="local-container")


@pytest.mark.usefixtures("python_image")
@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_source_line_is_built_and_installs_nothing_anew(
    site: BuildSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("PATH", with_buildx(tmp_path / "bin"))
    monkeypatch.setenv("BUILDX_BUILDER", "another-one")
    # A user of its own, so that no other test's build has installed the same.
    builder = {"backend": backend, "user_id": random.randint(10_000, 60_000)}
    logs = []
    for main in (MAIN, f"{MAIN}; print('changed')"):
        site.code_job({"main.py": main, "requirements.txt": "six==1.17.0\n"})
        (run,) = site.add()
        site.work_off(builder=builder)
        assert site.states(run)[-1] == "Completed", run.message
        assert "six 1.17.0" in site.log(run)
        logs.append(site.notes(run))
    assert all(BACKENDS[backend] in log for log in logs)
    assert ["Installed 1 package" in log for log in logs] == [True, False], logs[1]
    assert "changed" in site.log(run)
