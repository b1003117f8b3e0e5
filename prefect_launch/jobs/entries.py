"""How a job stands in the index: one entry for each version, which never changes, and one for each alias, which moves.

Names are readable and unique: a slug for people, a hash of the full name for the machine.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.names import check_name
from prefect_launch.errors import InvalidNameError
from prefect_launch.jobs.model import SourceKind, StoredFile
from prefect_launch.jobs.reference import JobReference

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
