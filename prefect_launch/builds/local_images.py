"""The Docker Engine's own images, as a registry: where built images are kept when they are pushed nowhere."""

from __future__ import annotations

from prefect_launch.registries.base import Credentials, Registry
from prefect_launch.runners.docker.engine import Engine


class LocalImages(Registry):
    """The images of one engine.

    Args:
        engine: the Docker Engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def digest_of(self, reference: str) -> str | None:
        image = await self._engine.image(reference)
        return None if image is None else image.reference(reference).rpartition("@")[2]

    async def credentials_for(self, reference: str) -> Credentials | None:
        return None
