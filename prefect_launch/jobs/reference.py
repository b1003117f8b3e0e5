"""How a job is named: `entity/project/name:alias`, or shorter with an `Api`'s defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from prefect_launch.core.names import check_name
from prefect_launch.errors import InvalidNameError


class JobReference(BaseModel):
    """A job's full name and the alias (or version, `v3`) that is meant."""

    model_config = ConfigDict(frozen=True)

    entity: str
    project: str
    name: str
    alias: str = "latest"

    @property
    def path(self) -> str:
        """`entity/project/name`, without the alias."""
        return f"{self.entity}/{self.project}/{self.name}"

    def __str__(self) -> str:
        return f"{self.path}:{self.alias}"


def parse_reference(text: object, *, entity: str, project: str) -> JobReference:
    """Read a job reference.

    Args:
        text: `entity/project/name:alias`, `project/name:alias`, `name:alias` or `name`; the alias defaults to `latest`.
        entity: the entity when the text names none.
        project: the project when the text names none.

    Raises:
        InvalidNameError: when it is not of that form, or a part is no good name.
    """
    if not isinstance(text, str):
        raise InvalidNameError(f"A job must be named as text, not {type(text).__name__} ({text!r}).")
    path, colon, alias = text.partition(":")
    parts = path.split("/")
    if len(parts) > 3:
        raise InvalidNameError(
            f"Invalid job {text[:80]!r}: it has {len(parts)} parts between slashes;"
            " use entity/project/name:alias, or less."
        )
    if colon and not alias:
        raise InvalidNameError(f"Invalid job {text!r}: the alias after ':' is empty. Leave out the ':' for 'latest'.")
    full = [entity, project][: 3 - len(parts)] + parts
    return JobReference(
        entity=check_name("entity", full[0]),
        project=check_name("project", full[1]),
        name=check_name("job", full[2]),
        alias=check_name("job alias", alias or "latest"),
    )
