"""`prefect worker start --type launch`: Prefect's own way to start an agent, over the same core.

The worker's loop is the agent's: it wakes on events, guards its claims and stops what is cancelled, which Prefect's own
worker loop does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.abc
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import Field

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.entry.start import Signals
from prefect_launch.agent.item.lifecycle import ItemLifecycle
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.client.api import Api
from prefect_launch.core.names import safe_name
from prefect_launch.core.states import ItemState
from prefect_launch.server.values import POOL_TYPE
from prefect_launch.settings.agent_config import resolve_agent_config

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


class LaunchJobConfiguration(BaseJobConfiguration):
    """A queue's configuration, as Prefect's worker machinery reads it from the base job template."""

    resource: str = Field(default="local-process", description="What the queue's items run on.")
    resource_args: dict[str, Any] = Field(default_factory=dict, description="Options, by resource.")
    submitter_options: list[str] = Field(default_factory=list, description="Options that submitters may set besides.")
    fail_impossible_after: float | None = Field(
        default=None, description="Seconds after which an item fails that no agent can ever run; None: it waits."
    )


class LaunchVariables(BaseVariables):
    """A queue's template variables: none, until its owner declares them."""


class LaunchWorkerResult(BaseWorkerResult):
    """How a run ended."""


class LaunchWorker(BaseWorker[LaunchJobConfiguration, LaunchVariables, LaunchWorkerResult]):
    """An agent that Prefect starts."""

    type = POOL_TYPE
    job_configuration = LaunchJobConfiguration
    job_configuration_variables = LaunchVariables
    _description = "Runs jobs (a git commit, a code folder, a container image) that were queued with prefect-launch."
    _display_name = "Launch"

    def _make_agent(self) -> LaunchAgent:
        config = resolve_agent_config(
            queues=[self._work_pool_name], name=safe_name(self.name), max_jobs=self._limit, max_schedulers=self._limit
        )
        return LaunchAgent(Api(), config)

    async def start(
        self,
        run_once: bool = False,
        with_healthcheck: bool = False,
        printer: Callable[..., None] = print,
    ) -> None:
        """Run the agent's loop on the work pool; the first SIGTERM or SIGINT drains it, the second ends it.

        Args:
            run_once: end when the pool is empty and all work is done.
            with_healthcheck: kept for Prefect's callers; the agent's heartbeats tell of its health.
            printer: gets one line at the start.
        """
        agent = self._make_agent()
        printer(f"Agent {agent.config.name!r} polls the queue {self._work_pool_name!r}.")
        if threading.current_thread() is threading.main_thread():
            await Signals(agent, stop_jobs=False, tell=printer).run(until_empty=run_once)
        else:
            await agent.loop(until_empty=run_once)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: LaunchJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> LaunchWorkerResult:
        """Run one flow run that is claimed already."""
        agent = self._make_agent()
        async with agent.connected():
            item = await agent.context.session.server.read_item(UUID(str(flow_run.id)))
            if item is None:
                return LaunchWorkerResult(status_code=1, identifier=str(flow_run.id))
            running_item = RunningItem(item=item, queue=self._work_pool_name)
            outcome = await ItemLifecycle(agent.context, running_item).run()
        if task_status is not None:
            task_status.started(running_item.handle or str(flow_run.id))  # type: ignore[arg-type]
        return LaunchWorkerResult(
            status_code=0 if outcome.state is ItemState.COMPLETED else 1,
            identifier=running_item.handle or str(flow_run.id),
        )
