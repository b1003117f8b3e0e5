"""An item as a task run of the agent's flow: a bar on the time line of its page in the UI.

Outside a flow nothing of this is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.core.states import ItemState

#: Runs an item; `None` when it goes on under the next agent of the name.
Work = Callable[[], Awaitable["Outcome | None"]]


def in_flow() -> bool:
    """Whether this is called from a flow's own code."""
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


async def run_as_task(name: str, work: Work) -> None:
    """Do the work of one item as a task run `run_job` named after it."""
    await _run_job().with_options(task_run_name=_literal(name))(work, return_state=True)


def _literal(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


@lru_cache(maxsize=1)
def _run_job() -> Any:
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Cancelled, Completed, Crashed, Failed

    ends = {ItemState.FAILED: Failed, ItemState.CRASHED: Crashed, ItemState.CANCELLED: Cancelled}
    ends[ItemState.AWAITING_RETRY] = Crashed  # this attempt's bar; the next one has a bar of its own

    @task(name="run_job", cache_policy=NO_CACHE, persist_result=False)
    async def run_job(work: Work) -> Any:
        outcome = await work()
        if outcome is None:
            return Completed(message="Goes on under the next run of this agent.", name="HandedOver")
        return ends.get(outcome.state, Completed)(message=outcome.message)

    return run_job
