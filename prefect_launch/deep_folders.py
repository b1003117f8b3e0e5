"""Deeply nested folders, gone through and removed: a job may nest them deeper than Python's stack.

Before Python 3.12 `os.walk`, and before 3.13 `shutil.rmtree`, fail with `RecursionError` at about a thousand levels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

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
