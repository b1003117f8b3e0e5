"""Which builder builds here: found by asking what there is, in the order of one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.builder import Builder
from prefect_launch.builds.cli_builder import BuildxBuilder, EmbeddedBuilder, docker_programs, says
from prefect_launch.builds.engine_builder import EngineBuilder
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.errors import AgentConfigError

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
