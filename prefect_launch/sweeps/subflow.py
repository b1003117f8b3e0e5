"""Place of a sweep in the flow that begins it: the task run that stands for a subflow, as Prefect has it.

A retry of the flow comes to the same task run, and finds the sweep of an earlier try there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import Task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentTaskRunId
from prefect.context import FlowRunContext
from prefect.states import Pending

from prefect_launch.client.in_flow import key_of_call
from prefect_launch.server.values import SCHEDULER_FLOW

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


def key_of_sweep(parameters: Mapping[str, Any]) -> str | None:
    """Return a key of the call around that begins a sweep, which a retry of its flow repeats; None outside of flows.

    Args:
        parameters: those that the sweep is begun with.
    """
    return key_of_call(SCHEDULER_FLOW, json.dumps(parameters, sort_keys=True, default=str))


async def place_in_flow(client: PrefectClient, parameters: Mapping[str, Any]) -> tuple[UUID | None, UUID | None]:
    """Return where a sweep belongs in the flow around this call.

    Args:
        client: of the server.
        parameters: those that the sweep is begun with.

    Returns:
        The id of the task run that stands for it, and that of the sweep which an earlier try of the flow has begun
        there. Each is `None` when there is none; outside of flows, both are.
    """
    context = FlowRunContext.get()
    key = key_of_sweep(parameters)
    if key is None or context is None or context.flow_run is None:
        return None, None
    task = Task(fn=_sweep, name=SCHEDULER_FLOW)
    made = await client.create_task_run(task, context.flow_run.id, key, state=Pending())
    of_task = FlowRunFilter(parent_task_run_id=FlowRunFilterParentTaskRunId(any_=[made.id]))
    earlier = await client.read_flow_runs(flow_run_filter=of_task, limit=1)
    return made.id, earlier[0].id if earlier else None


def _sweep() -> None:
    """Nothing runs as this task: the server gives its run the states of the sweep."""
