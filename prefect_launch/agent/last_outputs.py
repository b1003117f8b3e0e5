"""The outputs of the last attempt, laid out for the next one: a job that saved a checkpoint goes on from it.

They are taken from the last attempt's folder when it ran on this machine (an agent that was lost has stored nothing),
else from the job store. Only regular files are: what is there was written by anybody's code.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from prefect_launch.errors import NotFoundError
from prefect_launch.planning import Site
from prefect_launch.runners.base import RunPlan

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry

#: The agent's own, stored beside the outputs.
_WHOLE_LOG: Final = "job.log"


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
    if _WHOLE_LOG in found:
        await anyio.Path(target / _WHOLE_LOG).unlink()
    return bool(set(found) - {_WHOLE_LOG})


def _copy_first(sources: Sequence[Path], target: Path) -> bool:
    """Copy the first folder that has any regular files; return whether there was one."""
    return any(_copy(source, target) for source in sources)


def _copy(source: Path, target: Path) -> bool:
    """Copy the regular files of a folder; return whether there were any."""
    copied = False
    for parent, _, names in os.walk(source):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                place = target / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place, follow_symlinks=False)
                copied = True
    return copied
