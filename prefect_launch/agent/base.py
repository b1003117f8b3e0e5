"""Base of an agent: its connection, its slots, its active items, and its requests to drain or to leave.

The loop (`prefect_launch.agent.loop`) and the status report use this; `LaunchAgent` adds the work on items.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

import anyio

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.devices.gpus import GpuProbe
from prefect_launch.agent.item.finish import fail_with_agent_error
from prefect_launch.agent.item.ownership import home_id
from prefect_launch.agent.item.running_items import RunningItems
from prefect_launch.agent.open_files import raise_open_files_limit
from prefect_launch.agent.polling.events import WakeEvent
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.agent.polling.sweep_gate import SweepGate
from prefect_launch.core.terminal import sanitize_log_lines
from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.queues.presence import Holder
from prefect_launch.runners.base import Runner
from prefect_launch.server.values import Item
from prefect_launch.settings.agent_config import AgentConfig, parse_agent_config

if TYPE_CHECKING:
    from typing_extensions import Self

    from prefect_launch.client.api import Api

log = logging.getLogger(__name__)

#: Free slots that an agent without a limit polls for.
_MANY: Final = 50
_NOT_CONNECTED: Final = "The agent is not connected: use it inside 'async with agent.connected():', or run its loop()."


class DrainState:
    """Requests to one agent to drain or to leave.

    Args:
        wake: is set at every new request.

    Attributes:
        has_begun: whether its server has answered, so that it sees what its last life has left unfinished.
        at_work: whether its loop has begun to take items.
        stopping: leave now; its runs continue.
        stops_jobs: when it leaves, what runs is stopped.
        drain_requested: somebody has asked through the server that it drain.
        ends_when_drained: a scheduled run that has drained ends before its time.
    """

    def __init__(self, wake: WakeEvent) -> None:
        self._wake = wake
        self._drains_here = False
        self.has_begun = False
        self.at_work = False
        self.stopping = False
        self.stops_jobs = False
        self.drain_requested = False
        self.ends_when_drained = False

    @property
    def draining(self) -> bool:
        """Whether it takes no more items."""
        return self._drains_here or self.drain_requested

    def drain(self) -> None:
        """Take no more items; leave when all active items have ended."""
        self._drains_here = True
        self._wake.set()

    def set_drain_request(self, wanted: bool, *, ends_when_drained: bool = False) -> None:
        """Note what the drain request on the server says now."""
        if (wanted, ends_when_drained) != (self.drain_requested, self.ends_when_drained):
            self.drain_requested, self.ends_when_drained = wanted, ends_when_drained
            self._wake.set()

    def leave(self, *, stop_jobs: bool = False) -> None:
        """Leave now.

        Args:
            stop_jobs: stop the runs; otherwise they continue.
        """
        self.stopping = True
        self.stops_jobs = stop_jobs
        self._wake.set()


class BaseAgent(ABC):
    """An agent without its work on items: its connection, its slots, and its active items.

    `LaunchAgent` says what it is made from.
    """

    _latest: ClassVar[BaseAgent | None] = None

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
        BaseAgent._latest = self

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
        """Ids of the active items."""
        return self.running_items.thread_ids

    @property
    def num_running_jobs(self) -> int:
        """How many items are active, schedulers left out."""
        return self.running_items.count(schedulers=False)

    @property
    def num_running_schedulers(self) -> int:
        """How many sweep schedulers are active."""
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
    def poller(self) -> QueuePoller:
        """Polls the queues and claims items, while the agent is connected."""
        if self._poller is None:
            raise LaunchError(_NOT_CONNECTED)
        return self._poller

    @property
    def context(self) -> AgentContext:
        """What its executions share, while it is connected."""
        if self._context is None:
            raise LaunchError(_NOT_CONNECTED)
        return self._context

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Self]:
        """Open the agent's connection, for use of its methods without its loop.

        Raises:
            AgentConfigError: when the agent has no queue.
            NotFoundError: when one of its queues does not exist.
        """
        if not self.config.queues:
            raise AgentConfigError(
                "To launch an agent please specify a queue or a list of queues (queues: […], or -q QUEUE)."
            )
        raise_open_files_limit(self.config)
        async with self.api.open() as session:
            self._context = AgentContext(self.config, session, dict(self._runners), gpu_probe=self._gpu_probe)
            self._context.slot_freed = self._slot_freed
            await self._context.devices.open()
            await anyio.to_thread.run_sync(lambda: self.holder)
            opens, gate = self._context.runner_health.is_open, SweepGate(self._context.sweeps, self._context.devices)
            self._poller = QueuePoller(session, self.config.queues, self.holder, gate, opens, self.config.poll_seconds)
            try:
                yield self
            finally:
                await self._context.aclose()
                self._context = self._poller = None

    # --- items ---

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
        """Whether it could start a sweep's scheduler now, which needs no slot of a job."""
        return not self.shutdown.draining and self.num_running_schedulers < self.config.max_schedulers

    @abstractmethod
    async def run_job(self, job: Item, queue: str) -> None:
        """Start to work on a claimed item; returns at once."""

    async def finish_thread_id(self, thread_id: str, exception: BaseException | None = None) -> None:
        """Be done with an item: its slot is free, and the loop looks for the next.

        Args:
            thread_id: the item's id.
            exception: what the agent failed over, if it did; the item is ended as failed in the phase `agent`.
        """
        running_item = self.running_items.find(thread_id)
        try:
            if exception is not None:
                await fail_with_agent_error(self.context, thread_id, running_item, exception)
        finally:
            self.running_items.forget(thread_id)
            if self._poller is not None and (exception is not None or (running_item and running_item.goes_back)):
                self._poller.poll_again()  # Its event came while it was active here.
            self._slot_freed(thread_id)

    def _slot_freed(self, thread_id: str) -> None:
        """Free the slot and the devices of an item whose run has ended, or waits in a cluster."""
        if self._poller is not None:
            self._poller.note_freed_slot(thread_id)
        self.wake.set()
