"""Build context: the files that go into a build. Its digest is a part of the image's tag; its archive is sent.

`.git`, caches, environments and what `.dockerignore` names are left out. Owners and times do not count: the same
content has the same digest on every machine. A context above the limit is refused, and the message names its largest
entries.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import anyio
from docker.utils.build import PatternMatcher

from prefect_launch.core.filesystem import walk
from prefect_launch.errors import InfrastructureError, SourceError
from prefect_launch.jobs.archive import NEVER_TAKEN

_IGNORE_FILE: Final = ".dockerignore"
_SHOWN_ENTRIES: Final = 10
_CHUNK_BYTES: Final = 1024**2


@dataclass(frozen=True)
class Entry:
    """A file, link or empty folder of a context.

    Attributes:
        name: its path in the context.
        mode: its permissions, of which only the executable bit counts.
        digest: hex SHA-256 of its content, or of a link's target.
        size: in bytes.
        source: the file with the content.
        content: the content of a generated file.
        target: a link's target.
        is_folder: whether it is an empty folder.
    """

    name: str
    mode: int = 0o644
    digest: str = ""
    size: int = 0
    source: Path | None = None
    content: bytes = b""
    target: str | None = None
    is_folder: bool = False


@dataclass(frozen=True)
class BuildContext:
    """The entries of a build, sorted by their names."""

    entries: tuple[Entry, ...] = ()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of names, modes and contents."""
        whole = hashlib.sha256()
        for entry in self.entries:
            kind = "d" if entry.is_folder else "f" if entry.target is None else "l"
            whole.update(f"{kind}\0{entry.name}\0{entry.mode:o}\0{entry.digest}\0".encode())
        return whole.hexdigest()

    def below(self, *prefixes: str) -> BuildContext:
        """Return the entries whose names begin with one of the prefixes."""
        return BuildContext(tuple(entry for entry in self.entries if entry.name.startswith(prefixes)))

    def plus(self, files: Mapping[str, bytes]) -> BuildContext:
        """Return the context with generated files added."""
        made = [Entry(name, digest=_sha(data), size=len(data), content=data) for name, data in files.items()]
        return merge(self, BuildContext(tuple(made)))

    def write(self, into: BinaryIO) -> None:
        """Write the context as a tar archive: the same bytes for the same content."""
        with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for entry in self.entries:
                _add(archive, entry)


def merge(*contexts: BuildContext) -> BuildContext:
    """Return several contexts as one; of entries with the same name the last one counts."""
    found = {entry.name: entry for context in contexts for entry in context.entries}
    return BuildContext(tuple(found[name] for name in sorted(found)))


def read_context(folder: Path, *, limit: int, prefix: str = "", keep: Iterable[str] = ()) -> BuildContext:
    """Return the context of a folder.

    Args:
        folder: the root of the context.
        limit: the most bytes of all files together.
        prefix: put before each name; it ends with a slash.
        keep: names that `.dockerignore` cannot leave out: the Dockerfile.

    Raises:
        SourceError: when it is above the limit, or a file cannot be read.
    """
    names = _names(folder, frozenset(keep))
    sizes = {name: (folder / name).lstat().st_size for name in names if not (folder / name).is_dir()}
    if sum(sizes.values()) > limit:
        raise SourceError(_too_large(sizes, limit))
    try:
        entries = [_entry(folder / name, f"{prefix}{name}") for name in names]
    except OSError as error:
        raise SourceError(f"The build context cannot be read: {error}.") from error
    return BuildContext(tuple(sorted((one for one in entries if one is not None), key=lambda one: one.name)))


def _names(folder: Path, keep: Collection[str]) -> list[str]:
    """Return the names of the files, links and empty folders that `.dockerignore` does not leave out.

    Docker's own Python library matches them. A folder that is left out with all its content is not read.
    """
    ignore_file = folder / _IGNORE_FILE
    lines = ignore_file.read_text(encoding="utf-8", errors="replace").splitlines() if ignore_file.is_file() else []
    patterns = [line for each in lines if (line := each.strip()) and not line.startswith("#")]
    matcher = PatternMatcher([*patterns, "!Dockerfile"])
    included = (*keep, *(one.cleaned_pattern for one in matcher.patterns if one.exclusion))

    def is_left_out_whole(name: str) -> bool:
        return matcher.matches(name) and not any(pattern.startswith(name) for pattern in included)

    found: list[str] = []
    for parent, folders, files in walk(folder):
        folders[:] = sorted(name for name in folders if name not in NEVER_TAKEN)
        here = Path(parent).relative_to(folder)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        empty = [] if folders or files or parent == str(folder) else ["."]
        names = [(here / name).as_posix() for name in [*files, *links, *empty] if name not in NEVER_TAKEN]
        found += [name for name in names if name in keep or not matcher.matches(name)]
        folders[:] = [name for name in folders if not is_left_out_whole((here / name).as_posix())]
    return found


def _entry(path: Path, name: str) -> Entry | None:
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        target = os.readlink(path)
        return Entry(name, mode=0o777, digest=_sha(target.encode()), target=target)
    if stat.S_ISDIR(about.st_mode):
        return Entry(name, mode=0o755, is_folder=True)
    if not stat.S_ISREG(about.st_mode):
        return None  # A pipe or a device has no content.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    mode = 0o755 if about.st_mode & 0o100 else 0o644
    return Entry(name, mode=mode, digest=digest.hexdigest(), size=about.st_size, source=path)


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    member = tarfile.TarInfo(entry.name)
    member.mode = entry.mode
    if entry.target is not None:
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
    elif entry.is_folder:
        member.type = tarfile.DIRTYPE
    else:
        member.size = entry.size
    with entry.source.open("rb") if entry.source else io.BytesIO(entry.content) as content:
        archive.addfile(member, content)


def _too_large(sizes: Mapping[str, int], limit: int) -> str:
    totals: Counter[str] = Counter()
    for name, size in sizes.items():
        top, slash, _ = name.partition("/")
        totals[f"{top}{slash}"] += size
    shown = ", ".join(f"{name} ({size:,} bytes)" for name, size in totals.most_common(_SHOWN_ENTRIES))
    return (
        f"The build context has {sum(sizes.values()):,} bytes; at most {limit:,} are allowed (the agent's"
        f" builder.context_limit). The largest entries: {shown}. Leave data out with .dockerignore or .launchignore."
    )


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@asynccontextmanager
async def packed(context: BuildContext) -> AsyncIterator[BinaryIO]:
    """Write a context as an archive into a temporary file, to be read from its start in the block.

    Raises:
        InfrastructureError: when it cannot be written.
    """
    with ExitStack() as closing:
        try:
            file = closing.enter_context(_scratch())
            await anyio.to_thread.run_sync(context.write, file)
            file.seek(0)
        except OSError as error:
            raise InfrastructureError(
                f"The build context cannot be written in {tempfile.gettempdir()!r}: {error}. Look at that disk, or set"
                " TMPDIR."
            ) from error
        yield file


@contextmanager
def _scratch() -> Iterator[BinaryIO]:
    """Open a temporary file. Closing it raises no error, though it may try again to write onto a full disk."""
    file = tempfile.TemporaryFile(prefix="launch-context-")  # noqa: SIM115 - closed below, whatever that raises
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()
