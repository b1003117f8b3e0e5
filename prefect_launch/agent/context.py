"""Agent context: what all attempts of one agent share, such as its connection, runners, devices and registries."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import anyio

from prefect_launch.agent.devices.allocator import DeviceAllocator
from prefect_launch.agent.devices.gpus import GpuProbe
from prefect_launch.agent.runner_health import RunnerHealth
from prefect_launch.clouds.accounts import Clouds
from prefect_launch.queues.sweep_status import SweepStatuses
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import Runner
from prefect_launch.runners.registry import make_runner, used_resources
from prefect_launch.settings.agent_config import AgentConfig
from prefect_launch.spec.item_parameters import is_scheduler

if TYPE_CHECKING:
    from prefect_launch.builds.image_builder import ImageBuilder
    from prefect_launch.policy.template import QueueConfig
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item

#: An item that was seen to be held is taken to be for this long: until after the next check, and half the time after
#: which an agent is called lost.
TRUSTED_SECONDS: Final = 45.0
#: Six heartbeats of an agent; the same patience as for the heartbeats of items.
LOST_SECONDS: Final = 90.0
#: Runs whose outputs are copied at a time.
COPIES: Final = 2
#: The resource of a sweep's scheduler, on any queue.
SCHEDULER_RESOURCE: Final = "local-process"
#: Begins the variables by which Prefect tells a process which flow run it is.
_FLOW_VARIABLES: Final = "PREFECT__"


def resource_of_item(item: Item, config: QueueConfig) -> str:
    """Return the resource that an item of a queue runs on."""
    return SCHEDULER_RESOURCE if is_scheduler(item) else config.resource


@dataclass
class AgentContext:
    """The means of one agent.

    Attributes:
        config: the agent's.
        session: its connection.
        runners: made on first use, one a resource.
        trusted_seconds: for how long a check of an item's ownership counts: no agent is called lost that soon, and the
            next check comes within this time.
        lost_seconds: for how long another agent's heartbeats must have stood still to call it lost.
        gpu_probe: reads the GPUs of the machine.
        slot_freed: gets the id of an item that needs no slot and no devices: its run has ended, or waits elsewhere.
        copies: how many runs' outputs are kept at a time.
        clouds: who this agent is in the clouds.
        registry: the registries of images, with this agent's credentials.
        devices: allocates the machine's devices.
        runner_health: whether what the agent's queues run on answers.
        sweeps: whether items of sweeps may start.
    """

    config: AgentConfig
    session: Session
    runners: dict[str, Runner] = field(default_factory=dict)
    trusted_seconds: float = TRUSTED_SECONDS
    lost_seconds: float = LOST_SECONDS
    gpu_probe: GpuProbe | None = None
    slot_freed: Callable[[str], None] = lambda item_id: None
    copies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COPIES))

    def __post_init__(self) -> None:
        self.clouds = Clouds(self.config.clouds)
        self.registry = RemoteRegistries(self.config.keychain(self.clouds))
        self.devices = DeviceAllocator(self.config, self.session, self.runner, self.gpu_probe)
        self.runner_health = RunnerHealth(self.session, self.runner)
        self.sweeps = SweepStatuses(self.session.server)

    @cached_property
    def images(self) -> ImageBuilder:
        """Builds the images of jobs that have code and none; made, and its libraries imported, on first use."""
        from prefect_launch.builds.image_builder import ImageBuilder

        config, who = self.config, f"agent {self.config.name} on {socket.gethostname()}"
        return ImageBuilder(config.builder, config.home, who, self.registry)

    def describe(self) -> str:
        """Say who holds the machine's devices, and what cannot be reached; an empty text for neither."""
        return "; ".join(filter(None, (self.devices.describe(), self.runner_health.describe())))

    def runner(self, resource: str) -> Runner:
        """Return the agent's runner of a resource."""
        if resource not in self.runners:
            self.runners[resource] = make_runner(resource, self.config.home, self.registry, self.clouds)
            self.runners[resource].agent_environment = self.environment
            self.runners[resource].agent = self.config.name
            self.runners[resource].stop_seconds = self.config.stopped_run_timeout
        return self.runners[resource]

    async def runner_of(self, queue: str, item: Item) -> Runner:
        """Return the runner of an item of a queue, which finds what an earlier agent has made for it.

        Raises:
            LaunchError: when the queue cannot be read.
        """
        runner = self.runner(resource_of_item(item, (await self.session.queue(queue)).config))
        if item.infrastructure_pid:
            await runner.seek(item.infrastructure_pid)
        return runner

    def environment(self) -> dict[str, str]:
        """Return the environment of the agent's own programs: its own, with the server that it is connected to."""
        # A flow that the agent runs in is not theirs.
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FLOW_VARIABLES)}
        return {**own, "PREFECT_API_URL": self.session.server.api_url}

    async def resources(self) -> list[str]:
        """Return where runs of the agent's name can be: on its queues' resources, and on those that its home has used.

        Raises:
            LaunchError: when a queue cannot be read.
        """
        queues = [await self.session.queue(name) for name in self.config.queues]
        used = await anyio.to_thread.run_sync(used_resources, self.config.home)
        return sorted(used.union(queue.config.resource for queue in queues))

    def resource_of(self, runner: Runner) -> str:
        """Return the name of the resource that a runner was made for."""
        return next((name for name, one in self.runners.items() if one is runner), runner.name)

    async def aclose(self) -> None:
        """Close the runners' connections; the runs continue."""
        for runner in self.runners.values():
            await runner.aclose()
        if "images" in vars(self):
            await self.images.aclose()
