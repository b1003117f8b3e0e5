"""Index of jobs on the Prefect server: versions `v0, v1, …` and aliases, as Prefect variables under unique names.

Storage blocks cannot compare and set, but the server can: it refuses to create a variable whose name is taken. So each
version number has one writer. The index holds only what is needed to find and check a job; its files are in the store.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.names import check_name
from prefect_launch.errors import InternalError, InvalidNameError
from prefect_launch.jobs.model import JobReference, SourceKind, StoredFile
from prefect_launch.server.protocol import Server

_E = TypeVar("_E", bound="_Entry")

#: The tag of every entry.
JOB_TAG: Final = "launch-job"
#: Begins the tag of a job's path: of its entries, and of the items that run it.
PATH_TAG: Final = "job:"
#: The alias that always means the highest version.
LATEST: Final = "latest"

#: An entry has room for 5000 bytes; the whole description is in the job's metadata file.
_DESCRIPTION_CHARS: Final = 300
_VERSION: Final = re.compile(r"v(0|[1-9][0-9]{0,8})\Z")


class _Entry(BaseModel):
    # One variable of at most 5000 bytes.
    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str = Field(description="entity/project/name")
    version: int
    digest: str


class VersionEntry(_Entry):
    """One version of a job."""

    kind: SourceKind
    files: dict[str, StoredFile]
    created: datetime
    description: str | None = None
    deleted: bool = Field(default=False, description="It is no version any more; its number is not used again.")


class AliasEntry(_Entry):
    """The version that an alias points to."""

    alias: str


def version_name(path: str, version: int) -> str:
    """Return the index name of a version."""
    return f"{_stem(path)}_v{version}"


def alias_name(path: str, alias: str) -> str:
    """Return the index name of an alias."""
    return f"{_stem(path)}_a_{_slug(alias)}_{_hash(alias)}"


def tags_of(path: str) -> list[str]:
    """Return the tags of all entries of a job."""
    entity, project, _ = path.split("/")
    return [JOB_TAG, *scope_tags(entity, project), f"{PATH_TAG}{path}"]


def scope_tags(entity: str | None, project: str | None) -> list[str]:
    """Return the tags that all jobs of an entity and a project have."""
    return [f"entity:{entity}"] * bool(entity) + [f"project:{project}"] * bool(project)


def version_of(reference: JobReference) -> int | None:
    """Return the number when the reference names a version (`v3`), not an alias."""
    match = _VERSION.match(reference.alias)
    return int(match[1]) if match else None


def check_alias(alias: object) -> str:
    """Return a good alias.

    Raises:
        InvalidNameError: when it is no good name, or would hide a version (`v3`).
    """
    name = check_name("job alias", alias)
    if _VERSION.match(name):
        raise InvalidNameError(
            f"The job alias {name!r} is the name of a version. Choose another, such as 'release-{name}'."
        )
    return name


def check_own_alias(alias: object) -> str:
    """Return a good alias that a user may set or delete.

    Raises:
        InvalidNameError: as `check_alias` does; and for `latest`.
    """
    name = check_alias(alias)
    if name == LATEST:
        raise InvalidNameError(f"The job alias {LATEST!r} always means the highest version. Choose another.")
    return name


def shorten(description: str | None) -> str | None:
    """Return as much of a description as an entry has room for."""
    if description is None or len(description) <= _DESCRIPTION_CHARS:
        return description
    return description[: _DESCRIPTION_CHARS - 1] + "…"


def _stem(path: str) -> str:
    return f"launch_job_{_slug(path.rpartition('/')[2])}_{_hash(path)}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class JobIndex:
    """The versions and aliases of jobs, each a variable, and the rules that hold between two writers."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def read(self, path: str, version: int) -> VersionEntry | None:
        """Return a version's entry, if there is such a version."""
        entry = await self.read_number(path, version)
        return None if entry is None or entry.deleted else entry

    async def read_number(self, path: str, version: int) -> VersionEntry | None:
        """Return what has taken the number of a version: it may be deleted."""
        return await self._read(VersionEntry, version_name(path, version))

    async def read_alias(self, path: str, alias: str) -> AliasEntry | None:
        """Return what an alias means now. A missing `latest` of a job that has versions is set right first."""
        entry = await self._read(AliasEntry, alias_name(path, alias))
        if entry is None and alias == LATEST and await self.highest(path) is not None:
            # A writer died between its version and the alias.
            await self.update_latest(path)
            entry = await self._read(AliasEntry, alias_name(path, alias))
        return entry

    async def create(self, entry: VersionEntry) -> bool:
        """Make a version; `False` when its number is taken."""
        name, value = version_name(entry.job, entry.version), entry.model_dump(mode="json")
        return await self._server.create_variable(name, value, tags=tags_of(entry.job))

    async def set_alias(self, alias: str, entry: VersionEntry) -> None:
        """Point an alias to a version."""
        value = AliasEntry(job=entry.job, version=entry.version, digest=entry.digest, alias=alias)
        name = alias_name(entry.job, alias)
        await self._server.write_variable(name, value.model_dump(mode="json"), tags=tags_of(entry.job))

    async def delete(self, entry: VersionEntry) -> None:
        """Delete a version. Its number stays taken: items and agents know a version by its number."""
        value = entry.model_copy(update={"deleted": True, "files": {}}).model_dump(mode="json")
        await self._server.write_variable(version_name(entry.job, entry.version), value, tags=tags_of(entry.job))

    async def delete_alias(self, path: str, alias: str) -> bool:
        """Delete an alias; whether it was there."""
        return await self._server.delete_variable(alias_name(path, alias))

    async def highest(self, path: str) -> VersionEntry | None:
        """Return the highest version, looked for from the one that `latest` means upwards."""
        return await self._highest_from(path, await self._latest(path))

    async def update_latest(self, path: str) -> None:
        """Point `latest` to the highest version, also while others write.

        Every writer ends here, and leaves only when it has seen, after its own write, that no version is higher. So
        whichever write of the alias is the last, no version that was there before it can be higher than what it says.
        """
        while True:
            latest = await self._latest(path)
            highest = await self._highest_from(path, latest)
            if highest is None or latest == highest.version:
                return
            await self.set_alias(LATEST, highest)

    async def find(
        self, *, path: str | None = None, entity: str | None = None, project: str | None = None
    ) -> tuple[list[VersionEntry], list[AliasEntry]]:
        """List the versions and the aliases of one job, or of all jobs of an entity and a project."""
        tags = tags_of(path) if path else [JOB_TAG, *scope_tags(entity, project)]
        versions, aliases = [], []
        for name, value in (await self._server.list_variables(*tags)).items():
            if isinstance(value, dict) and "alias" in value:
                aliases.append(_entry(AliasEntry, name, value))
            else:
                versions.append(_entry(VersionEntry, name, value))
        return [entry for entry in versions if not entry.deleted], aliases

    async def _latest(self, path: str) -> int | None:
        latest = await self._read(AliasEntry, alias_name(path, LATEST))
        return None if latest is None else latest.version

    async def _highest_from(self, path: str, number: int | None) -> VersionEntry | None:
        entry: VersionEntry | None = None
        number = number or 0
        while (found := await self.read_number(path, number)) is not None:
            entry, number = entry if found.deleted else found, number + 1
        return entry

    async def _read(self, kind: type[_E], name: str) -> _E | None:
        value = await self._server.read_variable(name)
        return None if value is None else _entry(kind, name, value)


def _entry(kind: type[_E], name: str, value: Any) -> _E:
    try:
        return kind.model_validate(value)
    except ValidationError:
        raise InternalError(
            f"The Prefect variable {name!r} belongs to the job index, but somebody gave it the value {value!r}."
            " Delete the variable, and create the job again."
        ) from None
