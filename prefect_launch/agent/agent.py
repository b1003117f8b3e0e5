"""`LaunchAgent`: claims items of its queues, runs them on this machine, and reports them.

The loop knows only claim, start, watch, finish. What it finds it hands to an `ItemLifecycle`; what is not in its
memory it finds again by labels (`prefect_launch.agent.recovery.restart`). Work outlives the loop: the next agent of the
same name goes on with it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID, uuid4

import anyio

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.devices.gpus import GpuProbe
from prefect_launch.agent.item.finish import check_sweep, fail_item, fail_with_agent_error
from prefect_launch.agent.item.lifecycle import ItemLifecycle
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import hold_agent_name, home_id
from prefect_launch.agent.item.running_items import RunningItem, RunningItems, is_scheduler
from prefect_launch.agent.item.transitions import retry_until_available
from prefect_launch.agent.loop import Loop
from prefect_launch.agent.polling.events import WakeEvent
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.agent.reporting.shutdown import DrainState
from prefect_launch.core.states import ItemState
from prefect_launch.core.terminal import sanitize_log_lines
from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.queues.holder import Holder
from prefect_launch.runners.base import Phase, Runner
from prefect_launch.server.values import Item
from prefect_launch.settings.agent_config import AgentConfig, parse_agent_config
from prefect_launch.spec.item_parameters import options_of
from prefect_launch.spec.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.client.api import Api

log = logging.getLogger(__name__)

#: Free slots that an agent without a limit polls for.
_MANY: Final = 50
_NOT_CONNECTED: Final = "The agent is not connected: use it inside 'async with agent.connected():', or run its loop()."


class LaunchAgent:
    """Runs the items of queues on this machine.

    Args:
        api: the server.
        config: an `AgentConfig`, or a mapping of its settings.
        runners: ready-made runners, by resource, in the place of the ones that it would make.
        gpu_probe: reads the GPUs of this machine; by default through the NVIDIA driver.

    Raises:
        AgentConfigError: for a wrong setting.
    """

    _latest: ClassVar[LaunchAgent | None] = None

    def __init__(
        self,
        api: Api,
        config: AgentConfig | Mapping[str, Any],
        *,
        runners: Mapping[str, Runner] | None = None,
        gpu_probe: GpuProbe | None = None,
    ) -> None:
        self.config = config if isinstance(config, AgentConfig) else parse_agent_config(config)
        # What a short job name means to this agent: items that other programs have made may hold one.
        self.api = api if self.config.entity is None else api.model_copy(update={"entity": self.config.entity})
        self.status = "POLLING"
        self.wake = WakeEvent()
        sanitize_log_lines()
        self.running_items = RunningItems(self.finish_thread_id)
        self.shutdown = DrainState(self.wake)
        self._runners = dict(runners or {})
        self._gpu_probe = gpu_probe
        self._context: AgentContext | None = None
        self._poller: QueuePoller | None = None
        LaunchAgent._latest = self

    # --- what the reference's callers ask ---

    @classmethod
    def name(cls) -> str:
        """Return the name of the agent that was made last in this process.

        Raises:
            LaunchError: when there is none.
        """
        if cls._latest is None:
            raise LaunchError("LaunchAgent has not been initialized: make one with LaunchAgent(api, config).")
        return cls._latest.config.name

    @classmethod
    def initialized(cls) -> bool:
        """Whether an agent was made in this process."""
        return cls._latest is not None

    @property
    def thread_ids(self) -> list[str]:
        """Ids of the items in work."""
        return self.running_items.thread_ids

    @property
    def num_running_jobs(self) -> int:
        """How many items are in work, schedulers left out."""
        return self.running_items.count(schedulers=False)

    @property
    def num_running_schedulers(self) -> int:
        """How many sweep schedulers are in work."""
        return self.running_items.count(schedulers=True)

    @cached_property
    def holder(self) -> Holder:
        """Who claims: this life of the agent, on this machine. Reads the home's id at the first use."""
        home = home_id(self.config.home)
        return Holder(agent=self.config.name, instance=uuid4().hex, host=socket.gethostname(), home=home)

    def print_status(self) -> None:
        """Log what the agent does, in one line."""
        running, most = self.num_running_jobs, self.config.max_jobs
        polling = f"polling on queues {','.join(self.config.queues)}, " if running < most else ""
        more = self._context.describe() if self._context else ""
        done = f"running {running} out of a maximum of {most:g} jobs{more and '; '}{more}"
        log.info("agent %s %s%s", self.config.name, polling, done)

    async def update_status(self, status: str) -> None:
        """Set the agent's status: POLLING, RUNNING or KILLED. A killed agent is taken off its queues' lists."""
        self.status = status
        if status == "KILLED":
            for queue in self.config.queues:
                await self.context.session.server.delete_worker(queue, self.config.name)

    # --- a connection ---

    @property
    def context(self) -> AgentContext:
        """What its executions share, while it is connected."""
        if self._context is None:
            raise LaunchError(_NOT_CONNECTED)
        return self._context

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[LaunchAgent]:
        """Open the agent's connection, for use of its methods without its loop.

        Raises:
            AgentConfigError: when the agent has no queue.
            NotFoundError: when one of its queues does not exist.
        """
        if not self.config.queues:
            raise AgentConfigError(
                "To launch an agent please specify a queue or a list of queues (queues: […], or -q QUEUE)."
            )
        async with self.api.open() as session:
            self._context = AgentContext(self.config, session, dict(self._runners), gpu_probe=self._gpu_probe)
            self._context.slot_freed = self._slot_freed
            await self._context.devices.open()
            await anyio.to_thread.run_sync(lambda: self.holder)
            opens, devices = self._context.runner_health.is_open, self._context.devices
            self._poller = QueuePoller(
                session, self.config.queues, self.holder, devices, opens, self.config.poll_seconds
            )
            try:
                yield self
            finally:
                await self._context.aclose()
                self._context = self._poller = None

    # --- taking items in ---

    async def pop_from_queue(self, queue: str) -> Item | None:
        """Claim the next item of a queue; `None` when there is none.

        Raises:
            LaunchError: when the server does not answer, or the agent has no such queue.
        """
        return await self.poller.pop(
            queue, slots=self.free_slots, skip=self.running_items.held, schedulers=self.takes_schedulers
        )

    async def get_job_and_queue(self) -> tuple[Item, str] | None:
        """Claim the next item of the first queue in turn that has one; its turn comes last then."""
        return await self.poller.next(
            slots=self.free_slots, skip=self.running_items.held, schedulers=self.takes_schedulers
        )

    @property
    def free_slots(self) -> int:
        """How many jobs it could start now."""
        free = min(self.config.max_jobs - self.num_running_jobs, _MANY)
        return 0 if self.shutdown.draining else max(0, int(free))

    @property
    def takes_schedulers(self) -> bool:
        """Whether it could start a sweep's scheduler now."""
        return self.num_running_schedulers < self.config.max_schedulers

    # --- working on them ---

    async def run_job(self, job: Item, queue: str, file_saver: Path | None = None) -> None:
        """Start to work on a claimed item; returns at once.

        Args:
            job: the item.
            queue: its queue.
            file_saver: folder that gets an `error.log` when the agent itself fails over the item.
        """
        running_item = RunningItem(item=job, queue=queue, is_scheduler=is_scheduler(job), file_saver=file_saver)
        self.running_items.begin(
            running_item, lambda: self.task_run_job(options_of(job), job, {}, self.api, running_item)
        )

    async def task_run_job(
        self,
        launch_spec: Mapping[str, Any],
        job: Item,
        default_config: Mapping[str, Any],
        api: Api,
        job_tracker: RunningItem,
    ) -> None:
        """Work on one claimed item until its end, which always goes through `finish_thread_id`.

        Args:
            launch_spec: the item's parameters; when their sweep has ended, the item is refused.
            job: the item.
            default_config: kept for callers of the reference's library.
            api: the server.
            job_tracker: of the item.
        """

        async def work() -> Outcome:
            try:
                await retry_until_available("show the sweep", lambda: self.check_sweep_state(launch_spec, api))
            except LaunchError as error:
                await self.fail_run_queue_item(str(job.id), str(error), Phase.AGENT.value)
                return Outcome(state=ItemState.FAILED, message=str(error))
            return await ItemLifecycle(self.context, job_tracker).run()

        await self.running_items.do(job_tracker, work)

    async def finish_thread_id(self, thread_id: str, exception: BaseException | None = None) -> None:
        """Be done with an item: its slot is free, and the loop looks for the next.

        Args:
            thread_id: the item's id.
            exception: what the agent failed over, if it did; the item is ended as failed in the phase `agent`.
        """
        try:
            if exception is not None:
                await fail_with_agent_error(self.context, thread_id, self.running_items.find(thread_id), exception)
        finally:
            self.running_items.forget(thread_id)
            if self._poller is not None:
                self._poller.note_freed_slot(thread_id)
            self.wake.set()

    def _slot_freed(self, thread_id: str) -> None:
        """Free the slot and the devices of an item whose run has ended, or waits in a cluster."""
        if self._poller is not None:
            self._poller.note_freed_slot(thread_id)
        self.wake.set()

    async def fail_run_queue_item(
        self, run_queue_item_id: str, message: str, phase: str, files: Sequence[str | Path] | None = None
    ) -> None:
        """End an item as failed.

        Args:
            run_queue_item_id: the item's id.
            message: why.
            phase: `agent`, `build` or `run`.
            files: files that are kept with the item's outputs.
        """
        await fail_item(self.context.session, UUID(run_queue_item_id), message, Phase(phase), files)

    async def check_sweep_state(self, launch_spec: Mapping[str, Any] | LaunchSpec, api: Api) -> None:
        """Refuse an item whose sweep has ended.

        A sweep is a flow run; an id that is none is only a label, and refuses nothing.

        Raises:
            LaunchError: when the sweep is in a terminal state.
        """
        sweep = launch_spec.sweep_id if isinstance(launch_spec, LaunchSpec) else launch_spec.get("sweep_id")
        await check_sweep(self.context.session.server, sweep)

    # --- the loop ---

    async def loop(self, *, until_empty: bool = False, max_runtime_seconds: float | None = None) -> None:
        """Take items in and run them, until it is told to stop.

        What runs when the loop ends goes on, and the next agent of this name takes it up.

        Args:
            until_empty: end when the queues hold nothing and all work is done.
            max_runtime_seconds: end after this time.

        Raises:
            AgentConfigError: when the agent has no queue, or another of its name runs on this machine.
            NotFoundError: when one of its queues does not exist.
            KeyboardInterrupt: when it is asked to stop by the keyboard.
            BackgroundTaskError: when a background task that it cannot do without fails again and again; it has let go
                of its items in order by then.
        """
        async with hold_agent_name(self.config.home, self.config.name), AsyncExitStack() as stack:
            await retry_until_available("let the agent in", lambda: stack.enter_async_context(self.connected()))
            await Loop(self, until_empty=until_empty, max_runtime_seconds=max_runtime_seconds).run()

    def stop(self) -> None:
        """Ask the loop to end; what runs goes on."""
        self.shutdown.leave()

    @property
    def poller(self) -> QueuePoller:
        """How it comes by items, while it is connected."""
        if self._poller is None:
            raise LaunchError(_NOT_CONNECTED)
        return self._poller
