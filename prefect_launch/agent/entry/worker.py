"""`prefect worker start --type launch`: Prefect's own way to start an agent, over the same core.

The worker's loop is the agent's: it wakes on events, guards its claims and stops what is cancelled, which Prefect's own
worker loop does not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
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
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.runners.base import nothing
from prefect_launch.server.values import POOL_TYPE
from prefect_launch.settings.agent_config import resolve_agent_config

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


#: How often a worker that works says so to Prefect's health check, which calls one dead after 5 minutes.
_LIFE_SECONDS: Final = 15.0


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
    """An agent that Prefect starts.

    Args:
        work_pool_name: the queue.
        **given: arguments of Prefect's worker. Without `name`, the agent's name is that of the machine's agent config,
            or the machine's own, as for every agent: the next start under the same name takes up what this one leaves.
    """

    type = POOL_TYPE
    job_configuration = LaunchJobConfiguration
    job_configuration_variables = LaunchVariables
    _description = "Runs jobs (a git commit, a code folder, a container image) that were queued with prefect-launch."
    _display_name = "Launch"

    def __init__(self, work_pool_name: str, **given: Any) -> None:
        super().__init__(work_pool_name, **given)
        self._given_name: str | None = given.get("name")

    def _make_agent(self) -> LaunchAgent:
        self._check_options()
        config = resolve_agent_config(
            queues=[self._work_pool_name],
            name=safe_name(self._given_name) if self._given_name else None,
            max_jobs=self._limit,
            max_schedulers=self._limit,
        )
        self.name = config.name
        return LaunchAgent(Api(), config)

    def _check_options(self) -> None:
        """Refuse options of Prefect's worker that nothing would read here."""
        if self._work_queues:
            raise AgentConfigError(
                f"A worker of the type {POOL_TYPE!r} takes items of all priorities, not only of the work queues"
                f" {', '.join(sorted(self._work_queues))}. Leave --work-queue out."
            )
        if self._base_job_template is not None:
            raise AgentConfigError(
                f"A worker of the type {POOL_TYPE!r} makes no work pool, and reads no base job template. Leave"
                " --base-job-template out, and make the queue with 'prefect-launch queue create'."
            )

    async def start(
        self,
        run_once: bool = False,
        with_healthcheck: bool = False,
        printer: Callable[..., None] = print,
    ) -> None:
        """Run the agent's loop on the work pool; the first SIGTERM or SIGINT drains it, the second ends it.

        Args:
            run_once: end when the pool is empty and all work is done.
            with_healthcheck: kept for Prefect's callers: its command line serves the health check itself.
            printer: gets one line at the start. Another one than `print`, such as that of Prefect's command line, which
                would show a traceback, gets an error too.

        Raises:
            LaunchError: when the agent cannot be started, or cannot continue.
            SystemExit: in its place, when the caller gave a printer of its own.
        """
        try:
            agent = self._make_agent()
            printer(f"Agent {agent.config.name!r} polls the queue {self._work_pool_name!r}.")
            async with self._showing_life():
                if threading.current_thread() is threading.main_thread():
                    await Signals(agent, stop_jobs=False, notify=printer).run(until_empty=run_once)
                else:
                    await agent.loop(until_empty=run_once)
        except LaunchError as error:
            if printer is print:
                raise
            printer(f"Error: {error}")
            raise SystemExit(1) from error

    @asynccontextmanager
    async def _showing_life(self) -> AsyncIterator[None]:
        """Tell Prefect's health check for as long as the event loop works; it asks another thread."""

        async def show() -> None:
            while True:
                self._last_polled_time = datetime.now(timezone.utc)
                await asyncio.sleep(_LIFE_SECONDS)

        async with supervised(nothing) as supervisor:
            supervisor.supervise(BackgroundTask("health check", show, vital=False))
            yield

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
