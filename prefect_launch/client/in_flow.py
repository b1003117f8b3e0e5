"""Task `launch_add` of a flow: one item, however often the flow, or the task around it, is retried.

The run id is derived from the flow run (or the user's task run), the spec, and the number of equal specs before it. So
a retry finds the item of an earlier try. An item that ended without success is not reused: the retry runs it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_launch.core.states import StateType
from prefect_launch.queues.moved import read_current
from prefect_launch.spec.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.queues.session import Session

#: Makes the item of a spec on a queue.
Add = Callable[["Api", "Session", LaunchSpec, str], Awaitable["QueuedRun"]]


def is_flow_code() -> bool:
    """Whether a flow's own code calls this, not a task in it."""
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None and TaskRunContext.get() is None


def with_run_id(spec: LaunchSpec, queue: str) -> LaunchSpec:
    """Return the spec with a run id that a retry of the flow repeats."""
    if spec.run_id:
        return spec
    key = key_of_call("launch_add", f"{queue}/{json.dumps(spec.dump(), sort_keys=True)}")
    return spec if key is None else spec.model_copy(update={"run_id": key})


def key_of_call(name: str, arguments: str) -> str | None:
    """Return a key of this call that a retry of the flow, or of the task, around it repeats; None outside of flows.

    Args:
        name: of the function that is called.
        arguments: what it is called with; a second call with the same arguments has another key.
    """
    from prefect.context import FlowRunContext, TaskRunContext

    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is None or flow.flow_run is None:
        return None
    caller = f"{flow.flow_run.id}" if task is None else f"{task.task_run.id}"
    attempt = flow.flow_run.run_count if task is None else task.task_run.run_count
    content = hashlib.sha256(arguments.encode()).hexdigest()
    # A flow's context belongs to one attempt; a task's attempts differ by their number.
    counter = f"{name}/{caller}/{attempt}/{content}"
    number = int(flow.task_run_dynamic_keys.get(counter, 0))
    flow.task_run_dynamic_keys[counter] = number + 1
    return hashlib.sha256(f"{caller}/{content}/{number}".encode()).hexdigest()[:16]


def is_retry() -> bool:
    """Whether the flow run, or the task run, was tried before."""
    from prefect.context import FlowRunContext, TaskRunContext

    flow, task = FlowRunContext.get(), TaskRunContext.get()
    runs = [context.flow_run for context in [flow] if context is not None]
    tries = [run.run_count for run in runs if run is not None] + ([task.task_run.run_count] if task else [])
    return any(count > 1 for count in tries)


def found_again(add: Add) -> Add:
    """Return an `add` that reuses the item of an earlier try, unless it ended without success."""

    async def once(api: Api, session: Session, spec: LaunchSpec, queue: str) -> QueuedRun:
        number = 0
        while True:
            named = spec if number == 0 else spec.model_copy(update={"run_id": f"{spec.run_id}-{number}"})
            run = await add(api, session, named, queue)
            item = await read_current(session.server, UUID(run.id))
            if item is None or not item.is_terminal or item.state_type is StateType.COMPLETED:
                return run
            number += 1

    return once


@lru_cache(maxsize=1)
def sync_task() -> Any:
    """Return the task `launch_add` of synchronous flows."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    @task(name="launch_add", cache_policy=NO_CACHE, persist_result=False)
    def launch_add(api: Api, spec: LaunchSpec, queue: str, add: Add) -> QueuedRun:
        return api.call(lambda session: add(api, session, spec, queue))

    return launch_add


@lru_cache(maxsize=1)
def async_task() -> Any:
    """Return the task `launch_add` of async flows."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    @task(name="launch_add", cache_policy=NO_CACHE, persist_result=False)
    async def launch_add(api: Api, spec: LaunchSpec, queue: str, add: Add) -> QueuedRun:
        return await api.acall(lambda session: add(api, session, spec, queue))

    return launch_add
