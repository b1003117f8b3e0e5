"""Bytes named by their digest, in any storage: written as often as one likes, damaged by nobody unseen.

What is read is compared with its name; a torn, truncated or changed file is refused with `ArtifactError`, never used.
"""

from __future__ import annotations

from prefect_launch.errors import ArtifactError
from prefect_launch.jobs.files import StoredFiles
from prefect_launch.jobs.model import StoredFile, digest_of


class Blobs:
    """Content-addressed bytes under `blobs/` of a job store."""

    def __init__(self, files: StoredFiles) -> None:
        self._files = files

    async def put(self, content: bytes) -> StoredFile:
        """Store the bytes, unless they are there and whole, and return how they are found again.

        Raises:
            InfrastructureError: when the storage fails.
        """
        file = StoredFile(digest=digest_of(content), size=len(content))
        if not await self.holds(file):
            await self._files.write(_path(file.digest), content)
        return file

    async def holds(self, file: StoredFile) -> bool:
        """Say whether the bytes are there and whole."""
        content = await self._files.read(_path(file.digest))
        return content is not None and digest_of(content) == file.digest

    async def get(self, file: StoredFile, *, name: str, job: str) -> bytes:
        """Return the bytes.

        Args:
            file: as `put` returned it.
            name: the file's name in the job, for the message.
            job: the job, for the message.

        Raises:
            ArtifactError: when they are not there, or are not what was stored.
            InfrastructureError: when the storage fails.
        """
        path = _path(file.digest)
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


def _path(digest: str) -> str:
    kind, _, value = digest.partition(":")
    return f"blobs/{kind}/{value[:2]}/{value}"
