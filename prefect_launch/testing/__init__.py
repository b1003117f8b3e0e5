"""In-memory twins of every outside thing, for this project's tests and for its users', imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_launch.testing.api import InMemoryApi
    from prefect_launch.testing.devices import InMemoryCards
    from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine
    from prefect_launch.testing.job_index import InMemoryJobIndex
    from prefect_launch.testing.runner import InMemoryMachine, InMemoryRunner
    from prefect_launch.testing.script import Script
    from prefect_launch.testing.server import InMemoryServer

_HOMES = {
    "InMemoryApi": "api",
    "InMemoryCards": "devices",
    "InMemoryDocker": "engine",
    "InMemoryEngine": "engine",
    "InMemoryJobIndex": "job_index",
    "InMemoryMachine": "runner",
    "InMemoryRunner": "runner",
    "InMemoryServer": "server",
    "Script": "script",
}

__all__ = [
    "InMemoryApi",
    "InMemoryCards",
    "InMemoryDocker",
    "InMemoryEngine",
    "InMemoryJobIndex",
    "InMemoryMachine",
    "InMemoryRunner",
    "InMemoryServer",
    "Script",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
