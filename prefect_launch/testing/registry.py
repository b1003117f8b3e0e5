"""An in-memory registry: the in-memory fake of `RemoteRegistries`, which tells digests and keeps no images."""

from __future__ import annotations

import anyio

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Credentials, Registry, parse_reference


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
