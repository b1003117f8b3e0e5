"""Image destination: a repository of a registry that built images are pushed to, or the engine that built them.

The tag is a digest of the input, so an image that exists already, pushed by any machine, is not built again. The
returned name has the image's digest. A registry takes an image's layers first and its manifest last: until the manifest
is there, nothing has the name. So a push that breaks off leaves the name as it was, and the next push goes on with the
layers that are there.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prefect_launch.builds.build_engine import BuildEngine, PushRefusedError
from prefect_launch.builds.builder import LineSink
from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Credentials, Registry, parse_reference, parse_repository
from prefect_launch.runners.docker.engine import Engine

#: Before each further try. The engine itself tries a layer five times.
PAUSES_SECONDS: Final = (2.0, 10.0)


class Destination:
    """A repository that built images are pushed to.

    Args:
        engine: the engine that builds and pushes.
        registry: the registries, with the credentials for them.
        repository: such as `registry.example:5000/team/built`.

    Raises:
        SpecError: when it is no valid repository.
    """

    def __init__(self, engine: BuildEngine, registry: Registry, repository: str) -> None:
        self._engine = engine
        self._registry = registry
        self.repository = parse_repository(repository)

    async def find(self, tag: str) -> str | None:
        """Return the image of a tag, by its digest; None when it does not exist.

        Raises:
            RegistryError: when the registry fails, does not answer, or refuses to tell.
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


async def push_image(
    engine: BuildEngine,
    registry: Registry,
    name: str,
    log: LineSink,
    *,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
) -> str:
    """Push an image that the engine has under this name.

    Args:
        engine: the engine that has the image.
        registry: the registries, with the credentials for them.
        name: the image's name, with registry, repository and tag.
        log: takes lines about the progress; it may be called from any thread.
        pauses: seconds before each further try.

    Returns:
        The image by its digest there, `repository@sha256:…`.

    Raises:
        RegistryError: when the registry does not accept it, or does not have it afterwards.
        AgentConfigError: when its configured credentials cannot be read.
        InfrastructureError: when the engine fails.
    """
    log(f"Pushing {name}.\n")
    for pause in pauses:
        try:
            return await _push(engine, registry, name, log)
        except PushRefusedError:
            raise
        except RegistryError as error:
            log(f"{error} Trying again in {pause:g} s.\n")
            await asyncio.sleep(pause)
    try:
        return await _push(engine, registry, name, log)
    except PushRefusedError:
        raise
    except RegistryError as error:
        raise RegistryError(
            f"{error} It was tried {len(pauses) + 1} times. Look at the registry, its disk and its log; the next try"
            " goes on with the layers that are there."
        ) from error


async def _push(engine: BuildEngine, registry: Registry, name: str, log: LineSink) -> str:
    credentials = await registry.credentials_for(name)
    try:
        digest = await _checked(name, registry, await engine.push(name, credentials, log))
    except PushRefusedError as error:
        who = "the user that is configured for it" if credentials else "nobody: no credentials are known here"
        raise PushRefusedError(
            f"{error} It was asked as {who}. Name a DockerRegistryCredentials block of one who may push there under"
            " 'registries' in the config, or use 'docker login'."
        ) from error
    log(f"Pushed {digest}.\n")
    return digest


async def _checked(name: str, registry: Registry, pushed: str | None) -> str:
    """Return the image by its digest, if the registry has under the name what was pushed."""
    there = await registry.digest_of(name)
    if there is None or (pushed is not None and there != pushed):
        raise RegistryError(
            f"The image {name!r} was pushed as {pushed or 'an unknown digest'}, but its registry has"
            f" {there or 'nothing'} under that name."
        )
    return parse_reference(name).at(there)


class LocalImages(Registry):
    """The images of one engine, as a registry: images that are pushed nowhere are kept there.

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
