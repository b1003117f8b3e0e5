"""Job store: files and content-addressed blobs in a Prefect storage block or a local folder, and its own block.

`JobStore` is configuration: it can be saved, seen and edited in the UI. `StoredFiles` reads and writes files by
relative path, never on the event loop; a file on a local disk appears whole or not at all, even when the writer dies,
and object stores promise the same. `Blobs` are compared with their digests: a torn or changed one is never used.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast

from anyio import to_thread
from prefect.blocks.core import Block
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import get_current_settings
from pydantic import Field, PrivateAttr

from prefect_launch.core.filesystem import copy_file, copy_tree, make_folders, remove_tree, temporary_folder_async, walk
from prefect_launch.errors import AgentConfigError, ArtifactError, InfrastructureError, NotFoundError, clause
from prefect_launch.jobs.model import CodeListing, Job, StoredFile, digest_of

#: Enough for every job that a busy queue sees in a day; a job is a few kilobytes.
_CACHED_JOBS: Final = 512
#: A listing is a few kilobytes too, but at most a megabyte.
_CACHED_LISTINGS: Final = 16

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Newest(OrderedDict[_K, _V]):
    """A mapping that keeps the values that were used last."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def used(self, key: _K) -> _V | None:
        """Return a value, which is kept longer than all others now."""
        if key in self:
            self.move_to_end(key)
        return self.get(key)

    def add(self, key: _K, value: _V) -> None:
        """Keep a value, in the place of the one that was not used for the longest."""
        self[key] = value
        self.move_to_end(key)
        while len(self) > self._size:
            self.popitem(last=False)


class JobCache:
    """The jobs read last, by path and version, and the listings of their code, by digest."""

    def __init__(self, size: int = _CACHED_JOBS) -> None:
        self._jobs: _Newest[tuple[str, int], Job] = _Newest(size)
        self._listings: _Newest[str, CodeListing] = _Newest(_CACHED_LISTINGS)

    def get(self, path: str, version: int, *, digest: str | None = None) -> Job | None:
        """Return the job, unless it is not here, or the one that is has another digest."""
        job = self._jobs.used((path, version))
        return None if job is None or (digest is not None and job.digest != digest) else job

    def add(self, job: Job) -> None:
        """Keep a job, in the place of the one that was not asked for the longest."""
        self._jobs.add((job.path, job.version), job)

    def remove(self, path: str, version: int) -> None:
        """Forget a job."""
        self._jobs.pop((path, version), None)

    def get_listing(self, digest: str) -> CodeListing | None:
        """Return the listing whose file has a digest, unless it is not here."""
        return self._listings.used(digest)

    def add_listing(self, digest: str, listing: CodeListing) -> None:
        """Keep a listing, likewise."""
        self._listings.add(digest, listing)


