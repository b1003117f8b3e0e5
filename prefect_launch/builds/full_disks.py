"""Full disks of builds: an error that one causes, told as what it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.core.filesystem import is_disk_full, is_own_disk_full
from prefect_launch.errors import BuildDiskError, InfrastructureError, LaunchError, RegistryError

_ENGINE_STEP: Final = (
    "Free space there ('docker system df' tells what takes it; 'docker builder prune' removes what builds have left,"
    " 'prefect-launch agent clean --keep-images SIZE' images that were built for code), then try again"
)
_OWN_STEP: Final = (
    "Free space there ('prefect-launch agent clean' removes what agents need not keep; TMPDIR is where build contexts"
    " are written), then try again"
)


@asynccontextmanager
async def explaining_full_disks(engine: BuildEngine | None = None) -> AsyncIterator[None]:
    """Raise a `BuildDiskError` that says whose disk is full in place of an error that a full disk causes in the block.

    This machine writes the build context and the build's log; the Docker Engine, which may be on another machine,
    writes all else. A program in a build step that only says "I/O error" is not taken for a full disk.

    Args:
        engine: that builds; None: a cluster does, which sees to its own disks.
    """
    try:
        yield
    except (BuildDiskError, RegistryError):  # A registry has a disk of its own.
        raise
    except (LaunchError, OSError) as error:
        if is_own_disk_full(error):
            where, step = "the disk of the machine that builds is full", _OWN_STEP
        elif engine is not None and is_disk_full(error):
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
