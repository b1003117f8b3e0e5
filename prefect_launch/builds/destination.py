"""Where built images go: one repository of a registry, with a tag that is made of what is built.

The same input has the same tag, so an image that is there already, from any machine, is not built again. What is given
back names the image by its digest.
"""

from __future__ import annotations

from prefect_launch.builds.push import push_image
from prefect_launch.builds.push_engine import LineSink, PushEngine
from prefect_launch.registries.base import Registry
from prefect_launch.registries.reference import parse_reference, parse_repository


class Destination:
    """One repository.

    Args:
        engine: which builds and pushes.
        registry: the registries, with the credentials for them.
        repository: such as `registry.example:5000/team/built`.

    Raises:
        SpecError: when the repository is none.
    """

    def __init__(self, engine: PushEngine, registry: Registry, repository: str) -> None:
        self._engine = engine
        self._registry = registry
        self.repository = parse_repository(repository)

    async def find(self, tag: str) -> str | None:
        """Return the image of a tag, by its digest; None when it is not there.

        Raises:
            RegistryError: when the registry fails, does not answer, or refuses to say.
        """
        name = f"{self.repository}:{tag}"
        digest = await self._registry.digest_of(name)
        return None if digest is None else parse_reference(name).at(digest)

    async def publish(self, image: str, tag: str, log: LineSink) -> str:
        """Push an image that the engine has, and return it by its digest.

        Raises:
            LaunchError: as `push_image` does.
        """
        name = f"{self.repository}:{tag}"
        await self._engine.tag(image, name)
        return await push_image(self._engine, self._registry, name, log)
