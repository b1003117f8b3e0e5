"""From the plan of a run whose code has no image to the same plan with one: looked up by its tag, built when missing.

A builder knows nothing of agents, and a runner nothing of builds: this stands between the plan and the runner. What is
made gets its name last, when it is whole.
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

from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.build_lease import Flights
from prefect_launch.builds.builder import Builder, ImageBuild, LineSink
from prefect_launch.builds.buildkit_builder import BuildxBuilder, EmbeddedBuilder, docker_programs, says
from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.builds.destination import Destination, LocalImages
from prefect_launch.builds.dockerfile import CODE_FOLDER, Dependencies, Recipe, find_dependencies, install_files
from prefect_launch.builds.dockerfile_selection import DockerfileSelection, read_base_images, select_dockerfile
from prefect_launch.builds.engine_builder import EngineBuilder
from prefect_launch.builds.image_usage import ImageUsage
from prefect_launch.builds.pip_access import PipAccess, read_pip_access
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.core.filesystem import is_disk_full, is_own_disk_full
from prefect_launch.errors import (
    AgentConfigError,
    BuildDiskError,
    BuildError,
    InfrastructureError,
    LaunchError,
    RegistryError,
)
from prefect_launch.registries.base import Registry
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import RunPlan
from prefect_launch.spec.image_request import BuildRequest
from prefect_launch.spec.job_naming import parse_image, runtime_of

_NO_BUILDER: Final = (
    "No images are built here (builder.type: none), and the job has code but no image. Give the job a base_image, queue"
    " it with build=True ('add --build'), or have the operator set builder.type to docker."
)


@dataclass(frozen=True)
class PlannedBuild:
    """What is to be built for a plan.

    Attributes:
        target: the image.
        entry_point: the run's command in it.
    """

    target: ImageBuild
    entry_point: tuple[str, ...]


class ImageBuilder:
    """Makes the images of one agent, or of one `launch`.

    Args:
        settings: how.
        flights: sees to it that an image is built once.
        remote: the registries, with the credentials for them.
        engine: the Docker Engine that builds.
        home: the folder of prefect-launch where it is noted which images are used, so that old ones can go; None: it is
            not noted, and they stay.

    Attributes:
        engine: the same.
    """

    def __init__(
        self,
        settings: BuilderSettings,
        flights: Flights,
        remote: Registry | None = None,
        engine: BuildEngine | None = None,
        *,
        home: Path | None = None,
    ) -> None:
        self._settings = settings
        self._flights = flights
        self.engine = engine or BuildEngine()
        self._usage = ImageUsage(home) if home else None
        self._registry: Registry = LocalImages(self.engine)
        self._remote = remote or RemoteRegistries()
        self._destination = (
            Destination(self.engine, self._remote, settings.destination) if settings.destination else None
        )

    async def find(self, plan: RunPlan) -> RunPlan | None:
        """Return the plan with its image when that is there; None when something must be pulled or built first.

        Raises:
            SubmitterError: when the code cannot be built: its Dockerfile, its size, its requirements, or for want of a
                builder.
        """
        selection, dependencies = await self._look(plan)
        pinned = {
            base: await self._registry.digest_of(base) for base in await self._bases(plan, selection, dependencies)
        }
        if None in pinned.values():
            return None
        planned = await anyio.to_thread.run_sync(self._want, plan, selection, dependencies, pinned)
        image = await self._there(planned.target)
        return await self._with_image(plan, planned, image) if image else None

    async def ensure_image(self, plan: RunPlan, log: LineSink) -> RunPlan:
        """Return the plan with its image, which is built when it is not there.

        Args:
            plan: of a run with code and no image.
            log: takes the build's output.

        Raises:
            LaunchError: as `find` does.
            BuildError: when a step of the build fails.
            AgentConfigError: when the builder that is configured is not there.
            BuildDiskError: when a disk is full.
            InfrastructureError: when the base image cannot be had, or the engine fails.
        """
        async with explaining_full_disks(self.engine):
            return await self._made(plan, log)

    async def _made(self, plan: RunPlan, log: LineSink) -> RunPlan:
        selection, dependencies = await self._look(plan)
        pinned = {base: await self._brought(base, log) for base in await self._bases(plan, selection, dependencies)}
        planned = await anyio.to_thread.run_sync(self._want, plan, selection, dependencies, pinned)
        target = planned.target

        async def is_there() -> bool:
            return await self._there(target) is not None

        build = partial(self._make, target, log)
        await self._flights.once(await self._place(target), UUID(plan.item_id), log, is_there=is_there, build=build)
        image = await self._there(target)
        if image is None:
            raise InfrastructureError(
                f"The image {target.image} was there a moment ago and is gone: somebody has removed it. Try again."
            )
        return await self._with_image(plan, planned, image)

    async def _with_image(self, plan: RunPlan, planned: PlannedBuild, image: str) -> RunPlan:
        if self._usage is not None:
            await anyio.to_thread.run_sync(self._usage.record, planned.target.tag, (planned.target.image, image))
        changes = {"image": image, "command": planned.entry_point, "code_dir": None, "build_request": None}
        return plan.model_copy(update=changes)

    async def _there(self, target: ImageBuild) -> str | None:
        """Return the name of an image that was made before, where images of this maker are kept."""
        if self._destination is not None:
            return await self._destination.find(target.tag)
        return target.image if await self._registry.digest_of(target.image) is not None else None

    async def _place(self, target: ImageBuild) -> str:
        """Say where an image will be: who builds for the same place waits for each other."""
        if self._destination is not None:
            return f"{self._destination.repository}:{target.tag}"
        return f"{target.image} on {await self.engine.identity()}"

    async def _make(self, target: ImageBuild, log: LineSink) -> None:
        """Build an image, unless this engine has it, and bring it to where it is kept."""
        if await self._registry.digest_of(target.image) is None:
            await self._build(target, log)
        if self._destination is not None:
            await self._destination.publish(target.image, target.tag, log)

    async def aclose(self) -> None:
        """Let go of the engine."""
        await self.engine.aclose()

    async def _build(self, target: ImageBuild, log: LineSink) -> None:
        builder, access = await self._prepared(target, log)
        log(f"Building {target.image} with {builder.name}{f' on {target.base}' if target.base else ''}.\n")
        try:
            made = await builder.build(target, access, lambda text: log(access.masked(text)))
        except (BuildError, InfrastructureError) as error:  # It has the last lines of the log.
            raise type(error)(access.masked(str(error))) from None
        await self.engine.tag(made, target.image)
        log(f"Built {target.image}.\n")

    async def _prepared(self, target: ImageBuild, log: LineSink) -> tuple[Builder, PipAccess]:
        """Choose a builder, and read what pip is told: an index on this disk wants one that can show it."""
        access = await self._access(folders=self.engine.is_local and target.recipe is not None)
        builder = await choose_builder(self.engine, self._settings, with_folders=bool(access.folders))
        if access.folders and not builder.mounts_folders:
            log(f"Not seen by {builder.name}: packages in {', '.join(access.folders)} on this machine.\n")
            access = await self._access(folders=False)
        return builder, access

    async def _access(self, *, folders: bool) -> PipAccess:
        return await anyio.to_thread.run_sync(lambda: read_pip_access(self._settings.pip_config, folders=folders))

    async def _look(self, plan: RunPlan) -> tuple[DockerfileSelection, Dependencies | None]:
        if self._settings.type == "none":
            raise BuildError(_NO_BUILDER)
        return await anyio.to_thread.run_sync(self._read, plan)

    def _read(self, plan: RunPlan) -> tuple[DockerfileSelection, Dependencies | None]:
        selection = select_dockerfile(plan.code_dir or plan.run_dir, plan.build_request or BuildRequest())
        if selection.dockerfile is not None:
            return selection, None
        return selection, find_dependencies(selection.context, self._settings.context_limit)

    async def _brought(self, base: str, log: LineSink) -> str:
        """Return the digest of a base image, which is pulled when it is not there."""
        digest = await self._registry.digest_of(base)
        if digest is None:
            log(f"Pulling the base image {base}.\n")
            await self.engine.pull(base, self._settings.platform, await self._remote.credentials_for(base))
            digest = await self._registry.digest_of(base)
        return digest or ""

    async def _bases(
        self, plan: RunPlan, selection: DockerfileSelection, dependencies: Dependencies | None
    ) -> tuple[str, ...]:
        request = plan.build_request or BuildRequest()
        return await anyio.to_thread.run_sync(self._read_bases, request, selection, dependencies)

    def _read_bases(
        self, request: BuildRequest, selection: DockerfileSelection, dependencies: Dependencies | None
    ) -> tuple[str, ...]:
        if dependencies is None:
            return read_base_images(selection.context / (selection.dockerfile or ""))
        accelerator = request.base_image or self._settings.accelerator.base_image
        own = self._settings.conda_base_image if dependencies.conda else self._settings.base_image
        base = (accelerator or own).replace("{version}", _python_version(selection.context, request))
        parse_image(base)
        return (base,)

    def _want(
        self,
        plan: RunPlan,
        selection: DockerfileSelection,
        dependencies: Dependencies | None,
        pinned: Mapping[str, str | None],
    ) -> PlannedBuild:
        request, settings = plan.build_request or BuildRequest(), self._settings
        bases = " ".join(f"{base}@{digest}" for base, digest in pinned.items())
        if dependencies is None:
            context = read_context(selection.context, limit=settings.context_limit, keep=[selection.dockerfile or ""])
            target = ImageBuild(context, dockerfile=selection.dockerfile, base=bases, platform=settings.platform)
            return PlannedBuild(target, selection.entry_point)
        version = _python_version(selection.context, request)
        recipe = Recipe(
            base=next(iter(pinned)),
            python_version=version,
            brings_python=not (request.base_image or settings.accelerator.base_image),
            conda=dependencies.conda,
            project=dependencies.project,
            user_id=settings.user_id if request.user_id is None else request.user_id,
        )
        code = read_context(selection.context, limit=settings.context_limit, prefix=CODE_FOLDER)
        files = BuildContext().plus({} if dependencies.conda else install_files(version, recipe.user_id))
        target = ImageBuild(
            merge(code, dependencies.context, files),
            recipe=recipe,
            base=bases,
            platform=settings.platform,
        )
        return PlannedBuild(target, selection.entry_point)


def _python_version(folder: Path, request: BuildRequest) -> str:
    return request.python_version or runtime_of(folder)


# Which builder builds here: found by asking what there is, in the order of one table.

#: The first version of the command that reaches BuildKit through buildx alone.
_NEEDS_BUILDX: Final = 23


async def _buildx(engine: BuildEngine, settings: BuilderSettings) -> Builder | None:
    for program in docker_programs():
        if await says(program, "buildx", "version"):
            return BuildxBuilder(program, engine.address, network=settings.network, cache=settings.cache)
    return None


async def _embedded(engine: BuildEngine, settings: BuilderSettings) -> Builder | None:
    if not await engine.has_buildkit():
        return None
    for program in docker_programs():
        version = await says(program, "--version") or ""
        number = version.removeprefix("Docker version ").partition(".")[0]
        if number.isdigit() and int(number) < _NEEDS_BUILDX:
            return EmbeddedBuilder(program, engine.address, network=settings.network, cache=settings.cache)
    return None


async def _classic(engine: BuildEngine, settings: BuilderSettings) -> Builder | None:
    return EngineBuilder(engine, network=settings.network, cache=settings.cache)


_Probe = Callable[[BuildEngine, BuilderSettings], Awaitable["Builder | None"]]
#: The one table of builders, the best first, by the name that `builder.backend` may insist on.
BUILDERS: Final[dict[str, _Probe]] = {"buildx": _buildx, "buildkit": _embedded, "engine": _classic}


async def choose_builder(engine: BuildEngine, settings: BuilderSettings, *, with_folders: bool) -> Builder:
    """Return what builds here.

    Args:
        engine: the Docker Engine.
        settings: the agent's.
        with_folders: whether folders of this machine must be mounted into a step (an index on this disk).

    Raises:
        AgentConfigError: when the builder that the settings insist on is not there.
    """
    wanted = BUILDERS if settings.backend == "auto" else {settings.backend: BUILDERS[settings.backend]}
    for probe in wanted.values():
        builder = await probe(engine, settings)
        if builder is not None and (builder.mounts_folders or not with_folders or len(wanted) == 1):
            return builder
    raise AgentConfigError(
        f"builder.backend is {settings.backend!r}, which is not on this machine. Install it, or set 'auto'."
    )


# A disk that is full while an image is built: whose it is, and what to do about it.

_ENGINE_STEP: Final = (
    "Free space there ('docker system df' tells what takes it; 'docker builder prune' removes what builds have left,"
    " 'prefect-launch agent clean --keep-images SIZE' images that were built for code), then try again"
)
_OWN_STEP: Final = (
    "Free space there ('prefect-launch agent clean' removes what agents need not keep; TMPDIR is where build contexts"
    " are written), then try again"
)


@asynccontextmanager
async def explaining_full_disks(engine: BuildEngine) -> AsyncIterator[None]:
    """Let what fails inside the block for want of room say whose disk is full.

    Args:
        engine: which builds.

    Raises:
        BuildDiskError: in the place of what failed.
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
    """Name an engine, and its folder on its machine when it tells."""
    try:
        return f"the Docker Engine at {engine.address} (its data: {await engine.data_folder()})"
    except InfrastructureError:
        return f"the Docker Engine at {engine.address}"
