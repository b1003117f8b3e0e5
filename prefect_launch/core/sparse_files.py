"""Sparse files, copied with their holes: what takes no room at its source takes none at its target.

`shutil` and the kernel's `sendfile` write a hole out as zeros.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect_launch.core.deep_folders import fail, make_folders, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

_BUFFER_BYTES: Final = 1024 * 1024
#: What is looked at as a whole when zeros become a hole.
_BLOCK_BYTES: Final = 64 * 1024
_ZEROS: Final = bytes(_BLOCK_BYTES)
_CAN_SEEK: Final = hasattr(os, "SEEK_DATA")


class CopyStoppedError(Exception):
    """A copy was told to stop before its end."""


def held_bytes(status: os.stat_result) -> int:
    """Return how many bytes of its disk a file takes: at most its size, less where it has holes."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def data_bytes(descriptor: int, start: int, end: int) -> int:
    """Return how many bytes of a part of an open file are no hole."""
    return sum(stop - begin for begin, stop in _data(descriptor, start, end))


def copy_file(source: Path, target: Path, *, stop: threading.Event | None = None) -> None:
    """Copy a regular file with its holes, mode and times; links are not followed.

    Args:
        source: the file.
        target: the file to make, or to write anew.
        stop: when it is set, the copy ends early.

    Raises:
        CopyStoppedError: when it was told to stop; what it has written is left.
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

    Args:
        source: the folder.
        target: the folder to copy into; made when there is a file to copy.
        stop: when it is set, the copy ends early.

    Returns:
        How many files were copied.

    Raises:
        CopyStoppedError: when it was told to stop.
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
