"""Code archives: which files of a folder are code, packing them, and unpacking one that a stranger may have made.

`.gitignore` and `.launchignore` are read as git reads them, nested ones too. The same files give the same bytes, on any
machine and at any time: names sorted, no times, no owners, modes as git keeps them. A symbolic link inside the folder
is kept; one that leaves it is refused.

Refused on unpacking with `ArtifactError`: absolute paths, `..`, links that leave the folder, hard links, anything below
a link, devices, a content that is not the one the job names, and an archive that grows beyond all measure. The standard
library's data filter is used where there is one (Debian 12's Python 3.11.2 has none), and not relied on.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import posixpath
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Final

from anyio import to_thread
from pathspec import GitIgnoreSpec

from prefect_launch.core.filesystem import fail, make_folders, temporary_folder, walk
from prefect_launch.errors import ArtifactError, InfrastructureError, SourceError

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
    """Pack the code of a folder, less what its ignore files leave out, and `extra` files by their paths.

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


# --- which files are code ---

LAUNCH_IGNORE: Final = ".launchignore"
IGNORE_FILES: Final = (".gitignore", LAUNCH_IGNORE)
#: Repository, run data, caches and environments: never code, often huge, sometimes secret.
NEVER_TAKEN: Final = frozenset({".git", "wandb", "__pycache__", ".venv"})


def list_code(folder: Path) -> list[str]:
    """List what of a folder belongs to its code: files and links, as sorted relative POSIX paths.

    Raises:
        SourceError: when an ignore file cannot be read.
    """
    return sorted(taken(folder))


_Rules = tuple[tuple[str, GitIgnoreSpec], ...]


def taken(
    top: Path,
    *,
    ignore_files: Sequence[str] = IGNORE_FILES,
    never: Collection[str] = NEVER_TAKEN,
    onerror: Callable[[OSError], None] | None = fail,
) -> Iterator[str]:
    """Yield the files and links of a folder that its ignore files do not leave out, as relative POSIX paths.

    Args:
        top: the folder.
        ignore_files: names of the files that say what is left out, in it and in the folders in it.
        never: names that are left out at any depth.
        onerror: gets the error of a folder that cannot be read; None: such a folder is passed over.

    Raises:
        SourceError: when an ignore file cannot be read.
    """
    above: dict[str, _Rules] = {}
    for parent, folders, names in walk(top, onerror=onerror):
        prefix = "" if parent == os.fspath(top) else f"{Path(parent).relative_to(top).as_posix()}/"
        rules = (*above.pop(prefix, ()), *((prefix, spec) for spec in _read_rules(Path(parent), ignore_files)))
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [
            name for name in folders if name not in (*links, *never) and not _is_ignored(f"{prefix}{name}/", rules)
        ]
        above.update((f"{prefix}{name}/", rules) for name in folders)
        for name in (*names, *links):
            if name not in never and not _is_ignored(f"{prefix}{name}", rules):
                yield f"{prefix}{name}"


def taken_in(
    top: Path, *, ignore_files: Sequence[str] = IGNORE_FILES, never: Collection[str] = NEVER_TAKEN
) -> Callable[[str], bool]:
    """Return a test whether `taken` would yield a path of a folder, which need not be there.

    The test raises `SourceError` when an ignore file cannot be read.
    """

    @cache
    def rules_of(prefix: str) -> _Rules:
        return tuple((prefix, spec) for spec in _read_rules(top / prefix, ignore_files))

    def is_taken(path: str) -> bool:
        parts, prefix = path.split("/"), ""
        rules: _Rules = ()
        for part in parts[:-1]:
            rules, prefix = (*rules, *rules_of(prefix)), f"{prefix}{part}/"
            if part in never or _is_ignored(prefix, rules):
                return False
        return parts[-1] not in never and not _is_ignored(path, (*rules, *rules_of(prefix)))

    return is_taken


def _read_rules(folder: Path, ignore_files: Sequence[str]) -> Iterator[GitIgnoreSpec]:
    for name in ignore_files:
        path = folder / name
        if path.is_file():
            try:
                yield GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig").splitlines())
            except (UnicodeDecodeError, ValueError) as error:
                raise SourceError(
                    f"The ignore file {path} cannot be read: {error}. Write patterns as UTF-8 text."
                ) from error


def _is_ignored(path: str, rules: _Rules) -> bool:
    """Ask the rules from the deepest up; the first that says anything decides."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path.removeprefix(prefix)).include
        if verdict is not None:
            return verdict
    return False


# --- unpacking ---

#: Code, not data: a job that needs more reads it from where it lies. Guards the agent's disk against a forged archive.
MAX_UNPACKED_BYTES: Final = 8 * 1024**3


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
