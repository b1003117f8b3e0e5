"""A user's first hour: an install with no pinned versions, a server from it, and a flow on a schedule.

The bounds in `pyproject.toml` on what Prefect itself leaves open (fastapi, sqlalchemy) are there for this. A new
release of some package that breaks the server shows up here first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prefect_server import PrefectServerProcess
from tests.support.processes import ChildProcess
from tests.support.requests import send

PROJECT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS = 300
COMPLETED_SECONDS = 90

#: `requires-python` of the project.
LOWEST = (3, 10)
FLOW = """
from prefect import flow

@flow
def tick():
    return 1

if __name__ == "__main__":
    tick.serve(name="every-five-seconds", interval=5, limit=1)
"""


def lowest_python() -> str:
    """The oldest interpreter of this machine that the project takes, or the one that runs the tests."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = {}
    for path in pyenv.glob("versions/3.*/bin/python"):
        version = tuple(int(part) for part in re.findall(r"\d+", path.parts[-3]))
        if LOWEST <= version < sys.version_info[:3]:
            found[version] = str(path)
    return found[min(found)] if found else sys.executable


@pytest.fixture
def fresh_python(tmp_path: Path) -> str:
    """The interpreter of a new environment into which this project was installed, with no constraints."""
    uv = [sys.executable, "-m", "uv"]
    python = str(tmp_path / "venv" / "bin" / "python")
    unconstrained = {name: value for name, value in os.environ.items() if name not in {"UV_CONSTRAINT", "VIRTUAL_ENV"}}
    for command in (
        [*uv, "venv", "--quiet", "--python", lowest_python(), str(tmp_path / "venv")],
        [*uv, "pip", "install", "--quiet", "--python", python, str(PROJECT)],
    ):
        done = subprocess.run(
            command,
            env=unconstrained,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return python


@pytest.fixture
def fresh_server(fresh_python: str, tmp_path: Path) -> Iterator[PrefectServerProcess]:
    """A server of that environment on an empty database."""
    server = PrefectServerProcess(tmp_path / "server", python=fresh_python)
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(600)
def test_unconstrained_install_starts_the_server_and_fires_a_schedule(
    fresh_python: str, fresh_server: PrefectServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "tick.py").write_text(FLOW)
    environment = {**os.environ, **fresh_server.client_environment(), "PREFECT_HOME": str(tmp_path / "client")}
    served = ChildProcess([fresh_python, str(tmp_path / "tick.py")], tmp_path / "tick.log", environment=environment)
    try:
        served.wait_until(lambda: _scheduled_run_completed(fresh_server.api_url), COMPLETED_SECONDS)
    finally:
        served.stop()


def _scheduled_run_completed(api_url: str) -> bool:
    filters = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    time.sleep(0.5)
    runs = send("POST", f"{api_url}/flow_runs/filter", json=filters).json()
    return any(run["auto_scheduled"] for run in runs)
