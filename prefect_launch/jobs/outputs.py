"""What a run left behind, kept in the job store beside the jobs: one folder for each attempt at an item.

The folder that is stored was written by anybody's code, so only regular files are taken: a link, a device or a pipe is
left out with a warning, since following it would copy the agent's own files into the store.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import anyio
from anyio import to_thread
from prefect.logging import get_logger

from prefect_launch.errors import NotFoundError
from prefect_launch.jobs.files import StoredFiles
from prefect_launch.names import check_name

_logger = get_logger("launch.outputs")


async def put_outputs(
    files: StoredFiles, item_id: str, attempt: int, folder: Path, *, extra: Mapping[str, Path] | None = None
) -> list[str]:
    """Store the files of a folder.

    Args:
        files: the job store.
        item_id: the item's flow run id.
        attempt: which attempt at it, from 1.
        folder: what the run left; it need not exist.
        extra: more files, by the name to store them under, such as the run's log.

    Returns:
        The relative paths of what was stored, sorted.

    Raises:
        InfrastructureError: when the storage fails.
    """
    async with anyio.TemporaryDirectory(prefix=".outputs-", dir=str(folder.parent)) as staging:
        stored = await to_thread.run_sync(_stage, folder, Path(staging), dict(extra or {}))
        if stored:
            await files.put_folder(Path(staging), _path(item_id, attempt))
        return stored


async def get_outputs(files: StoredFiles, item_id: str, attempt: int, folder: Path) -> list[str]:
    """Copy the stored files of an attempt to a folder, and return their relative paths, sorted.

    Raises:
        NotFoundError: when nothing was stored for that attempt.
        InfrastructureError: when the storage fails.
    """
    await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    if not await files.get_folder(_path(item_id, attempt), folder):
        raise NotFoundError(
            f"Attempt {attempt} of the item {item_id} has no outputs in the job store {files}."
            " A run leaves outputs in the folder that $LAUNCH_OUTPUT_DIR names; they are stored when it has ended."
        )
    return await to_thread.run_sync(lambda: sorted(path for path, _ in _regular_files(folder)))


async def read_output(files: StoredFiles, item_id: str, attempt: int, name: str) -> bytes | None:
    """Return the bytes of one stored file, or `None` when there is none of that name.

    Raises:
        InfrastructureError: when the storage fails.
    """
    return await files.read(f"{_path(item_id, attempt)}/{name}")


def _path(item_id: str, attempt: int) -> str:
    return f"outputs/{check_name('item', item_id)}/{int(attempt)}"


def _stage(folder: Path, staging: Path, extra: dict[str, Path]) -> list[str]:
    """Link the regular files into a folder of ours: what the storage block then follows is known to be plain."""
    wanted = {**dict(_regular_files(folder)), **extra}
    return sorted(name for name, source in wanted.items() if _link(source, staging / name))


def _link(source: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target, follow_symlinks=False)
    if stat.S_ISREG(target.lstat().st_mode):
        return True
    target.unlink()
    return False


def _regular_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        for name in sorted([*names, *(each for each in folders if Path(parent, each).is_symlink())]):
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path.relative_to(folder).as_posix(), path
            else:
                _logger.warning("Output %s is no regular file and is not kept.", path)
