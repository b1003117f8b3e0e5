"""Index of jobs on the Prefect server: versions `v0, v1, …` and aliases, as Prefect variables under unique names.

Storage blocks cannot compare and set, the server can: creating a variable whose name is taken is refused. That is what
makes a version number belong to one writer. The index holds only what finds and checks a job; its files are in the
store. `prefect_launch.testing.InMemoryJobIndex` is the in-memory fake, and the same contract tests run on both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.names import check_name
from prefect_launch.errors import InternalError, InvalidNameError, ServerUnavailableError
from prefect_launch.jobs.model import JobReference, SourceKind, StoredFile

#: The server refuses longer values (as JSON in UTF-8).
MAX_VALUE_BYTES: Final = 5000
#: The server refuses longer names and other characters.
_NAME: Final = re.compile(r"[a-z0-9_]{1,255}\Z")


class JobIndex(Protocol):
    """Named JSON values with tags. Names are made of `[a-z0-9_]`, at most 255; values have at most 5000 bytes of JSON.

    Every call raises `ServerUnavailableError` when the server does not answer.
    """

    async def create(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        """Store a new value; `False`, and nothing changed, when the name is taken. Atomic between all writers."""
        ...

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return the value of that name, if there is one."""
        ...

    async def write(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> None:
        """Store a value, whether the name is taken or not. The last writer wins."""
        ...

    async def delete(self, name: str) -> bool:
        """Remove a value; `False` when there was none."""
        ...

    async def find(self, tags: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        """List the names and values that have all these tags, by name."""
        ...


class ServerJobIndex:
    """The index on a Prefect server.

    Args:
        client: an open client; its transport decides how long a server that is away is waited for.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def create(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        """Store a new value; `False` when the name is taken."""
        check_entry(name, value)
        try:
            await self._client.create_variable(VariableCreate(name=name, value=dict(value), tags=list(tags)))
        except ObjectAlreadyExists:
            return False
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return True

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return the value of that name, if there is one."""
        try:
            found = await self._client.read_variable_by_name(name)
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return _value_of(found) if found is not None else None

    async def write(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> None:
        """Store a value, whether the name is taken or not."""
        while not (await self._update(name, value, tags) or await self.create(name, value, tags)):
            continue

    async def _update(self, name: str, value: Mapping[str, Any], tags: Collection[str]) -> bool:
        check_entry(name, value)
        try:
            await self._client.update_variable(VariableUpdate(name=name, value=dict(value), tags=list(tags)))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:
                return False
            raise _readable(error, name) from error
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return True

    async def delete(self, name: str) -> bool:
        """Remove a value; `False` when there was none."""
        try:
            await self._client.delete_variable_by_name(name)
        except ObjectNotFound:
            return False
        except httpx.HTTPError as error:
            raise _readable(error, name) from error
        return True

    async def find(self, tags: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        """List the names and values that have all these tags, by name."""
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        # A page's size is the server's to say, so the end is an empty page.
        while page := await self._page(tags, offset=offset):
            offset += len(page)
            found |= {variable.name: _value_of(variable) for variable in page}
        return sorted(found.items())

    async def _page(self, tags: Collection[str], *, offset: int) -> list[Variable]:
        # The client's own `read_variables` knows neither filters nor pages.
        query = {"variables": {"tags": {"all_": list(tags)}}, "offset": offset, "sort": "NAME_ASC"}
        try:
            response = await self._client.request("POST", "/variables/filter", json=query)
        except httpx.HTTPError as error:
            raise _readable(error, f"tagged {', '.join(tags)}") from error
        return [Variable.model_validate(row) for row in response.json()]


def check_entry(name: str, value: Mapping[str, Any]) -> None:
    """Refuse what the server would refuse.

    Raises:
        InternalError: for a name of other characters or a value that is too large. Who writes the index sees to both.
    """
    size = len(json.dumps(dict(value), ensure_ascii=False, separators=(",", ":")).encode())
    if not _NAME.match(name) or size > MAX_VALUE_BYTES:
        raise InternalError(
            f"The job index entry {name!r} ({size} bytes) cannot be stored: a name is 1 to 255 of a-z, 0-9 and '_',"
            f" a value at most {MAX_VALUE_BYTES} bytes. Please report this."
        )


def _value_of(variable: Variable) -> dict[str, Any]:
    if not isinstance(variable.value, dict):
        raise InternalError(
            f"The Prefect variable {variable.name!r} belongs to the job index, but somebody gave it the value"
            f" {variable.value!r}. Delete the variable, and create the job again."
        )
    return variable.value


def _readable(error: httpx.HTTPError, name: str) -> Exception:
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
        return InternalError(
            f"The Prefect server refused the job index entry {name!r}:"
            f" {error.response.status_code} {error.response.text[:300]}. Please report this."
        )
    return ServerUnavailableError(
        f"The Prefect server did not answer for the job index entry {name!r} ({type(error).__name__}: {error})."
        " Start it with 'prefect server start', or set PREFECT_API_URL to the address of the one to use."
    )


# --- entries: one for each version, which never changes, and one for each alias, which moves ---

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


class AliasEntry(_Entry):
    """The version that an alias means now."""

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


# --- versions and aliases, and the rules that hold between two writers ---


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
            await self.update_latest(path)
            value = await self._index.read(alias_name(path, alias))
        return AliasEntry.model_validate(value) if value is not None else None

    async def create(self, entry: VersionEntry) -> bool:
        """Make a version; `False` when its number is taken."""
        return await self._index.create(
            version_name(entry.job, entry.version), entry.model_dump(mode="json"), tags_of(entry.job)
        )

    async def set_alias(self, alias: str, entry: VersionEntry) -> None:
        """Let an alias mean a version."""
        value = AliasEntry(job=entry.job, version=entry.version, digest=entry.digest, alias=alias)
        await self._index.write(alias_name(entry.job, alias), value.model_dump(mode="json"), tags_of(entry.job))

    async def highest(self, path: str) -> VersionEntry | None:
        """Return the highest version, looked for from the one that `latest` means upwards."""
        return await self._highest_from(path, await self._latest(path))

    async def update_latest(self, path: str) -> None:
        """Make `latest` mean the highest version, whoever else is writing.

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