class JobStore(Block):
    """Where jobs and the outputs of runs are kept.

    Example:
        ```python
        from prefect.filesystems import RemoteFileSystem
        from prefect_launch.jobs import JobStore

        JobStore(storage=RemoteFileSystem(basepath="s3://my-bucket/launch")).save("default")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Launch Job Store"
    _block_type_slug: ClassVar[str | None] = "launch-job-store"
    _description: ClassVar[str | None] = "Where prefect-launch keeps jobs, and what runs leave as outputs."

    # An interface class such as WritableFileSystem cannot be the type of a block's field: registration fails.
    storage: LocalFileSystem | RemoteFileSystem | str | None = Field(
        default=None,
        description=(
            "A storage block; or the name of a saved one of any type, such as 's3-bucket/my-bucket'."
            " Left out: the folder launch/jobs in the Prefect home of the machine."
        ),
    )
    prefix: str = Field(default="", description="The folder in that storage.")

    _cache: JobCache = PrivateAttr(default_factory=JobCache)
    _files: StoredFiles | None = PrivateAttr(None)

    @property
    def cache(self) -> JobCache:
        """The jobs that were read through this store."""
        return self._cache

    async def files(self) -> StoredFiles:
        """Open the storage.

        Raises:
            NotFoundError: when the storage block that is named does not exist.
            AgentConfigError: when its name is not of the form `type/name`, or its type cannot keep files.
        """
        if self._files is None:
            self._files = StoredFiles(await self._storage_block(), self.prefix)
        return self._files

    async def _storage_block(self) -> StorageBlock:
        if self.storage is None:
            return LocalFileSystem(basepath=str(get_current_settings().home / "launch" / "jobs"))
        if isinstance(self.storage, str):
            return await _load_block(self.storage)
        return self.storage


async def _load_block(name: str) -> StorageBlock:
    if name.count("/") != 1:
        raise AgentConfigError(
            f"The job store's storage {name!r} is no name of a block:"
            " write block-type/block-name, such as 's3-bucket/jobs'."
        )
    try:
        block: Any = await Block.aload(name)
    except ValueError as error:
        raise NotFoundError(
            f"The job store's storage block {name!r} cannot be loaded: {clause(error)}."
            " 'prefect block ls' lists the blocks that there are; the"
            " library of its type (such as prefect-aws) must be installed here."
        ) from error
    if not callable(getattr(block, "read_path", None)) or not callable(getattr(block, "put_directory", None)):
        raise AgentConfigError(f"The block {name!r} ({type(block).__name__}) cannot keep files. Name a storage block.")
    return cast(StorageBlock, block)


# --- files ---

_T = TypeVar("_T")


class StorageBlock(Protocol):
    """What a Prefect storage block can do; each of these may be a coroutine function, too."""

    def read_path(self, path: str) -> Any: ...
    def write_path(self, path: str, content: bytes) -> Any: ...
    def get_directory(self, from_path: str | None = None, local_path: str | None = None) -> Any: ...
    def put_directory(self, local_path: str | None = None, to_path: str | None = None) -> Any: ...


class StoredFiles:
    """The files under one prefix of one storage block."""

    def __init__(self, storage: StorageBlock, prefix: str = "") -> None:
        self._storage = storage
        self._prefix = prefix.strip("/")

    def __str__(self) -> str:
        base = getattr(self._storage, "basepath", None) or type(self._storage).__name__
        return f"{str(base).rstrip('/')}/{self._prefix}".rstrip("/")

    async def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or `None` when it is not there.

        Raises:
            InfrastructureError: when the storage fails.
        """
        content = await self._call("read", path, self._storage.read_path, self._at(path))
        return content if content is None else bytes(content)

    async def write(self, path: str, content: bytes) -> None:
        """Store a file, in place of an existing one.

        Raises:
            InfrastructureError: when the storage fails.
        """
        if isinstance(self._storage, LocalFileSystem):
            # The block writes in place: a reader, or the next start after a crash, would see half a file.
            await self._call("write", path, _write_whole, self._storage.basepath or ".", self._at(path), content)
        else:
            await self._call("write", path, self._storage.write_path, self._at(path), content)

    @property
    def keeps_holes(self) -> bool:
        """Whether a hole in a sparse file takes no room in it."""
        return isinstance(self._storage, LocalFileSystem)

    async def put_folder(self, folder: Path, path: str) -> None:
        """Store all files of a local folder under a path. They are streamed, not held in memory.

        On a local disk they replace the old folder all at once, and sparse files keep their holes.

        Raises:
            InfrastructureError: when the storage fails.
        """
        if isinstance(self._storage, LocalFileSystem):
            await self._copy("write", path, folder, _place(self._storage, self._at(path)))
        else:
            await self._call(
                "write", path, partial(self._storage.put_directory, local_path=str(folder), to_path=self._at(path))
            )

    async def get_folder(self, path: str, folder: Path) -> bool:
        """Copy all files under a path to a local folder; `False` when there are none.

        Raises:
            InfrastructureError: when the storage fails.
        """
        before = await to_thread.run_sync(_count, folder)
        if isinstance(self._storage, RemoteFileSystem):
            # fsspec remembers listings for the life of the process; another process may have written since.
            await to_thread.run_sync(self._storage.filesystem.invalidate_cache)
        if isinstance(self._storage, LocalFileSystem):
            await self._copy("read", path, _place(self._storage, self._at(path)), folder)
        else:
            await self._call(
                "read", path, partial(self._storage.get_directory, from_path=self._at(path), local_path=str(folder))
            )
        return await to_thread.run_sync(_count, folder) > before

    async def get_files(self, path: str, names: Sequence[str], folder: Path) -> None:
        """Copy some files under a path to a local folder; those that are not there are passed over.

        They are streamed, not held in memory. A block that gives only whole folders fetches all files under the path.

        Raises:
            InfrastructureError: when the storage fails.
        """
        if isinstance(self._storage, RemoteFileSystem):
            base = f"{self._storage.basepath.rstrip('/')}/{self._at(path)}"
            sources, targets = [f"{base}/{name}" for name in names], [str(folder / name) for name in names]
            for parent in {(folder / name).parent for name in names}:
                await to_thread.run_sync(make_folders, parent)
            await self._call("read", path, partial(self._storage.filesystem.get, sources, targets))
        elif isinstance(self._storage, LocalFileSystem):
            await self._copy("read", path, _place(self._storage, self._at(path)), folder, names)
        else:
            async with temporary_folder_async(".fetched-", folder) as made:
                await self.get_folder(path, made / "all")
                await to_thread.run_sync(_move, names, made / "all", folder)

    def _at(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    @property
    def _next_step(self) -> str:
        if isinstance(self._storage, LocalFileSystem):
            return "Look at that folder's permissions, and at the free space of its disk."
        return "Look at the storage block's address and credentials, and whether its service runs."

    async def _copy(self, verb: str, path: str, source: Path, target: Path, names: Sequence[str] | None = None) -> None:
        """Copy a folder of a local disk; a caller that is cancelled ends the copy, which another thread makes."""
        stop = threading.Event()
        copy: Callable[..., object] = _put_whole if verb == "write" else copy_tree
        if names is not None:
            copy = partial(_copy_some, names)
        try:
            await self._call(verb, path, partial(copy, source, target, stop=stop))
        finally:
            stop.set()

    async def _call(self, verb: str, path: str, method: Callable[..., _T], *args: Any) -> _T | None:
        try:
            return await to_thread.run_sync(partial(_run, method, *args))
        except Exception as error:
            # A block is anybody's code, and raises what it likes.
            if verb == "read" and _says_missing(error):
                return None
            raise InfrastructureError(
                f"The job store at {self} could not {verb} {path!r}: {type(error).__name__}: {clause(error)}."
                f" {self._next_step}"
            ) from error


def _run(method: Callable[..., _T], *args: Any) -> _T:
    """Call a block's method in a worker thread, where some give a value and others a coroutine."""
    result: Any = method(*args)
    if inspect.isawaitable(result):
        result = asyncio.run(_awaited(result))
    return cast(_T, result)


async def _awaited(result: Any) -> Any:
    return await result


def _says_missing(error: Exception) -> bool:
    # LocalFileSystem says it with a ValueError, fsspec with FileNotFoundError, boto3 with a code in its answer.
    # A folder of that name is no file: an object store, which has no folders, says so of itself.
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return True
    if isinstance(error, ValueError):
        return "does not exist" in str(error) or "is not a file" in str(error)
    answer = getattr(error, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return code in ("404", "NoSuchKey") or type(error).__name__ in ("NotFound", "ResourceNotFoundError", "BlobNotFound")


def _place(storage: LocalFileSystem, path: str) -> Path:
    return Path(storage.basepath or ".").expanduser().absolute() / path


def _put_whole(source: Path, target: Path, *, stop: threading.Event) -> int:
    """Put a copy of a folder in the place of another, which stays until the copy is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.part"):
        remove_tree(left)  # of a writer that died
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        copied = copy_tree(source, draft, stop=stop)
        if target.exists():
            remove_tree(target)
        draft.replace(target)
        return copied
    finally:
        remove_tree(draft)


def _copy_some(names: Sequence[str], source: Path, target: Path, *, stop: threading.Event) -> None:
    for name in names:
        make_folders((target / name).parent)
        with suppress(FileNotFoundError):
            copy_file(source / name, target / name, stop=stop)


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        make_folders((target / name).parent)
        with suppress(FileNotFoundError):
            (source / name).replace(target / name)


def _write_whole(base: str, path: str, content: bytes) -> None:
    target = Path(base).expanduser() / path
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _count(folder: Path) -> int:
    return sum(len(names) for _, _, names in walk(folder))


# --- blobs ---


class Blobs:
    """Content-addressed bytes under `blobs/` of a job store."""

    def __init__(self, files: StoredFiles) -> None:
        self._files = files

    async def put(self, content: bytes) -> StoredFile:
        """Store the bytes, unless they are stored and complete, and return how they are found again.

        Raises:
            InfrastructureError: when the storage fails.
        """
        file = StoredFile(digest=digest_of(content), size=len(content))
        if not await self.holds(file):
            await self._files.write(_blob_path(file.digest), content)
        return file

    async def holds(self, file: StoredFile) -> bool:
        """Whether the bytes are stored and complete."""
        content = await self._files.read(_blob_path(file.digest))
        return content is not None and digest_of(content) == file.digest

    async def get(self, file: StoredFile, *, name: str, job: str) -> bytes:
        """Return the bytes.

        Raises:
            ArtifactError: when they are not there, or are not what was stored.
            InfrastructureError: when the storage fails.
        """
        path = _blob_path(file.digest)
        content = await self._files.read(path)
        if content is None:
            raise ArtifactError(
                f"{name} of the job {job} is not in the job store {self._files} (at {path}). If the"
                " store was moved, point its block at the new place; otherwise"
                " create the job again from the same source."
            )
        found = digest_of(content)
        if found != file.digest:
            raise ArtifactError(
                f"{name} of the job {job} is damaged in the job store {self._files}: expected {file.digest}"
                f" ({file.size} bytes), found {found} ({len(content)} bytes)."
                " Create the job again from the same source: that repairs it."
            )
        return content


def _blob_path(digest: str) -> str:
    kind, _, value = digest.partition(":")
    return f"blobs/{kind}/{value[:2]}/{value}"
