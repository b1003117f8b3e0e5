"""The versions and aliases of jobs in the index, and the rules that hold between two writers.

A version's number belongs to whoever created its entry first, and numbers have no gaps. `latest` ends as the highest
version, whatever the order in which writers come. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable

from prefect_launch.jobs.entries import (
    JOB_TAG,
    LATEST,
    AliasEntry,
    VersionEntry,
    alias_name,
    scope_tags,
    tags_of,
    version_name,
)
from prefect_launch.jobs.index import JobIndex


class Versions:
    """Typed access to a job index."""

    def __init__(self, index: JobIndex) -> None:
        self._index = index

    async def read(self, path: str, version: int) -> VersionEntry | None:
        """Return a version's entry, if there is such a version."""
        value = await self._index.read(version_name(path, version))
        return VersionEntry.model_validate(value) if value is not None else None

    async def read_alias(self, path: str, alias: str) -> AliasEntry | None:
        """Return what an alias means now. A missing `latest` of a job that has versions is set right first."""
        value = await self._index.read(alias_name(path, alias))
        if value is None and alias == LATEST and await self.highest(path) is not None:
            # A writer died between its version and the alias.
            await self.settle_latest(path)
            value = await self._index.read(alias_name(path, alias))
        return AliasEntry.model_validate(value) if value is not None else None

    async def create(self, entry: VersionEntry) -> bool:
        """Make a version; `False` when its number is taken."""
        return await self._index.create(
            version_name(entry.job, entry.version), entry.model_dump(mode="json"), tags_of(entry.job)
        )

    async def point(self, alias: str, entry: VersionEntry) -> None:
        """Let an alias mean a version."""
        value = AliasEntry(job=entry.job, version=entry.version, digest=entry.digest, alias=alias)
        await self._index.write(alias_name(entry.job, alias), value.model_dump(mode="json"), tags_of(entry.job))

    async def highest(self, path: str) -> VersionEntry | None:
        """Return the highest version, looked for from the one that `latest` means upwards."""
        return await self._highest_from(path, await self._latest(path))

    async def settle_latest(self, path: str) -> None:
        """Make `latest` mean the highest version, whoever else is writing.

        Every writer ends here, and leaves only when it has seen, after its own write, that no version is higher. So
        whichever write of the alias is the last, no version that was there before it can be higher than what it says.
        """
        while True:
            latest = await self._latest(path)
            highest = await self._highest_from(path, latest)
            if highest is None or latest == highest.version:
                return
            await self.point(LATEST, highest)

    async def find(
        self, *, path: str | None = None, entity: str | None = None, project: str | None = None
    ) -> tuple[list[VersionEntry], list[AliasEntry]]:
        """List the versions and the aliases of one job, or of all jobs of an entity and a project."""
        tags: Iterable[str] = tags_of(path) if path else [JOB_TAG, *scope_tags(entity, project)]
        found = [value for _, value in await self._index.find(list(tags))]
        return (
            [VersionEntry.model_validate(value) for value in found if "alias" not in value],
            [AliasEntry.model_validate(value) for value in found if "alias" in value],
        )

    async def _latest(self, path: str) -> int | None:
        value = await self._index.read(alias_name(path, LATEST))
        return AliasEntry.model_validate(value).version if value is not None else None

    async def _highest_from(self, path: str, number: int | None) -> VersionEntry | None:
        entry: VersionEntry | None = None
        number = number or 0
        while (found := await self.read(path, number)) is not None:
            entry, number = found, number + 1
        return entry
