"""The outputs of the last attempt, laid out for the next one: a job that saved a checkpoint goes on from it.

They are taken from the last attempt's folder when it ran on this machine (an agent that was lost has stored nothing),
else from the job store. Only regular files are: what is there was written by anybody's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from prefect_launch.agent.item.keep_outputs import WHOLE_LOG
from prefect_launch.core.sparse_files import copy_tree
from prefect_launch.errors import NotFoundError
from prefect_launch.runners.base import RunPlan
from prefect_launch.settings.site import Site

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry


async def bring_last_outputs(plan: RunPlan, site: Site, jobs: JobRegistry) -> int | None:
    """Fill a new attempt's output folder with what the last attempt that left something has left.

    Doing it again changes nothing. A first attempt gets nothing.

    Args:
        plan: the new attempt.
        site: the machine.
        jobs: where outputs are stored.

    Returns:
        The attempt that they are of; `None` when none has left any.

    Raises:
        InfrastructureError: when the storage fails. To start anew without a word would throw work away.
    """
    if plan.attempt < 2 or plan.output_dir.exists():
        return None
    # In a folder of its own until it is whole: an agent may die in the middle of it.
    async with anyio.TemporaryDirectory(prefix=".last-outputs-", dir=str(plan.run_dir)) as made:
        part = Path(made) / plan.output_dir.name
        for attempt in range(plan.attempt - 1, 0, -1):
            local = [folder / plan.output_dir.name for folder in site.run_dirs(plan.item_id, attempt)]
            if await anyio.to_thread.run_sync(_copy_first, local, part) or await _fetch(
                jobs, plan.item_id, attempt, part
            ):
                await anyio.to_thread.run_sync(part.rename, plan.output_dir)
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


def _copy_first(sources: Sequence[Path], target: Path) -> bool:
    """Copy the first folder that has any regular files; return whether there was one."""
    return any(source.is_dir() and copy_tree(source, target) for source in sources)
