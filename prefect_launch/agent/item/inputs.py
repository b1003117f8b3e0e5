"""Inputs that are outputs of other items: fetched from the job store into the folder of a run, before its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from prefect_launch.core.filesystem import temporary_folder_async
from prefect_launch.queues.item_outputs import find_outputs

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.runners.base import RunPlan


async def fetch_inputs(session: Session, plan: RunPlan) -> None:
    """Fill the folder of a run's inputs. Doing it again changes nothing. A caller that is cancelled ends it.

    Raises:
        SubmitterError: when an item or its file is not there any more.
        InfrastructureError: when the storage or this machine's disk fails.
    """
    if not plan.input_files or await anyio.Path(plan.input_dir).exists():
        return
    # In a folder of its own until it is whole: an agent may die in the middle of it.
    async with temporary_folder_async(".inputs-", plan.run_dir) as made:
        part = made / plan.input_dir.name
        for wanted in plan.input_files:
            found = await find_outputs(session, wanted)
            await session.jobs.fetch_outputs(wanted.item, found.attempt, found.names, part / wanted.item)
        await anyio.to_thread.run_sync(part.rename, plan.input_dir)
