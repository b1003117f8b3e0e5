"""Put a job on a queue, for schedules and automations that start more than one job's own form does."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from prefect_launch import alaunch_add


@flow(name="launch-enqueue", persist_result=False)
async def enqueue(
    job: str,
    queue: str = "default",
    inputs: dict[str, Any] | None = None,
    priority: Literal["critical", "high", "medium", "low"] = "medium",
    name: str | None = None,
) -> str:
    """Put one item on a queue; an agent of the queue runs it.

    Args:
        job: `entity/project/name:alias`, or a shorter form.
        queue: of the item.
        inputs: the job's inputs.
        priority: of the item in its queue.
        name: the run's display name.

    Returns:
        The item's id.
    """
    added = await alaunch_add(
        job=job, queue_name=queue, priority=priority, name=name, config={"overrides": {"run_config": inputs or {}}}
    )
    return added.id
