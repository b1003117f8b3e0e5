"""Image builder: gives the plan of a run whose code has no image one, found by its tag or built.

It stands between the plan and the runner: builders know nothing of agents, runners nothing of builds. An image gets its
tag last, when it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.builder import BuildPlace, ImageBuild, LineSink
from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.builds.dockerfile import CODE_FOLDER, Dependencies, Recipe, find_dependencies, install_files
from prefect_launch.builds.dockerfile_selection import DockerfileSelection, read_base_images, select_dockerfile
from prefect_launch.builds.engine_images import EngineImages
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.errors import BuildError, InfrastructureError
from prefect_launch.registries.base import Registry
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import RunPlan
from prefect_launch.spec.code_options import BuildRequest, parse_image, runtime_of

_NO_BUILDER: Final = (
    "No images are built here (builder.type: none), and the job has code but no image. Give the job a base_image, queue"
    " it with build=True ('add --build'), or have the operator set builder.type to docker or kubernetes."
)


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
        settings: how images are built, and where.
        home: the folder of prefect-launch. Processes that share it build an image once, and the images that are used
            are recorded there, so that old ones can be removed.
        holder: who builds, as the logs of those who wait for the build say it.
        remote: the registries, with the credentials for them.
        engine: the Docker Engine that builds, where one does.

    Attributes:
        engine: the same; nothing is asked of it until it is used.
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
        self.engine = engine or BuildEngine()
        registries = remote or RemoteRegistries()
        self._place: BuildPlace
        if settings.builds_in_cluster:
            from prefect_launch.builds.cluster_images import ClusterImages

            self._place = ClusterImages(settings, home, holder, registries)
        else:
            self._place = EngineImages(settings, home, holder, registries, self.engine)

    async def find(self, plan: RunPlan) -> RunPlan | None:
        """Return the plan with its image when that exists; None when something must be pulled or built first.

        Raises:
            SubmitterError: when the code cannot be built: its Dockerfile, its size, its requirements, or no builder.
        """
        source = await self._source(plan)
        digests = {base: await self._place.base_digest(base) for base in source.bases}
        if None in digests.values():
            return None
        target = await anyio.to_thread.run_sync(self._compose, source, digests)
        image = await self._place.find(target)
        return await self._with_image(plan, target, image) if image else None

    async def ensure_image(self, plan: RunPlan, log: LineSink) -> RunPlan:
        """Return the plan with its image, which is built when it does not exist.

        Raises:
            LaunchError: as `find` does.
            BuildError: when a step of the build fails.
            AgentConfigError: when the configured builder is not installed.
            BuildDiskError: when a disk is full.
            InfrastructureError: when a base image cannot be pulled, or what builds fails.
        """
        async with self.explaining_full_disks():
            source = await self._source(plan)
            digests = {base: await self._place.fetch_base(base, log) for base in source.bases}
            target = await anyio.to_thread.run_sync(self._compose, source, digests)
            image = await self._place.build(target, plan.item_id, log)
            if image is None:
                raise InfrastructureError(
                    f"The image {target.image} was there a moment ago and is gone: somebody has removed it. Try again."
                )
            return await self._with_image(plan, target, image)

    def explaining_full_disks(self) -> AbstractAsyncContextManager[None]:
        """Raise a `BuildDiskError` that says whose disk is full in place of an error that a full disk causes."""
        return self._place.explaining_full_disks()

    async def aclose(self) -> None:
        """Close the connections to what builds."""
        await self._place.aclose()

    async def _with_image(self, plan: RunPlan, target: ImageBuild, image: str) -> RunPlan:
        await self._place.note_use(target, image)
        context = plan.build_request.build_context if plan.build_request else None
        built_of = plan.code_dir and plan.code_dir / (context or "")
        changes = {"image": image, "command": target.entry_point, "code_dir": None, "build_request": None}
        return plan.model_copy(update={**changes, "built_code_dir": built_of})

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
