"""The block that says where jobs and the outputs of runs are kept: in any Prefect storage block, or a local folder.

It is configuration: it can be saved, seen and edited in the UI. The work is done by `prefect_launch.jobs.registry`.
What it holds beside its fields is a cache of jobs, which never change once stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, Final, cast

from prefect.blocks.core import Block
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import get_current_settings
from pydantic import Field, PrivateAttr

from prefect_launch.errors import AgentConfigError, NotFoundError, clause
from prefect_launch.jobs.files import StorageBlock, StoredFiles
from prefect_launch.jobs.model import Job

#: Enough for every job that a busy queue sees in a day; a job is a few kilobytes.
_CACHED_JOBS: Final = 512


class JobCache:
    """The jobs read last, by path and version."""

    def __init__(self, size: int = _CACHED_JOBS) -> None:
        self._size = size
        self._jobs: OrderedDict[tuple[str, int], Job] = OrderedDict()

    def get(self, path: str, version: int, *, digest: str | None = None) -> Job | None:
        """Return the job, unless it is not here, or the one that is has another digest."""
        job = self._jobs.get((path, version))
        if job is None or (digest is not None and job.digest != digest):
            return None
        self._jobs.move_to_end((path, version))
        return job

    def add(self, job: Job) -> None:
        """Keep a job, in the place of the one that was not asked for the longest."""
        self._jobs[job.path, job.version] = job
        while len(self._jobs) > self._size:
            self._jobs.popitem(last=False)


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
            return await _load(self.storage)
        return self.storage


async def _load(name: str) -> StorageBlock:
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
