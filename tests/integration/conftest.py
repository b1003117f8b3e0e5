"""Fixtures that only integration tests share; servers, engine and images are in `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.support.live import Site, close_warm_agents

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess


@pytest.fixture(scope="session", autouse=True)
def _warm_agents() -> Iterator[None]:
    """End, after the last test, the process from which agents are forked."""
    yield
    close_warm_agents()


@pytest.fixture
def unique() -> str:
    """A short name that no other test uses: tests share a server, so queues, jobs and containers need names apart."""
    return f"t-{uuid4().hex[:8]}"


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    """A queue of processes of the test's own."""
    return Site(prefect_server.api_url, tmp_path, unique)


@pytest.fixture
def containers(prefect_server: PrefectServerProcess, engine: DockerEngine, tmp_path: Path, unique: str) -> Site:
    """A queue of containers of the test's own."""
    return Site(prefect_server.api_url, tmp_path, unique, resource="local-container")


@pytest.fixture
def agents() -> Iterator[list[ChildProcess]]:
    """Agents as processes; what still runs at the end is killed."""
    started: list[ChildProcess] = []
    yield started
    for agent in started:
        agent.kill()
