"""A disk that is full while an image is built: whose it is, and what to do about it.

The build context and the build's log are written on the machine of whoever builds; all else is written by the Docker
Engine, which may be another machine. A program in a build step that only says "I/O error" is taken at its word.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import BinaryIO, Final

import anyio

from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.context import BuildContext
from prefect_launch.core.disk import is_disk_full, is_own_disk_full
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
async def telling_full_disks(engine: BuildEngine) -> AsyncIterator[None]:
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


@asynccontextmanager
async def packed(context: BuildContext) -> AsyncIterator[BinaryIO]:
    """Write a context as an archive into a file that is gone after the block, to be read from its start.

    Raises:
        InfrastructureError: when it cannot be written.
    """
    with ExitStack() as closing:
        try:
            file = closing.enter_context(_scratch())
            await anyio.to_thread.run_sync(context.write, file)
            file.seek(0)
        except OSError as error:
            raise InfrastructureError(
                f"The build context cannot be written in {tempfile.gettempdir()!r}: {error}. Look at that disk, or set"
                " TMPDIR."
            ) from error
        yield file


@contextmanager
def _scratch() -> Iterator[BinaryIO]:
    """Open a file that nobody needs after the block: closing it tries once more to write what found no room."""
    file = tempfile.TemporaryFile(prefix="launch-context-")  # noqa: SIM115 - closed here, whatever it says to that
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


async def _described(engine: BuildEngine) -> str:
    """Name an engine, and its folder on its machine when it tells."""
    try:
        return f"the Docker Engine at {engine.address} (its data: {await engine.data_folder()})"
    except InfrastructureError:
        return f"the Docker Engine at {engine.address}"
