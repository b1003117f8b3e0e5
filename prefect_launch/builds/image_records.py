"""Image records of a home: which process builds an image now, and when each built image was last used.

One process of a machine builds an image at a time among those that share a home. The others wait, show the build's log,
and end as it does. The lease is a file lock, so it ends with its process, however that ends. Two machines may build the
same image at once. That costs time and nothing else, because an image gets its tag when it is complete.

An engine does not record when an image was used. So each image has a file `<home>/images/<tag>` with its names; the
file's time is the time of the last use. An image without a file belongs to somebody else, and is never removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final
from uuid import UUID

import anyio
from prefect.logging import get_logger

from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.errors import BuildError
from prefect_launch.inputs.atomic import write_atomically

if TYPE_CHECKING:
    from prefect_launch.builds.builder import LineSink

#: The folder of leases in a home.
LEASES: Final = "builds"
#: How often a process that waits tries the lock and reads the log.
_POLL_SECONDS: Final = 0.5


class BuildLease:
    """The lease of the build of one image."""

    def __init__(self, home: Path, key: str) -> None:
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._lock = home / LEASES / f"{name}.lock"
        self._record = home / LEASES / f"{name}.jsonl"

    async def build_once(
        self,
        holder: str,
        item: UUID,
        log: LineSink,
        *,
        is_built: Callable[[], Awaitable[bool]],
        build: Callable[[LineSink], Awaitable[None]],
    ) -> None:
        """Return when the image exists: built by this call, or by another process.

        Raises:
            BuildError: when the build failed, here or in the process that this call has waited for.
        """
        with closing(_WatchedBuild(self._record, log)) as watched:
            while True:
                with locked_if_free(self._lock) as is_held:
                    if is_held:
                        try:
                            await anyio.to_thread.run_sync(watched.read)
                            if watched.error is not None:
                                raise BuildError(watched.error)
                            if not await is_built():
                                await self._build(holder, item, log, build)
                        finally:
                            self._lock.unlink(missing_ok=True)
                        return
                await anyio.to_thread.run_sync(watched.follow)
                await anyio.sleep(_POLL_SECONDS)

    async def _build(
        self, holder: str, item: UUID, log: LineSink, build: Callable[[LineSink], Awaitable[None]]
    ) -> None:
        self._record.unlink(missing_ok=True)  # A killed process has left it. Who reads it now must see its end.
        descriptor = os.open(self._record, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

        def record(kind: str, text: str) -> None:
            with suppress(OSError):  # Only those who wait lose it.
                os.write(descriptor, json.dumps([kind, text]).encode() + b"\n")

        def log_and_record(text: str) -> None:
            log(text)
            record("log", text)

        try:
            record("log", f"{holder} builds this image already, for the item {item}; its log follows.\n")
            await build(log_and_record)
        except BuildError as error:
            record("error", str(error))
            raise
        finally:
            self._record.unlink(missing_ok=True)
            os.close(descriptor)


class _WatchedBuild:
    """The record of a build in another process, read while it grows. All of it blocks."""

    def __init__(self, path: Path, log: LineSink) -> None:
        self._path = path
        self._log = log
        self._file: BinaryIO | None = None
        self._rest = b""
        self.error: str | None = None

    def follow(self) -> None:
        """Log what the build has logged since the last call; of the newest build, if another one has begun."""
        self.read()
        with suppress(FileNotFoundError):
            newest = self._path.stat()
            if self._file is None or not os.path.samestat(os.fstat(self._file.fileno()), newest):
                self.close()
                self._file = self._path.open("rb")
                self._rest, self.error = b"", None
                self.read()

    def close(self) -> None:
        """Close the record."""
        if self._file is not None:
            self._file.close()

    def read(self) -> None:
        """Read on in a record that is open; it can be read when its file has no name any more."""
        if self._file is None:
            return
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for kind, text in map(json.loads, lines):
            if kind == "error":
                self.error = text
            else:
                self._log(text)


# Image usage record: which built images this home has used, and when last. An engine does not record that.

#: The folder of records in a home.
RECORDS: Final = "images"

_logger = get_logger("launch.build")


class ImageUsage:
    """The records of one home; all methods block."""

    def __init__(self, home: Path) -> None:
        self.folder = home / RECORDS

    def record(self, tag: str, names: Iterable[str]) -> None:
        """Record that an image is used now. A record that cannot be written does not fail the job."""
        path = self.folder / tag
        try:
            known = self.names_of(path)
            wanted = {*known, *names}
            if wanted == known:
                os.utime(path)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(f"{name}\n" for name in sorted(wanted)))
        except OSError as error:
            _logger.warning("Not noted that the image %s was used: %s. It is not removed when it is old.", tag, error)

    def records(self) -> list[Path]:
        """List the files of records."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.name.isalnum())

    def names_of(self, note: Path) -> set[str]:
        """Return the names in a record; none when the file does not exist."""
        with suppress(FileNotFoundError):
            return set(note.read_text().split())
        return set()
