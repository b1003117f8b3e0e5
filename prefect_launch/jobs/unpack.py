"""Unpacking a code archive that a stranger may have made, into a folder that appears whole or not at all.

Refused with `ArtifactError`: absolute paths, `..`, links that leave the folder, hard links, anything below a link,
devices, a content that is not the one the job names, and an archive that grows beyond all measure. Owners and special
bits are dropped. The standard library's data filter is in force, too, where it is: it has been got round on older
Pythons, and the 3.11.2 of Debian 12 has none, so the checks here do not count on it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

from anyio import to_thread

from prefect_launch.core.filesystem import make_folders, temporary_folder
from prefect_launch.errors import ArtifactError, InfrastructureError

#: Code, not data: a job that needs more reads it from where it lies. Guards the agent's disk against a forged archive.
MAX_UNPACKED_BYTES: Final = 8 * 1024**3
_CHUNK_BYTES: Final = 1024**2


async def unpack(archive: bytes, destination: Path, *, content_digest: str, job: str) -> None:
    """Unpack an archive.

    Args:
        archive: a gzipped tar.
        destination: the folder to make; it must not exist yet, or be empty.
        content_digest: `sha256:<hex>` of the tar before compression.
        job: whose code it is, for messages.

    Raises:
        ArtifactError: when it is not the named content, or holds what must not be unpacked.
        InfrastructureError: when the disk is full or the destination is taken.
    """
    await to_thread.run_sync(_unpack, archive, destination, content_digest, job)


def check_members(members: Iterable[tarfile.TarInfo], *, job: str) -> None:
    """Refuse an archive by the names and kinds of what it holds.

    Raises:
        ArtifactError: naming the member and the rule.
    """
    links: set[str] = set()
    for member in members:
        fault = _fault(member, links)
        if fault:
            raise ArtifactError(
                f"The code archive of the job {job} holds {member.name[:200]!r}, which {fault}. It was not unpacked."
                " Create the job again from its source, and ask who wrote to the job store."
            )
        if member.issym():
            links.add(posixpath.normpath(member.name))


def _fault(member: tarfile.TarInfo, links: set[str]) -> str | None:
    if not (member.isreg() or member.isdir() or member.issym()):
        return "is neither a file, a folder nor a symbolic link"
    path = posixpath.normpath(member.name)
    if _leaves(member.name) or "\0" in member.name:
        return "would be written outside of the folder"
    parents = [path, *_parents(path)] if not member.issym() else _parents(path)
    if any(parent in links for parent in parents):
        return "would be written through a link"
    if member.issym() and (
        posixpath.isabs(member.linkname) or _leaves(posixpath.join(posixpath.dirname(path), member.linkname))
    ):
        return f"is a link to {member.linkname[:200]!r}, outside of the folder"
    return None


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without what only its maker's machine has: owners, and bits beyond those that git keeps."""
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def _leaves(path: str) -> bool:
    return posixpath.isabs(path) or posixpath.normpath(path).split("/")[0] == ".."


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _unpack(archive: bytes, destination: Path, content_digest: str, job: str) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(".unpack-", destination.parent) as scratch:
            folder = scratch / "code"
            with tempfile.TemporaryFile(dir=scratch) as content:
                _decompress(archive, content, content_digest, job)
                _extract(content, folder, job)
            folder.replace(destination)
    except OSError as error:
        raise InfrastructureError(
            f"The code of the job {job} could not be unpacked to {destination}: {error}."
            " Look at the free space of the disk, and whether that folder is in use."
        ) from error


def _decompress(archive: bytes, content: IO[bytes], content_digest: str, job: str) -> None:
    found, size = hashlib.sha256(), 0
    try:
        with gzip.open(io.BytesIO(archive)) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_UNPACKED_BYTES:
                    raise ArtifactError(
                        f"The code archive of the job {job} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes."
                        " Keep data out of the job's code: have the job read it from where it lies."
                    )
                found.update(chunk)
                content.write(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ArtifactError(
            f"The code archive of the job {job} is no gzip file: {error}. Create the job again."
        ) from None
    if f"sha256:{found.hexdigest()}" != content_digest:
        raise ArtifactError(
            f"The code archive of the job {job} has another content than the job names: expected"
            f" {content_digest}, found sha256:{found.hexdigest()}. Create the job again from its source,"
            " and ask who wrote to the job store."
        )
    content.seek(0)


def _extract(content: IO[bytes], folder: Path, job: str) -> None:
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            members = tar.getmembers()
            check_members(members, job=job)
            folder.mkdir()
            for parent in {posixpath.dirname(member.name) for member in members}:
                make_folders(folder / parent)  # the standard library's way does not go deep enough
            # PEP 706's recipe for Pythons with and without the filter.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            tar.extractall(folder, members=[_plain(member) for member in members])
    except tarfile.TarError as error:
        raise ArtifactError(
            f"The code archive of the job {job} cannot be unpacked: {error}. Create the job again."
        ) from error
