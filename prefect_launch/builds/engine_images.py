"""Images of a Docker Engine: built there by the best builder that it has, and pushed when they are kept in a registry.

Without a destination an image stays on its engine, under a name of its own. Processes of a home build an image once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.builds.build_engine import BuildEngine, LocalImages, push_image
from prefect_launch.builds.builder import Builder, BuildPlace, ImageBuild, LineSink
from prefect_launch.builds.buildkit_builder import BuildkitBuilder, docker_programs, output_of
from prefect_launch.builds.engine_builder import EngineBuilder
from prefect_launch.builds.full_disks import explaining_full_disks
from prefect_launch.builds.image_records import BuildLease, ImageUsage
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.environments.pip_config import PipAccess, read_pip_access
from prefect_launch.errors import AgentConfigError, BuildError, InfrastructureError, retold
from prefect_launch.registries.base import Registry, parse_reference

#: The first version of the `docker` command that reaches BuildKit through buildx alone.
_NEEDS_BUILDX: Final = 23
_Probe = Callable[[BuildEngine, BuilderSettings], Awaitable["Builder | None"]]


class EngineImages(BuildPlace):
    """The images of one Docker Engine, and those that it pushes.

    Args:
        settings: how images are built.
        home: the folder of prefect-launch.
        holder: who builds, as the logs of processes that wait for the build say it.
        remote: the registries.
        engine: that builds.
    """

    def __init__(
        self, settings: BuilderSettings, home: Path, holder: str, remote: Registry, engine: BuildEngine
    ) -> None:
        self._settings = settings
        self._home = home
        self._holder = holder
        self._remote = remote
        self._engine = engine
        self._usage = ImageUsage(home)
        self._local = LocalImages(engine)

    async def base_digest(self, base: str) -> str | None:
        return await self._local.digest_of(base)

    async def fetch_base(self, base: str, log: LineSink) -> str:
        digest = await self._local.digest_of(base)
        if digest is None:
            log(f"Pulling the base image {base}.\n")
            await self._engine.pull(base, self._settings.platform, await self._remote.credentials_for(base))
            digest = await self._local.digest_of(base)
        return digest or ""

    async def find(self, target: ImageBuild) -> str | None:
        pushed = self._pushed_name(target)
        digest = await (self._local.digest_of(target.image) if pushed is None else self._remote.digest_of(pushed))
        if digest is None:
            return None
        return target.image if pushed is None else parse_reference(pushed).at(digest)

    async def build(self, target: ImageBuild, item: str, log: LineSink) -> str | None:
        async def is_built() -> bool:
            return await self.find(target) is not None

        lease = BuildLease(self._home, self._pushed_name(target) or f"{target.image} on {self._engine.address}")
        build = partial(self._build_and_publish, target)
        await lease.build_once(self._holder, UUID(item), log, is_built=is_built, build=build)
        return await self.find(target)

    async def note_use(self, target: ImageBuild, image: str) -> None:
        await anyio.to_thread.run_sync(self._usage.record, target.tag, (target.image, image))

    def explaining_full_disks(self) -> AbstractAsyncContextManager[None]:
        return explaining_full_disks(self._engine)

    async def aclose(self) -> None:
        await self._engine.aclose()

    def _pushed_name(self, target: ImageBuild) -> str | None:
        """Return the name that an image is pushed under; None: it stays on the engine."""
        return f"{self._settings.destination}:{target.tag}" if self._settings.destination else None

    async def _build_and_publish(self, target: ImageBuild, log: LineSink) -> None:
        """Build an image unless the engine has it, and push it when it is kept in a registry."""
        if await self._local.digest_of(target.image) is None:
            await self._build(target, log)
        if (name := self._pushed_name(target)) is not None:
            await self._engine.tag(target.image, name)
            await push_image(self._engine, self._remote, name, log)

    async def _build(self, target: ImageBuild, log: LineSink) -> None:
        builder, access = await self._choose(target, log)
        log(f"Building {target.image} with {builder.name}{f' on {target.base}' if target.base else ''}.\n")
        try:
            built = await builder.build(target, access, lambda text: log(access.mask.text(text)))
        except (BuildError, InfrastructureError) as error:  # It has the last lines of the log.
            raise retold(error, access.mask.text(str(error))) from None
        await self._engine.tag(built, target.image)
        log(f"Built {target.image}.\n")

    async def _choose(self, target: ImageBuild, log: LineSink) -> tuple[Builder, PipAccess]:
        """Choose a builder, and read pip's settings: an index on this disk needs a builder that mounts folders."""
        access = await self._pip_access(folders=self._engine.is_local and target.recipe is not None)
        builder = await choose_builder(self._engine, self._settings, with_folders=bool(access.folders))
        if access.folders and not builder.mounts_folders:
            log(f"Not seen by {builder.name}: packages in {', '.join(access.folders)} on this machine.\n")
            access = await self._pip_access(folders=False)
        return builder, access

    async def _pip_access(self, *, folders: bool) -> PipAccess:
        return await anyio.to_thread.run_sync(lambda: read_pip_access(self._settings.pip_config, folders=folders))


async def _buildx(engine: BuildEngine, settings: BuilderSettings) -> Builder | None:
    for program in docker_programs():
        if await output_of(program, "buildx", "version"):
            return BuildkitBuilder.buildx(program, engine.address, settings)
    return None


async def _embedded(engine: BuildEngine, settings: BuilderSettings) -> Builder | None:
    if not await engine.has_buildkit():
        return None
    for program in docker_programs():
        version = await output_of(program, "--version") or ""
        number = version.removeprefix("Docker version ").partition(".")[0]
        if number.isdigit() and int(number) < _NEEDS_BUILDX:
            return BuildkitBuilder.embedded(program, engine.address, settings)
    return None


async def _classic(engine: BuildEngine, settings: BuilderSettings) -> Builder | None:
    return EngineBuilder(engine, network=settings.network, cache=settings.cache)


#: The one table of builders, the best first, by the name that `builder.backend` may require.
BUILDERS: Final[dict[str, _Probe]] = {"buildx": _buildx, "buildkit": _embedded, "engine": _classic}


async def choose_builder(engine: BuildEngine, settings: BuilderSettings, *, with_folders: bool) -> Builder:
    """Return the best builder of this machine; `with_folders`, one that can mount folders of this machine into a step.

    Raises:
        AgentConfigError: when the builder that the settings require is not installed.
    """
    wanted = BUILDERS if settings.backend == "auto" else {settings.backend: BUILDERS[settings.backend]}
    for probe in wanted.values():
        builder = await probe(engine, settings)
        if builder is not None and (builder.mounts_folders or not with_folders or len(wanted) == 1):
            return builder
    raise AgentConfigError(
        f"builder.backend is {settings.backend!r}, which is not on this machine. Install it, or set 'auto'."
    )
