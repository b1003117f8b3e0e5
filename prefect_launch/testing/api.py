"""In-memory fake of `Api`: its Prefect server, job store and registries are in memory.

Everything that takes an `Api` takes this one, and finds behind it the same `InMemoryServer`, from whatever thread or
event loop it asks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import anyio.lowlevel
from prefect.filesystems import RemoteFileSystem
from pydantic import PrivateAttr

from prefect_launch.client.api import Api
from prefect_launch.errors import RegistryError
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.store import JobStore
from prefect_launch.registries.base import Credentials, Registry, parse_reference
from prefect_launch.server.http import DEFAULT_PATIENCE_SECONDS
from prefect_launch.server.secrets import no_such_secret
from prefect_launch.testing.server import InMemoryServer

if TYPE_CHECKING:
    from prefect_launch.registries.base import Registry
    from prefect_launch.server.protocol import Server
    from prefect_launch.server.secrets import ReadSecret


class InMemoryRegistry(Registry):
    """All registries that there are.

    Args:
        digests: of its images, by their names; others it does not have.
        seconds: how long each answer takes.
        error: what it fails with, in words; empty: it does not fail.

    Attributes:
        asked: the names that were asked for, in order.
    """

    def __init__(self, digests: dict[str, str] | None = None, *, seconds: float = 0.0, error: str = "") -> None:
        self.digests = dict(digests or {})
        self.seconds = seconds
        self.error = error
        self.asked: list[str] = []

    async def digest_of(self, reference: str) -> str | None:
        parse_reference(reference)
        self.asked.append(reference)
        await anyio.sleep(self.seconds)
        if self.error:
            raise RegistryError(self.error)
        return self.digests.get(reference)

    async def credentials_for(self, reference: str) -> Credentials | None:
        return None


def _memory_store() -> JobStore:
    # fsspec keeps all that is in memory in one place for the process: each store takes a folder of its own there.
    return JobStore(storage=RemoteFileSystem(basepath=f"memory://launch-{uuid4().hex}"))


class InMemoryApi(Api):
    """An `Api` whose Prefect server is in memory.

    A copy (`model_copy`, for another entity or project) leads to the same server and the same jobs.
    """

    _server: InMemoryServer = PrivateAttr(default_factory=InMemoryServer)
    _store: JobStore = PrivateAttr(default_factory=_memory_store)
    _registry: InMemoryRegistry = PrivateAttr(default_factory=InMemoryRegistry)
    _held: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def server(self) -> InMemoryServer:
        """The server behind it, for a test to take down, hold up and look into."""
        return self._server

    @property
    def store(self) -> JobStore:
        """Where its jobs are kept."""
        return self._store

    @property
    def registry(self) -> InMemoryRegistry:
        """The registries that tell the digests of images, all in one, for a test to fill."""
        return self._registry

    @property
    def secrets(self) -> dict[str, str]:
        """What its Secret blocks hold, by name, for a test to fill."""
        return self._held

    @asynccontextmanager
    async def connect(self, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS) -> AsyncIterator[Server]:
        """Open the server on this event loop; its patience is none."""
        yield self._server

    @asynccontextmanager
    async def job_registry(self, server: Server | None = None) -> AsyncIterator[JobRegistry]:
        """Open the job registry."""
        yield JobRegistry(self._server, self._store, entity=self.entity, project=self.project)

    def _secrets(self, server: Server) -> ReadSecret:
        async def read(name: str) -> str:
            if name not in self._held:
                raise no_such_secret(name)
            return self._held[name]

        return read

    def _registries(self) -> Registry:
        return self._registry

    def _address(self) -> str | None:
        return self._server.api_url
