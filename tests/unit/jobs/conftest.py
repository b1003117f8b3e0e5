"""What the tests of jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.store import JobStore
from prefect_launch.testing import InMemoryServer


@pytest.fixture
def server() -> InMemoryServer:
    """A server with no jobs."""
    return InMemoryServer()


@pytest.fixture
def registry(server: InMemoryServer, tmp_path: Path) -> JobRegistry:
    """A registry over the empty server and a folder."""
    store = JobStore(storage=LocalFileSystem(basepath=str(tmp_path / "store")))
    return JobRegistry(server, store, entity="team", project="demo")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder of code with an entry point."""
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "main.py").write_text("print('hello')\n")
    (folder / "requirements.txt").write_text("numpy\n")
    return folder
