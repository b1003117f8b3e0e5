"""Image push: an image of the engine is put into a registry under its final name, and looked up there.

A registry takes an image's layers first and its manifest last: until the manifest is there, nothing has the name. So a
push that breaks off leaves the name as it was, and the next push goes on with the layers that are there.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prefect_launch.builds.build_engine import BuildEngine, PushRefusedError
from prefect_launch.builds.builder import LineSink
from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Registry, parse_reference

#: Before each further try. The engine itself tries a layer five times.
PAUSES_SECONDS: Final = (2.0, 10.0)


async def push_image(
    engine: BuildEngine,
    registry: Registry,
    name: str,
    log: LineSink,
    *,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
) -> str:
    """Push an image that the engine has under this name.

    Returns:
        The image by its digest there, `repository@sha256:…`.

    Raises:
        RegistryError: when the registry does not accept it, or does not have it afterwards.
        AgentConfigError: when its configured credentials cannot be read.
        InfrastructureError: when the engine fails.
    """
    log(f"Pushing {name}.\n")
    left = iter(pauses)
    while True:
        try:
            return await _push(engine, registry, name, log)
        except PushRefusedError:
            raise
        except RegistryError as error:
            pause = next(left, None)
            if pause is None:
                raise RegistryError(
                    f"{error} It was tried {len(pauses) + 1} times. Look at the registry, its disk and its log; the"
                    " next try goes on with the layers that are there."
                ) from error
            log(f"{error} Trying again in {pause:g} s.\n")
            await asyncio.sleep(pause)


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
