"""Image builder: gives the plan of a run whose code has no image one, found by its tag or built.

It stands between the plan and the runner: builders know nothing of agents, runners nothing of builds. An image gets its
tag last, when it is complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.builds.build_engine import BuildEngine, LocalImages, push_image
from prefect_launch.builds.builder import Builder, ImageBuild, LineSink
from prefect_launch.builds.buildkit_builder import BuildkitBuilder, docker_programs, output_of
from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.builds.dockerfile import CODE_FOLDER, Dependencies, Recipe, find_dependencies, install_files
from prefect_launch.builds.dockerfile_selection import DockerfileSelection, read_base_images, select_dockerfile
from prefect_launch.builds.engine_builder import EngineBuilder
from prefect_launch.builds.image_records import BuildLease, ImageUsage
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.core.filesystem import is_disk_full, is_own_disk_full
from prefect_launch.environments.pip_config import PipAccess, read_pip_access
from prefect_launch.errors import (
    AgentConfigError,
    BuildDiskError,
    BuildError,
    InfrastructureError,
    LaunchError,
    RegistryError,
)
from prefect_launch.registries.base import Registry, parse_reference
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import RunPlan
from prefect_launch.spec.code_options import BuildRequest, parse_image, runtime_of

_NO_BUILDER: Final = (
    "No images are built here (builder.type: none), and the job has code but no image. Give the job a base_image, queue"
    " it with build=True ('add --build'), or have the operator set builder.type to docker."
)
#: The first version of the `docker` command that reaches BuildKit through buildx alone.
_NEEDS_BUILDX: Final = 23
_ENGINE_STEP: Final = (
    "Free space there ('docker system df' tells what takes it; 'docker builder prune' removes what builds have left,"
    " 'prefect-launch agent clean --keep-images SIZE' images that were built for code), then try again"
)
_OWN_STEP: Final = (
    "Free space there ('prefect-launch agent clean' removes what agents need not keep; TMPDIR is where build contexts"
    " are written), then try again"
)
_Probe = Callable[[BuildEngine, BuilderSettings], Awaitable["Builder | None"]]


@dataclass(frozen=True)
class _Source:
    """How the code of a plan is built, without the digests of its base images."""

    request: BuildRequest
    selection: DockerfileSelection
    dependencies: Dependencies | None
    bases: tuple[str, ...]


class ImageBuilder:
    """Builds the images of one agent, or of one `launch`.

    Args:
        settings: how images are built.
        home: the folder of prefect-launch. Processes that share it build an image once, and the images that are used
            are recorded there, so that old ones can be removed.
        holder: who builds, as the logs of processes that wait for the build say it.
        remote: the registries, with the credentials for them.
        engine: the Docker Engine that builds.

    Attributes:
        engine: the same.
    """

    def __init__(
        self,
        settings: BuilderSettings,
        home: Path,
        holder: str,
        remote: Registry | None = None,
        engine: BuildEngine | None = None,
    ) -> None:
        self._settings = settings
        self._home = home
        self._holder = holder
        self.engine = engine or BuildEngine()
        self._usage = ImageUsage(home)
        self._local = LocalImages(self.engine)
        self._remote = remote or RemoteRegistries()

    async def find(self, plan: RunPlan) -> RunPlan | None:
        """Return the plan with its image when that exists; None when something must be pulled or built first.

        Raises:
            SubmitterError: when the code cannot be built: its Dockerfile, its size, its requirements, or no builder.
        """
        source = await self._source(plan)
        digests = {base: await self._local.digest_of(base) for base in source.bases}
        if None in digests.values():
            return None
        target = await anyio.to_thread.run_sync(self._compose, source, digests)
        image = await self._find_image(target)
        return await self._with_image(plan, target, image) if image else None

    async def ensure_image(self, plan: RunPlan, log: LineSink) -> RunPlan:
        """Return the plan with its image, which is built when it does not exist.

        Raises:
            LaunchError: as `find` does.
            BuildError: when a step of the build fails.
            AgentConfigError: when the configured builder is not installed.
            BuildDiskError: when a disk is full.
            InfrastructureError: when a base image cannot be pulled, or the engine fails.
        """
        async with explaining_full_disks(self.engine):
            source = await self._source(plan)
            digests = {base: await self._pulled(base, log) for base in source.bases}
            target = await anyio.to_thread.run_sync(self._compose, source, digests)

            async def is_built() -> bool:
                return await self._find_image(target) is not None

            build = partial(self._build_and_publish, target)
            lease = BuildLease(self._home, self._pushed_name(target) or f"{target.image} on {self.engine.address}")
            await lease.build_once(self._holder, UUID(plan.item_id), log, is_built=is_built, build=build)
            image = await self._find_image(target)
            if image is None:
                raise InfrastructureError(
                    f"The image {target.image} was there a moment ago and is gone: somebody has removed it. Try again."
                )
            return await self._with_image(plan, target, image)

    async def aclose(self) -> None:
        """Close the connections to the engine."""
        await self.engine.aclose()

    async def _find_image(self, target: ImageBuild) -> str | None:
        """Return the name of an image that was built before, where built images are kept."""
        pushed = self._pushed_name(target)
        digest = await (self._local.digest_of(target.image) if pushed is None else self._remote.digest_of(pushed))
        if digest is None:
            return None
        return target.image if pushed is None else parse_reference(pushed).at(digest)

    def _pushed_name(self, target: ImageBuild) -> str | None:
        """Return the name that an image is pushed under; None: it stays on the engine."""
        return f"{self._settings.destination}:{target.tag}" if self._settings.destination else None

    async def _with_image(self, plan: RunPlan, target: ImageBuild, image: str) -> RunPlan:
        await anyio.to_thread.run_sync(self._usage.record, target.tag, (target.image, image))
        changes = {"image": image, "command": target.entry_point, "code_dir": None, "build_request": None}
        return plan.model_copy(update=changes)

    async def _build_and_publish(self, target: ImageBuild, log: LineSink) -> None:
        """Build an image unless the engine has it, and push it when it is kept in a registry."""
        if await self._local.digest_of(target.image) is None:
            await self._build(target, log)
        if (name := self._pushed_name(target)) is not None:
            await self.engine.tag(target.image, name)
            await push_image(self.engine, self._remote, name, log)

    async def _build(self, target: ImageBuild, log: LineSink) -> None:
        builder, access = await self._choose(target, log)
        log(f"Building {target.image} with {builder.name}{f' on {target.base}' if target.base else ''}.\n")
        try:
            built = await builder.build(target, access, lambda text: log(access.mask.text(text)))
        except (BuildError, InfrastructureError) as error:  # It has the last lines of the log.
            raise type(error)(access.mask.text(str(error))) from None
        await self.engine.tag(built, target.image)
        log(f"Built {target.image}.\n")

    async def _choose(self, target: ImageBuild, log: LineSink) -> tuple[Builder, PipAccess]:
        """Choose a builder, and read pip's settings: an index on this disk needs a builder that mounts folders."""
        access = await self._pip_access(folders=self.engine.is_local and target.recipe is not None)
        builder = await choose_builder(self.engine, self._settings, with_folders=bool(access.folders))
        if access.folders and not builder.mounts_folders:
            log(f"Not seen by {builder.name}: packages in {', '.join(access.folders)} on this machine.\n")
            access = await self._pip_access(folders=False)
        return builder, access

    async def _pip_access(self, *, folders: bool) -> PipAccess:
        return await anyio.to_thread.run_sync(lambda: read_pip_access(self._settings.pip_config, folders=folders))

    async def _pulled(self, base: str, log: LineSink) -> str:
        """Return the digest of a base image, which is pulled when the engine does not have it."""
        digest = await self._local.digest_of(base)
        if digest is None:
            log(f"Pulling the base image {base}.\n")
            await self.engine.pull(base, self._settings.platform, await self._remote.credentials_for(base))
            digest = await self._local.digest_of(base)
        return digest or ""

    async def _source(self, plan: RunPlan) -> _Source:
        if self._settings.type == "none":
            raise BuildError(_NO_BUILDER)
        return await anyio.to_thread.run_sync(self._read, plan)

    def _read(self, plan: RunPlan) -> _Source:
        request = plan.build_request or BuildRequest()
        selection = select_dockerfile(plan.code_dir or plan.run_dir, request)
        if selection.dockerfile is not None:
            bases = read_base_images(selection.context / selection.dockerfile)
            return _Source(request, selection, None, bases)
        dependencies = find_dependencies(selection.context, self._settings.context_limit)
        accelerator = request.base_image or self._settings.accelerator.base_image
        own = self._settings.conda_base_image if dependencies.conda else self._settings.base_image
        base = (accelerator or own).replace("{version}", request.python_version or runtime_of(selection.context))
        parse_image(base)
        return _Source(request, selection, dependencies, (base,))

    def _compose(self, source: _Source, digests: Mapping[str, str | None]) -> ImageBuild:
        """Put together what goes into the image of a source, by the digests of its base images."""
        request, selection, settings = source.request, source.selection, self._settings
        build = partial(
            ImageBuild,
            base=" ".join(f"{base}@{digest}" for base, digest in digests.items()),
            platform=settings.platform,
            entry_point=selection.entry_point,
        )
        if source.dependencies is None:
            keep = [selection.dockerfile or ""]
            context = read_context(selection.context, limit=settings.context_limit, keep=keep)
            return build(context, dockerfile=selection.dockerfile)
        recipe = Recipe(
            base=source.bases[0],
            python_version=request.python_version or runtime_of(selection.context),
            brings_python=not (request.base_image or settings.accelerator.base_image),
            conda=source.dependencies.conda,
            project=source.dependencies.project,
            user_id=settings.user_id if request.user_id is None else request.user_id,
        )
        code = read_context(selection.context, limit=settings.context_limit, prefix=CODE_FOLDER)
        files = BuildContext().plus({} if recipe.conda else install_files(recipe.python_version, recipe.user_id))
        return build(merge(code, source.dependencies.context, files), recipe=recipe)


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


@asynccontextmanager
async def explaining_full_disks(engine: BuildEngine) -> AsyncIterator[None]:
    """Raise a `BuildDiskError` that says whose disk is full in place of an error that a full disk causes in the block.

    This machine writes the build context and the build's log; the Docker Engine, which may be on another machine,
    writes all else. A program in a build step that only says "I/O error" is not taken for a full disk.
    """
    try:
        yield
    except (BuildDiskError, RegistryError):  # A registry has a disk of its own.
        raise
    except (LaunchError, OSError) as error:
        if is_own_disk_full(error):
            where, step = "the disk of the machine that builds is full", _OWN_STEP
        elif is_disk_full(error):
            where, step = f"the disk of {await _described(engine)} is full", _ENGINE_STEP
        else:
            raise
        raise BuildDiskError(f"No space left on device: {where}. {step}. What failed: {error}") from error


async def _described(engine: BuildEngine) -> str:
    """Return the engine's address, with its data folder when the engine answers."""
    try:
        return f"the Docker Engine at {engine.address} (its data: {await engine.data_folder()})"
    except InfrastructureError:
        return f"the Docker Engine at {engine.address}"
