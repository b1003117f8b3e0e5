"""In-memory fakes of every outside thing, for this project's tests and for its users', imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_launch.core.lazy_names import lazy_names

if TYPE_CHECKING:
    from prefect_launch.testing.api import InMemoryApi, InMemoryRegistry
    from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine
    from prefect_launch.testing.remote_runner import InMemoryCluster, InMemoryRemoteRunner
    from prefect_launch.testing.runner import InMemoryGpus, InMemoryMachine, InMemoryRunner
    from prefect_launch.testing.script import Script
    from prefect_launch.testing.server import InMemoryServer

_HOMES = {
    "InMemoryApi": "api",
    "InMemoryCluster": "remote_runner",
    "InMemoryGpus": "runner",
    "InMemoryDocker": "engine",
    "InMemoryEngine": "engine",
    "InMemoryMachine": "runner",
    "InMemoryRegistry": "api",
    "InMemoryRemoteRunner": "remote_runner",
    "InMemoryRunner": "runner",
    "InMemoryServer": "server",
    "Script": "script",
}

__all__ = [
    "InMemoryApi",
    "InMemoryCluster",
    "InMemoryDocker",
    "InMemoryEngine",
    "InMemoryGpus",
    "InMemoryMachine",
    "InMemoryRegistry",
    "InMemoryRemoteRunner",
    "InMemoryRunner",
    "InMemoryServer",
    "Script",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
