"""Run outputs in the job store: one folder for each attempt at an item.

The folder that is stored was written by anybody's code, so only regular files are taken, and no more than the limits
say: a link, a device or a pipe is left out, since following it would copy the agent's own files into the store. What is
left out is reported. A listing of names and sizes is stored beside the folder, since a storage block cannot list.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import anyio
from anyio import to_thread
from pydantic import BaseModel, ConfigDict

from prefect_launch.core.cancellation import finished
from prefect_launch.core.filesystem import allocated_bytes, copy_file, make_folders, walk
from prefect_launch.core.names import check_name
from prefect_launch.core.output_limits import (
    MAX_DEPTH,
    OUTPUTS_FILE,
    TOO_DEEP,
    LeftOut,
    OutputLimits,
    OutputLinks,
    Selection,
    kind_of,
)
from prefect_launch.errors import ArtifactError, NotFoundError
from prefect_launch.jobs.store import StoredFiles


class KeptOutputs(BaseModel):
    """What was stored of an attempt's outputs.

    Attributes:
        paths: the relative paths of what was stored, sorted.
        left_out: what was not.
    """

    model_config = ConfigDict(frozen=True)

    paths: tuple[str, ...] = ()
    left_out: LeftOut = LeftOut()


async def put_outputs(
    files: StoredFiles,
    item_id: str,
    attempt: int,
    folder: Path,
    *,
    extra: Mapping[str, Path] | None = None,
    limits: OutputLimits | None = None,
) -> KeptOutputs:
    """Store the files of a folder.

    Args:
        files: the job store.
        item_id: the item's flow run id.
        attempt: which attempt at it, from 1.
        folder: what the run left; it need not exist.
        extra: more files, by the name to store them under, such as the run's log. No limit holds for them.
        limits: how much of the folder is stored; None: all of it.

    Returns:
        What was stored, and what was left out.

    Raises:
        InfrastructureError: when the storage fails.
    """
    wanted, most = dict(extra or {}), limits or OutputLimits()
    async with anyio.TemporaryDirectory(prefix=".outputs-", dir=str(folder.parent)) as staging:
        kept = await to_thread.run_sync(_stage, folder, Path(staging), wanted, most, files.keeps_holes)
        if kept.paths:
            await files.put_folder(Path(staging), _path(item_id, attempt))
            sizes = await to_thread.run_sync(_sizes, Path(staging), kept.paths)
            await files.write(_listing_path(item_id, attempt), json.dumps(sizes).encode())
        return kept


async def get_outputs(files: StoredFiles, item_id: str, attempt: int, folder: Path) -> list[str]:
    """Copy the stored files of an attempt to a folder, and return their relative paths, sorted.

    Raises:
        NotFoundError: when nothing was stored for that attempt.
        InfrastructureError: when the storage fails.
    """
    await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    if not await files.get_folder(_path(item_id, attempt), folder):
        raise _none_stored(files, item_id, attempt)
    return await to_thread.run_sync(_regular_files, folder)


async def list_outputs(files: StoredFiles, item_id: str, attempt: int) -> dict[str, int]:
    """Return the sizes of the stored files of an attempt, in bytes, by their relative paths, sorted.

    Raises:
        NotFoundError: when nothing was stored for that attempt.
        InfrastructureError: when the storage fails.
    """
    content = await files.read(_listing_path(item_id, attempt))
    if content is None:
        raise _none_stored(files, item_id, attempt)
    return {str(name): int(size) for name, size in json.loads(content).items()}


async def fetch_outputs(files: StoredFiles, item_id: str, attempt: int, names: Sequence[str], folder: Path) -> None:
    """Copy some stored files of an attempt to a folder.

    Args:
        files: the job store.
        item_id: the item's flow run id.
        attempt: which attempt at it, from 1.
        names: of the files, as `list_outputs` has them.
        folder: where they come, under the same relative paths.

    Raises:
        ArtifactError: when a name leads out of the folder, or its file is not in the store any more.
        InfrastructureError: when the storage fails.
    """
    for name in names:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ArtifactError(
                f"The item {item_id} has the file {name!r} in the job store {files}, which would be written outside of"
                f" {folder}. Ask who wrote to the job store."
            )
    await files.get_files(_path(item_id, attempt), names, folder)
    missing = await to_thread.run_sync(lambda: [name for name in names if not (folder / name).is_file()])
    if missing:
        raise ArtifactError(
            f"{missing[0]!r} of the item {item_id} is not in the job store {files} any more. If the store was moved,"
            " point its block at the new place; else run the item again."
        )


async def read_output(files: StoredFiles, item_id: str, attempt: int, name: str) -> bytes | None:
    """Return the bytes of one stored file, or `None` when there is none of that name.

    Raises:
        InfrastructureError: when the storage fails.
    """
    return await files.read(f"{_path(item_id, attempt)}/{name}")


def _none_stored(files: StoredFiles, item_id: str, attempt: int) -> NotFoundError:
    # By default it is a folder of each machine's own.
    shared = " On another machine than the agent's, both need one job store." if files.keeps_holes else ""
    return NotFoundError(
        f"Attempt {attempt} of the item {item_id} has no outputs in the job store {files}."
        f" A run leaves outputs in the folder that $LAUNCH_OUTPUT_DIR names; they are stored when it has ended.{shared}"
    )


def _sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (folder / name).lstat().st_size for name in names}


def _regular_files(folder: Path) -> list[str]:
    found = (Path(parent, name) for parent, _, names in walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found if stat.S_ISREG(path.lstat().st_mode))


def _path(item_id: str, attempt: int) -> str:
    return f"outputs/{check_name('item', item_id)}/{int(attempt)}"


def _listing_path(item_id: str, attempt: int) -> str:
    # No attempt's folder has a path that begins so: some object stores find a folder by the beginning of its path.
    return f"outputs/{check_name('item', item_id)}/files-{int(attempt)}.json"


async def copy_outputs(folder: Path, target: Path, limits: OutputLimits) -> KeptOutputs:
    """Copy what would be stored of a folder into another folder, on this machine; a caller that is cancelled ends it.

    Args:
        folder: what a run left; it need not exist.
        target: the folder to copy into; it is made when there is a file to copy.
        limits: how much of the folder is copied.

    Returns:
        What was copied, and what was left out.

    Raises:
        OSError: when a file cannot be read or written.
    """
    stop = threading.Event()
    return await finished(asyncio.to_thread(_copy, folder, target, limits, stop), hurry=stop.set)


def _copy(folder: Path, target: Path, limits: OutputLimits, stop: threading.Event) -> KeptOutputs:
    def put(source: Path, place: Path) -> bool:
        make_folders(place.parent)
        copy_file(source, place, stop=stop)
        return True

    return _take(folder, target, limits, put, keeps_holes=True)


def _stage(folder: Path, staging: Path, extra: dict[str, Path], limits: OutputLimits, keeps_holes: bool) -> KeptOutputs:
    """Link the regular files into a folder of ours: what the storage block then follows is known to be plain."""
    kept = _take(folder, staging, limits, _link, keeps_holes=keeps_holes, reserved=extra)
    logs = [name for name, source in extra.items() if _link(source, staging / name)]
    return kept.model_copy(update={"paths": tuple(sorted([*kept.paths, *logs]))})


def _take(
    folder: Path,
    target: Path,
    limits: OutputLimits,
    put: Callable[[Path, Path], bool],
    *,
    keeps_holes: bool,
    reserved: Collection[str] = (),
) -> KeptOutputs:
    """Put the files of a folder that are kept into another one, and say what is left out."""
    taken, selection = [], Selection(limits)
    links = OutputLinks((os.fspath(folder), os.path.realpath(folder)))
    for name, source in _entries(folder, selection):
        status = source.lstat()
        if name in reserved:
            selection.leave_out(name, "the run's log is kept under this name")
        elif stat.S_ISLNK(status.st_mode):
            links.add(name, os.readlink(source))
        elif not stat.S_ISREG(status.st_mode):
            selection.leave_out(name, f"it is {kind_of(status.st_mode)}")
        elif not os.access(source, os.R_OK):
            selection.leave_out(name, "it cannot be read")
        elif selection.takes(name, allocated_bytes(status) if keeps_holes else status.st_size):
            taken += [name] if put(source, target / name) else []
    links.leave_out(target, selection)
    return KeptOutputs(paths=tuple(sorted(taken)), left_out=selection.left_out)


def _link(source: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:  # another file system, or one without hard links
        copy_file(source, target)
    if stat.S_ISREG(target.lstat().st_mode):
        return True
    target.unlink()
    return False


def _entries(folder: Path, selection: Selection) -> Iterator[tuple[str, Path]]:
    """Yield what is in a folder, by relative path: the results first, then by name; folders are gone into."""
    first = folder / OUTPUTS_FILE
    if first.is_file():
        yield OUTPUTS_FILE, first

    def unread(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        if name != ".":
            selection.leave_out(f"{name}/", "the folder cannot be read")

    for parent, folders, names in walk(folder, onerror=unread):
        folders.sort()
        if parent.count(os.sep) - os.fspath(folder).count(os.sep) >= MAX_DEPTH:
            for name in folders:
                selection.leave_out(f"{Path(parent, name).relative_to(folder).as_posix()}/", TOO_DEEP)
            folders.clear()
        for name in sorted([*names, *(each for each in folders if Path(parent, each).is_symlink())]):
            path = Path(parent, name)
            if path != first or not path.is_file():
                yield path.relative_to(folder).as_posix(), path
