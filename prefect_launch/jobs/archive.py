"""Packing a folder of code: the same files give the same bytes, on any machine and at any time.

Names sorted, no times, no owners, modes as git keeps them (executable or not), no empty folders. A symbolic link inside
the folder is kept as a link; one that leaves it is refused, since it would point to nowhere when the job runs, or bring
a file into the job that nobody meant.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from anyio import to_thread

from prefect_launch.errors import SourceError
from prefect_launch.jobs.ignore import list_code

#: An archive is held in memory while it is stored and fetched. Code is far below this; a forgotten data set is not.
MAX_ARCHIVE_BYTES: Final = 512 * 1024**2
_CHUNK_BYTES: Final = 1024**2
_LEVEL: Final = 6


@dataclass(frozen=True)
class CodeArchive:
    """A packed folder."""

    content: bytes = field(repr=False)
    content_digest: str  # sha256:<hex> of the tar before compression
    paths: tuple[str, ...]


async def pack(folder: Path, extra: Mapping[str, bytes] | None = None) -> CodeArchive:
    """Pack the code of a folder, less what its ignore files leave out.

    Args:
        folder: the root of the code.
        extra: files that are packed too, or in the place of the folder's own, by their path.

    Raises:
        SourceError: when a link leaves the folder, something in it is no file, folder or link, it cannot be read, is
            empty, or too large.
    """
    return await to_thread.run_sync(_pack, folder, extra or {})


def _pack(folder: Path, extra: Mapping[str, bytes]) -> CodeArchive:
    try:
        paths = list_code(folder)
        if not paths:
            raise SourceError(f"The code folder {folder} holds no files that belong to a job. Check its ignore files.")
        paths = sorted({*paths, *extra})
        with tempfile.TemporaryFile() as tar:
            _write_tar(folder, paths, tar, extra)
            return CodeArchive(*_compress(folder, paths, tar), paths=tuple(paths))
    except OSError as error:
        raise SourceError(
            f"The code folder {folder} cannot be read: {error}. Correct it, or name it in .launchignore."
        ) from error


def _write_tar(folder: Path, paths: Sequence[str], target: IO[bytes], extra: Mapping[str, bytes]) -> None:
    root = folder.resolve()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            if path in extra:
                member = tarfile.TarInfo(path)
                member.size = len(extra[path])
                tar.addfile(member, io.BytesIO(extra[path]))
                continue
            member = _member(root, path)
            if member.issym():
                tar.addfile(member)
                continue
            with (root / path).open("rb") as file:
                tar.addfile(member, file)


def _member(root: Path, path: str) -> tarfile.TarInfo:
    found = (root / path).lstat()
    member = tarfile.TarInfo(path)
    if stat.S_ISLNK(found.st_mode):
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, _inner_target(root, path), 0o777
    elif stat.S_ISREG(found.st_mode):
        member.size, member.mode = found.st_size, 0o755 if found.st_mode & stat.S_IXUSR else 0o644
    else:
        raise SourceError(
            f"{path!r} in the code folder {root} is no file, folder or link (a socket or a pipe, perhaps)."
            " Remove it, or name it in .launchignore."
        )
    return member


def _inner_target(root: Path, path: str) -> str:
    """Return where a link points to, when that is inside, by its text and on the disk."""
    target = os.readlink(root / path)
    by_text = os.path.normpath(os.path.join(os.path.dirname(path), target))
    on_disk = os.path.realpath(root / path)
    if os.path.isabs(target) or by_text.split(os.sep)[0] == ".." or not Path(on_disk).is_relative_to(root):
        raise SourceError(
            f"The link {path!r} in the code folder {root} leaves it: it points to {target!r}."
            " Put a copy in its place, make it relative when its target is inside, or name it in .launchignore."
        )
    return target


def _compress(folder: Path, paths: Sequence[str], tar: IO[bytes]) -> tuple[bytes, str]:
    # Not `gzip`: its header holds a time and the operating system.
    tar.seek(0)
    found, squeeze, packed = (
        hashlib.sha256(),
        zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS),
        io.BytesIO(),
    )
    while chunk := tar.read(_CHUNK_BYTES):
        found.update(chunk)
        packed.write(squeeze.compress(chunk))
        if packed.tell() > MAX_ARCHIVE_BYTES:
            raise _too_large(folder, paths)
    packed.write(squeeze.flush())
    return packed.getvalue(), f"sha256:{found.hexdigest()}"


def _too_large(folder: Path, paths: Sequence[str]) -> SourceError:
    sizes = sorted(((folder / path).lstat().st_size, path) for path in paths if os.path.lexists(folder / path))[-3:]
    largest = ", ".join(f"{path} ({size:,} bytes)" for size, path in reversed(sizes))
    return SourceError(
        f"The code folder {folder} packs to more than {MAX_ARCHIVE_BYTES:,} bytes. The largest files: {largest}."
        " Name what is no code in .launchignore, and have the job read its data from where it lies."
    )
