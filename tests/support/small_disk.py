"""A small disk of the test's own, which it may fill. Needs root, as the tests' own Docker Engine does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def mount_small_disk(folder: Path, mebibytes: int) -> None:
    """Mount such a file system for good: whoever does it unmounts it."""
    folder.mkdir(parents=True)
    options = f"size={mebibytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "launch-test", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a file system in memory of so many MiB on a new folder, for as long as the block lasts."""
    mount_small_disk(folder, mebibytes)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leaving: int = 0) -> Path:
    """Fill the disk of a folder, all but so many bytes; returns the file that does it."""
    filler = folder / "filler"
    about = os.statvfs(folder)
    room = about.f_bavail * about.f_frsize - leaving
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room))
    return filler
