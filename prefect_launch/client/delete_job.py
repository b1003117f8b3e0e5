"""Deletion of a job, or of one version of it, unless items that wait name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prefect_launch.core.names import name_and_id
from prefect_launch.core.states import StateType
from prefect_launch.core.units import counted
from prefect_launch.errors import LaunchError
from prefect_launch.jobs.index import PATH_TAG
from prefect_launch.server.paging import all_items
from prefect_launch.spec.item_parameters import JOB_LABEL

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item

#: How many items a refusal names.
_NAMED: Final = 5


@dataclass(frozen=True)
class DeletedJob:
    """What was deleted.

    Attributes:
        path: entity/project/name of the job.
        versions: their numbers, such as `v0`.
        aliases: those that meant one of them.
        waiting: how many items wait that name one of them: an agent without a copy of the job fails them.
    """

    path: str
    versions: tuple[str, ...]
    aliases: tuple[str, ...]
    waiting: int


async def delete_job(session: Session, name: str, *, force: bool) -> DeletedJob:
    """Delete a job, or the version that the name means; see `Api.delete_job`."""
    entries = await session.jobs.named_by(name)
    path = entries[0].job
    waiting = await _waiting(session, path, {f"{path}:v{entry.version}" for entry in entries})
    if waiting and not force:
        named = ", ".join(name_and_id(item) for item in waiting[:_NAMED])
        more = ", …" if len(waiting) > _NAMED else ""
        raise LaunchError(
            f"The job {name!r} is named by {counted(len(waiting), 'waiting item')}, which an agent without a copy of it"
            f" would fail: {named}{more}. Cancel what waits, or delete the job all the same with force (--force)."
        )
    aliases = await session.jobs.delete(entries)
    return DeletedJob(path, tuple(f"v{entry.version}" for entry in entries), aliases, len(waiting))


async def _waiting(session: Session, path: str, references: set[str]) -> list[Item]:
    tag = f"{PATH_TAG}{path.rpartition('/')[2]}"
    items = all_items(session.server, tags=[tag], state_types=[StateType.SCHEDULED])
    return [item async for item in items if item.labels.get(JOB_LABEL) in references]
