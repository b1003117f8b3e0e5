"""The outputs of the last attempt, laid out for the next one: a job that saved a checkpoint goes on from it.

They are taken from the last attempt's folder when it ran on this machine (an agent that was lost has stored nothing),
else from the job store; the same of them as is kept, within the same limits. What is left out is told in the item's
log.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import anyio

from prefect_launch.agent.item.keep_outputs import WHOLE_LOG, tell_left_out
from prefect_launch.core.filesystem import temporary_folder_async
from prefect_launch.core.output_limits import LeftOut
from prefect_launch.errors import InfrastructureError, NotFoundError, clause
from prefect_launch.jobs.outputs import copy_outputs
from prefect_launch.runners.base import RunPlan
from prefect_launch.settings.agent_config import Site

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.queues.session import Session


async def bring_last_outputs(session: Session, plan: RunPlan, site: Site) -> int | None:
    """Fill a new attempt's output folder with what the last attempt that left something has left.

    Doing it again changes nothing. A first attempt gets nothing. A caller that is cancelled ends it.

    Args:
        session: an open connection.
        plan: the new attempt.
        site: the machine.

    Returns:
        The attempt that they are of; `None` when none has left any.

    Raises:
        InfrastructureError: when the storage or this machine's disk fails. To start anew without a word would throw
            work away.
    """
    if plan.attempt < 2 or plan.output_dir.exists():
        return None
    # In a folder of its own until it is whole: an agent may die in the middle of it.
    async with temporary_folder_async(".last-outputs-", plan.run_dir) as made:
        part = made / plan.output_dir.name
        for attempt in range(plan.attempt - 1, 0, -1):
            local = [folder / plan.output_dir.name for folder in site.run_dirs(plan.item_id, attempt)]
            left_out = await _copy_first(local, part, plan)
            if left_out is None and not await _fetch(session.jobs, plan.item_id, attempt, part):
                continue
            await anyio.to_thread.run_sync(part.rename, plan.output_dir)
            if left_out:
                whose = f"the outputs of attempt {attempt}"
                told = left_out.describe(plan.output_limits, what=whose, done="handed on to the next")
                await tell_left_out(session.server, UUID(plan.item_id), plan.mask.text(told))
            return attempt
    return None


async def _fetch(jobs: JobRegistry, item_id: str, attempt: int, target: Path) -> bool:
    try:
        found = await jobs.get_outputs(item_id, attempt, target)
    except NotFoundError:
        return False
    if WHOLE_LOG in found:
        await anyio.Path(target / WHOLE_LOG).unlink()
    return bool(set(found) - {WHOLE_LOG})


async def _copy_first(sources: list[Path], target: Path, plan: RunPlan) -> LeftOut | None:
    """Copy the first folder that has anything to keep; return what of it was left out, None when there is no such."""
    for source in sources:
        try:
            copied = await copy_outputs(source, target, plan.output_limits)
        except OSError as error:
            raise InfrastructureError(
                f"The outputs of the last attempt in {source} cannot be copied to {target}: {clause(error)}. Look at"
                " the free space of that disk, and at who may read the folder."
            ) from error
        if copied.paths:
            return copied.left_out
    return None
