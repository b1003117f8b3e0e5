"""The files of a job's code, as what reads its requirements sees them: a folder, or what of one belongs to the job."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path

from prefect_launch.core.deep_folders import walk
from prefect_launch.errors import SourceError
from prefect_launch.jobs.ignore import NEVER_TAKEN


class CodeTree:
    """A job's code.

    Args:
        root: its folder.
        paths: the files that belong to it, as relative POSIX paths; by default all that are there.
        is_whole: whether all files of `paths` are there; else those that are not read as if they were empty.
    """

    def __init__(self, root: Path, paths: Collection[str] | None = None, *, is_whole: bool = True) -> None:
        self.root = root.resolve()
        self.is_whole = is_whole
        self._paths = None if paths is None else set(paths)

    def has_file(self, path: str) -> bool:
        """Whether a file belongs to the code."""
        listed = self._paths is None or path in self._paths
        return listed and ((self.root / path).is_file() or not self.is_whole)

    def has_folder(self, path: str) -> bool:
        """Whether a folder does."""
        if path == ".":
            return True
        listed = self._paths is None or any(one.startswith(f"{path}/") for one in self._paths)
        return listed and ((self.root / path).is_dir() or not self.is_whole)

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None when it is not in the code.

        Raises:
            SourceError: when it cannot be read.
        """
        if not self.has_file(path):
            return None
        self.inside(path, "The job's code")
        if not self.is_whole and not (self.root / path).is_file():
            return b""
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise SourceError(f"The file {path!r} of the job's code cannot be read: {error}.") from error

    def inside(self, path: str, said: str) -> str:
        """Return a path that the code's own files name, normalised.

        Args:
            path: relative to the code's root.
            said: who names it, for the message, such as `requirements.txt:3`.

        Raises:
            SourceError: when it leads out of the code, by its text or through a link.
        """
        normal = posixpath.normpath(path)
        real = (self.root / normal).resolve()
        if normal.startswith(("/", "..")) or not (real == self.root or self.root in real.parents):
            raise SourceError(
                f"{said} names {path!r}, which lies outside of the job's code (or of its build context, when it has"
                " one). A requirement must be in it: put a copy there."
            )
        return normal

    def digest(self, path: str) -> str:
        """Return the SHA-256, in hex, of a file or of all that is in a folder, less repositories and caches."""
        whole = hashlib.sha256()
        for name in self.files(path):
            file = self.root / name
            link = os.readlink(file) if file.is_symlink() else None
            content = link.encode() if link is not None else file.read_bytes()
            mark = "l" if link is not None else "x" if file.stat().st_mode & 0o100 else "f"
            whole.update(f"{mark}\0{posixpath.relpath(name, path)}\0".encode())
            whole.update(hashlib.sha256(content).digest())
        return whole.hexdigest()

    def files(self, path: str) -> Iterator[str]:
        """List a file, or the files and links in a folder, by their paths from the root, sorted."""
        if not (self.root / path).is_dir():
            yield from [path] if self.has_file(path) else []
            return
        for parent, folders, names in walk(self.root / path):
            folders[:] = sorted(name for name in folders if name not in NEVER_TAKEN)
            links = [name for name in folders if Path(parent, name).is_symlink()]
            for name in sorted([*names, *links]):
                file = Path(parent, name)
                if file.is_symlink() or file.is_file():
                    yield file.relative_to(self.root).as_posix()
