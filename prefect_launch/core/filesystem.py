"""Files and folders where the standard library falls short: deep trees, sparse files, full disks.

A job may nest folders deeper than Python's stack: before Python 3.12 `os.walk`, and before 3.13 `shutil.rmtree`, fail
with `RecursionError` at about a thousand levels; `Path.mkdir(parents=True)`, `os.makedirs` and `tarfile` do so on any.
`shutil` and the kernel's `sendfile` write the holes of a sparse file out as zeros; the copies here keep them.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from anyio import CancelScope, to_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer


_LIFTED: Final = ".lifted-"


def walk(
    folder: Path, *, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder in a folder as `os.walk` does: its path, its folders and its other names, itself first.

    A folder that cannot be read is skipped, and its error handed to `onerror`.
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
    """Raise the error: an `onerror` of `walk` that skips no folder."""
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
    """Make a folder of a new name, and remove it at the end, however deep what is in it."""
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


# --- sparse files ---

_BUFFER_BYTES: Final = 1024 * 1024
#: What is looked at as a whole when zeros become a hole.
_BLOCK_BYTES: Final = 64 * 1024
_ZEROS: Final = bytes(_BLOCK_BYTES)
_CAN_SEEK: Final = hasattr(os, "SEEK_DATA")


class CopyStoppedError(Exception):
    """A copy was stopped before its end."""


def allocated_bytes(status: os.stat_result) -> int:
    """Return how many bytes of its disk a file takes: at most its size, less where it has holes."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def data_bytes(descriptor: int, start: int, end: int) -> int:
    """Return how many bytes of a part of an open file are no hole."""
    return sum(stop - begin for begin, stop in _data(descriptor, start, end))


def copy_file(source: Path, target: Path, *, stop: threading.Event | None = None) -> None:
    """Copy a regular file with its holes, mode and times, until `stop` is set; links are not followed.

    Raises:
        CopyStoppedError: when it was stopped; what it has written is left.
        OSError: when the file cannot be read or written.
    """
    taken = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(taken).st_size
            for start, end in _data(taken, 0, size):
                _copy_part(taken, made, start, end, stop)
            os.ftruncate(made, size)
        finally:
            os.close(made)
    finally:
        os.close(taken)
    shutil.copystat(source, target, follow_symlinks=False)


def copy_tree(source: Path, target: Path, *, stop: threading.Event | None = None) -> int:
    """Copy the regular files of a folder, and of the folders in it; links, pipes and devices are not.

    Returns:
        How many files were copied.

    Raises:
        CopyStoppedError: when it was stopped.
        OSError: when a file or folder cannot be read or written; there may be no such folder.
    """
    copied = 0
    for parent, _, names in walk(source, onerror=fail):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                place = target / path.relative_to(source)
                make_folders(place.parent)
                copy_file(path, place, stop=stop)
                copied += 1
    return copied


def _copy_part(taken: int, made: int, start: int, end: int, stop: threading.Event | None) -> None:
    while start < end:
        if stop is not None and stop.is_set():
            raise CopyStoppedError
        piece = os.pread(taken, min(_BUFFER_BYTES, end - start), start)
        if not piece:
            return
        left = memoryview(piece)
        while left:
            written = os.pwrite(made, left, start)
            left, start = left[written:], start + written


def _data(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of an open file that are no holes."""
    while start < end:
        if not _CAN_SEEK:
            yield start, end
            return
        try:
            begin = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise
            yield start, end  # a file system that does not tell
            return
        if begin >= end:
            return
        stop = min(end, os.lseek(descriptor, begin, os.SEEK_HOLE))
        yield begin, stop
        start = stop


class HolesWriter(io.FileIO):
    """A file that is written from its beginning to its end, and in which long runs of zeros become holes."""

    def write(self, piece: ReadableBuffer, /) -> int:
        """Write bytes, or pass over them when they are zeros."""
        left = memoryview(piece).cast("B")
        while left:
            # Up to the next whole block of the file: holes are made of those.
            part = left[: _BLOCK_BYTES - self.tell() % _BLOCK_BYTES]
            if len(part) == _BLOCK_BYTES and bytes(part) == _ZEROS:
                self.seek(len(part), os.SEEK_CUR)
            else:
                rest = part
                while rest:
                    rest = rest[super().write(rest) :]
            left = left[len(part) :]
        return len(memoryview(piece).cast("B"))

    def finish(self) -> int:
        """Give the file its whole size, holes at its end included, and return it."""
        size = self.tell()
        self.truncate(size)
        return size


# --- full disks ---

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SAID: Final = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
#: A disk with less left keeps no small file for certain.
_LEAST_BYTES: Final = 64 * 1024

FREE_DISK_ADVICE: Final = (
    "Free space on the agent's machine ('prefect-launch agent clean' removes what its agents need not keep), then put"
    " the item back."
)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a disk is full."""
    return is_own_disk_full(error) or any(_SAID.search(str(one)) for one in _chain(error))


def is_own_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is this process's own attempt to write to a full disk."""
    return any(isinstance(one, OSError) and one.errno in _FULL for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def says_disk_full(text: str | None) -> bool:
    """Whether a text reports a full disk."""
    return bool(text and _SAID.search(text))


def has_room(folder: Path) -> bool:
    """Whether the disk of a folder has room for a small file."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize >= _LEAST_BYTES
