"""Deeply nested folders, made, gone through and removed: a job may nest them deeper than Python's stack.

Before Python 3.12 `os.walk`, and before 3.13 `shutil.rmtree`, fail with `RecursionError` at about a thousand levels;
`Path.mkdir(parents=True)`, `os.makedirs` and `tarfile` do so on any.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from anyio import CancelScope, to_thread

_LIFTED: Final = ".lifted-"


def walk(
    folder: Path, *, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder in a folder as `os.walk` does: its path, its folders and its other names, itself first.

    Args:
        folder: where to begin.
        onerror: told of a folder that cannot be read; it is passed over.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as found:
                entries = list(found)
        except OSError as error:
            if onerror is not None:
                onerror(error)
            continue
        folders = [entry.name for entry in entries if _is_folder(entry)]
        inside = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        known = set(folders)
        yield parent, folders, [entry.name for entry in entries if entry.name not in known]
        waiting += [os.path.join(parent, name) for name in reversed(folders) if name in inside]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def fail(error: OSError) -> NoReturn:
    """Raise the error: an `onerror` of `walk` that passes no folder over."""
    raise error


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it that are missing."""
    missing = [folder]
    for above in folder.parents:
        if above.is_dir():
            break
        missing.append(above)
    for each in reversed(missing):
        each.mkdir(exist_ok=True)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder of a new name, and remove it at the end, however deep what is in it.

    Args:
        prefix: how its name begins.
        parent: the folder to make it in; by default the system's for temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        remove_tree(folder)


@asynccontextmanager
async def temporary_folder_async(prefix: str, parent: Path | None = None) -> AsyncIterator[Path]:
    """Make and remove a folder as `temporary_folder` does, off the event loop."""
    made = partial(tempfile.mkdtemp, prefix=prefix, dir=parent)
    folder = Path(await to_thread.run_sync(made))
    try:
        yield folder
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(remove_tree, folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, however deep; what cannot be removed stays."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        _flatten(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _flatten(folder: Path) -> None:
    """Move every folder that is in a folder, at whatever depth, directly into it."""
    waiting = _folders_in(folder)
    lifted = 0
    while waiting:
        for inner in _folders_in(waiting.pop()):
            target = folder / f"{_LIFTED}{lifted}"
            lifted += 1
            with suppress(OSError):  # It stays where it is.
                waiting.append(inner.rename(target))


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
