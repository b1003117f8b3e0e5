"""Device allocator: gives out the machine's GPUs, CPUs and memory to items, before they are claimed.

The queue poller calls `try_reserve` for each item that a poll shows. An item that fits holds its devices from then on,
until `release`. One that does not fit goes on the wait list and is not claimed, even when it can never fit: a driver
or a GPU may come back, and other agents may start. Only if the queue sets `fail_impossible_after`, such an
item is let through, so that its attempt fails with the reason. `attach_devices` writes the allocation into the run's
plan and into a label on the run. After a restart `restore` reads it back from that label.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.devices.allocations import (
    Allocation,
    Allocations,
    Capacity,
    Denied,
    DeviceRequest,
    read_device_request,
)
from prefect_launch.agent.devices.gpus import GpuInfo, GpuLoad, GpuProbe, GpuWatch, NvmlProbe, names_of, read_capacity
from prefect_launch.agent.devices.wait_list import DeviceWaitList
from prefect_launch.agent.log_notes import write_log_note
from prefect_launch.core.names import short_id
from prefect_launch.core.units import format_duration
from prefect_launch.errors import AgentConfigError, LaunchError, OperatorError, SpecError
from prefect_launch.planning.item_options import merged_options
from prefect_launch.planning.plan import save_plan
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.agent_status import read_statuses
from prefect_launch.runners.base import Labels, Runner, RunPlan
from prefect_launch.runners.option_values import visible_gpus
from prefect_launch.server.values import Item
from prefect_launch.settings.agent_config import NONE
from prefect_launch.spec.item_parameters import is_scheduler, spec_of
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.settings.agent_config import AgentConfig

log = logging.getLogger(__name__)

#: One probe serves all items of a poll.
_READ_SECONDS: Final = 1.0
#: For how long it is taken as known which agents serve a queue: many items of a poll may ask.
_ALONE_SECONDS: Final = 5.0
#: Of the items that can never fit for the same reason, so many get a log note.
_MOST_NOTED: Final = 20
#: How many items' requests are remembered.
_REMEMBERED: Final = 2000
_ONLINE: Final = "ONLINE"
_RANKS: Final = {priority.work_queue: int(priority) for priority in Priority}


class DevicesBusyError(OperatorError):
    """The devices of a claimed item are not free after all: the item goes back into its queue."""


class DeviceAllocator:
    """Allocates the devices of one agent.

    Args:
        config: the agent's.
        session: its connection.
        runner: returns its runner of a resource.
        probe: reads the GPUs; by default NVIDIA's driver.
    """

    def __init__(
        self, config: AgentConfig, session: Session, runner: Callable[[str], Runner], probe: GpuProbe | None = None
    ) -> None:
        self._config = config
        self._session = session
        self._runner = runner
        self._gpus = GpuWatch(probe or NvmlProbe())
        self._seen = GpuInfo()
        self._read_at = float("-inf")
        self._allocations = Allocations()
        #: What the other agents can give that are online, by queue (`None`: not known), and when that was read.
        self._others: dict[str, tuple[float, tuple[Capacity | None, ...]]] = {}
        #: Since when no other agent could ever give what is asked for; infinite when one could.
        self._alone: dict[tuple[str, DeviceRequest], float] = {}
        #: How many items do not fit, by what they request and whether they never will.
        self._denials: dict[tuple[str, DeviceRequest, bool], int] = {}
        #: Items that were let in only to be failed, and after how many seconds.
        self._to_fail: dict[UUID, float] = {}
        self._wait_list = DeviceWaitList(config.device_patience_seconds)
        #: What items ask for, with the queue's config that it was read under; without one, it is known for certain.
        self._requests: dict[UUID, tuple[QueueConfig | None, DeviceRequest]] = {}

    async def open(self) -> None:
        """Read what the machine has.

        Raises:
            AgentConfigError: when the agent's settings name a GPU that is not there.
        """
        config = self._config
        seen = GpuInfo() if config.gpus == NONE else await self._gpus.read()
        self._allocations = Allocations(capacity=read_capacity(config.gpus, config.cpus, config.memory, seen))
        if config.gpus != NONE:
            self._note(seen)

    @property
    def allocations(self) -> Allocations:
        """What each item holds now."""
        return self._allocations

    @property
    def wait_list(self) -> DeviceWaitList:
        """The items that wait for devices."""
        return self._wait_list

    # --- for the queue poller ---

    async def try_reserve(self, queue: str, item: Item) -> bool:
        """Reserve what an item asks for; whether the item may be claimed now.

        Raises:
            LaunchError: when the server does not answer.
        """
        request = await self._request_of(queue, item)
        if request.is_nothing:
            return True
        busy = await self._busy(request)
        rank = _RANKS.get(item.work_queue_name or "", int(Priority.MEDIUM))
        kept = self._wait_list.reserved_from(item.id, rank, lambda other: self._could_have(other, busy))
        found = self._allocations.without(str(item.id)).allocate(request, busy=busy, reserved=kept)
        if isinstance(found, Allocation):
            self._allocations = self._allocations.holding(str(item.id), found)
            self._wait_list.leave(item.id)
            return True
        if self._wait_list.wait(item.id, queue, request, rank, found.reason):
            await self._explain(queue, item, request, found)
        return found.never and await self._must_fail(queue, item, request)

    def sync_waiting(self, queue: str, shown: Collection[UUID]) -> None:
        """Drop from the wait list what a poll of the queue does not show any more."""
        self._wait_list.sync_waiting(queue, shown)
        asked = {(one.queue, one.request) for one in self._wait_list.waiting}
        self._denials = {key: count for key, count in self._denials.items() if key[0] != queue or key[:2] in asked}
        self._alone = {key: since for key, since in self._alone.items() if key[0] != queue or key in asked}
        held = {UUID(holder) for holder in self._allocations.held}
        # What is known for certain is kept while the item goes back into its queue; to lose it costs one claim more.
        keeps = len(self._requests) < _REMEMBERED
        kept = {
            one for one, (config, _) in self._requests.items() if one in shown or one in held or (keeps and not config)
        }
        self._requests = {one: self._requests[one] for one in kept}

    def release(self, item_id: UUID | str) -> None:
        """Free what an item holds: it has ended, or was not claimed."""
        self._to_fail.pop(UUID(str(item_id)), None)
        self._allocations = self._allocations.without(str(item_id))

    # --- for an attempt ---

    async def attach_devices(self, item_id: UUID, runner: Runner, plan: RunPlan) -> RunPlan:
        """Return the plan of a claimed item with its devices in it.

        Raises:
            SpecError: when this machine can never give what the item asks for, and its queue fails such an item.
            DevicesBusyError: when it cannot give it now.
        """
        if not runner.uses_this_machine:
            return plan
        request = read_device_request(plan.options)
        allocation = self._allocations.held.get(str(item_id))
        if allocation is None or self._requests.get(item_id, (None, None))[1] != request:
            allocation = await self._allocate(item_id, request)
        self._wait_list.leave(item_id)
        if request.is_nothing and not self._gives_gpus:
            return plan
        labels = {**plan.labels, Labels.DEVICES: allocation.as_label()}
        plan = plan.model_copy(update={"labels": plan.labels if request.is_nothing else labels})
        if self._gives_gpus and not (request.gpus.is_none and _is_chosen_by_hand(plan)):
            plan = runner.give_gpus(plan, allocation.gpus)
        await anyio.to_thread.run_sync(save_plan, plan)
        return plan

    def restore(self, item_id: UUID, labels: Mapping[str, str]) -> None:
        """Restore the allocation of a run that was found again, from its label."""
        text = labels.get(Labels.DEVICES)
        allocation = Allocation.from_label(text) if text else None
        if allocation is not None:
            self._allocations = self._allocations.holding(str(item_id), allocation)
        elif text:
            log.warning("%s its label %s is not one that an agent writes: %r", item_id, Labels.DEVICES, text)

    async def loads_of(self, item_id: UUID) -> Mapping[str, GpuLoad]:
        """Return how busy each GPU is that an item holds, by its index: no other item holds it."""
        allocation = self._allocations.held.get(str(item_id))
        return await self._gpus.read_loads(allocation.gpus) if allocation is not None and allocation.gpus else {}

    # --- for people ---

    def gpus_of(self, item_id: UUID) -> str:
        """Say which GPUs an item holds, such as `GPUs 0,1`; an empty text for none."""
        allocation = self._allocations.held.get(str(item_id), Allocation())
        return f"GPU{'s' if len(allocation.gpus) > 1 else ''} {','.join(allocation.gpus)}" if allocation.gpus else ""

    def describe(self) -> str:
        """Say who holds each GPU, as it was last seen; an empty text when there is none."""
        if not self._allocations.capacity.is_known:
            return f"GPUs unknown: {self._allocations.capacity.note}"
        return "; ".join(f"GPU {gpu.index} {self._use_of(gpu.index)}" for gpu in self._allocations.capacity.gpus)

    # --- inside ---

    @property
    def _gives_gpus(self) -> bool:
        """Whether it gives out GPUs, or will when the driver answers: what asks for none must not see them."""
        return bool(self._allocations.capacity.gpus) or not self._allocations.capacity.is_known

    def _use_of(self, gpu: str) -> str:
        holder = self._allocations.holder_of(gpu)
        if holder is not None:
            return f"of {short_id(holder)}"
        why = self._in_the_way(gpu)
        return f"skipped: it {why}" if why else "free"

    async def _allocate(self, item_id: UUID, request: DeviceRequest) -> Allocation:
        """Allocate what an attempt asks for, when that differs from what was reserved at its claim."""
        busy = await self._busy(request)
        found = self._allocations.without(str(item_id)).allocate(request, busy=busy)
        if isinstance(found, Allocation):
            self._requests[item_id] = (None, request)
            if not request.is_nothing:
                self._allocations = self._allocations.holding(str(item_id), found)
            return found
        after = self._to_fail.get(item_id)
        self.release(item_id)
        if found.never and after is not None:
            raise SpecError(
                f"{found.reason} No other agent was online that has as much for {format_duration(after)}, after which"
                " its queue fails such an item. Ask for less, or start an agent on a machine that has it."
            )
        self._requests[item_id] = (None, request)
        raise DevicesBusyError(f"Waits for devices: {found.reason}")

    async def _request_of(self, queue: str, item: Item) -> DeviceRequest:
        config = (await self._session.queue(queue)).config
        known = self._requests.get(item.id)
        if known is None or known[0] not in (None, config):
            self._requests[item.id] = known = (config, self._read(queue, item, config))
        return known[1]

    def _read(self, queue: str, item: Item, config: QueueConfig) -> DeviceRequest:
        """Read what an item will request, as far as it is known without resolving its job or a secret."""
        try:
            if is_scheduler(item) or not self._runner(config.resource).uses_this_machine:
                return DeviceRequest()
            spec = spec_of(item)
            # Checked, too: what its queue refuses waits for no device.
            return read_device_request(merged_options(config, spec, queue, macros={}, secrets={}))
        except LaunchError as error:
            # What is wrong with it is for its execution to say, once it is claimed.
            log.debug("%s asks for what cannot be read: %s", item.id, error)
            return DeviceRequest()

    async def _busy(self, request: DeviceRequest) -> Mapping[str, str]:
        """Return what is in the way of the GPUs that no item of ours holds."""
        if self._config.gpus == NONE or (request.gpus.is_none and self._wait_list.is_empty):
            return {}
        if time.monotonic() - self._read_at > _READ_SECONDS:
            await self._read_gpus()
        capacity = self._allocations.capacity
        free = [gpu.index for gpu in capacity.gpus if self._allocations.holder_of(gpu.index) is None]
        return {gpu: why for gpu in free if (why := self._in_the_way(gpu))}

    def _in_the_way(self, gpu: str) -> str:
        if gpu in self._seen.users:
            return f"is held by a foreign {names_of(self._seen.users[gpu])}"
        if self._seen.is_away:
            return f"cannot be seen: {self._seen.note}"
        return "" if any(one.index == gpu for one in self._seen.gpus) else "is not shown by the driver any more"

    async def _read_gpus(self) -> None:
        """Read the GPUs: a new one can be allocated from now on."""
        self._note(await self._gpus.read())
        if self._seen.is_away:
            return
        capacity, config = self._allocations.capacity, self._config
        try:
            seen = read_capacity(config.gpus, config.cpus, config.memory, self._seen)
        except AgentConfigError as error:
            if not capacity.is_known and capacity.note != str(error):
                log.error("no GPU is given out: %s", error)
                self._allocations = self._allocations.model_copy(
                    update={"capacity": capacity.model_copy(update={"note": str(error)})}
                )
            return
        self._allocations = self._allocations.model_copy(
            update={"capacity": capacity.with_new(seen) if capacity.is_known else seen}
        )

    def _note(self, seen: GpuInfo) -> None:
        """Keep what was read, and log what has changed."""
        before, self._seen = self._seen, seen
        self._read_at = time.monotonic()
        if seen.is_away and not before.is_away:
            log.warning("GPUs away: items that ask for one wait. %s", seen.note)
        elif before.is_away and not seen.is_away:
            log.info("GPUs back: %d", len(seen.gpus))
        for gpu, users in seen.users.items():
            if self._allocations.holder_of(gpu) is None and gpu not in before.users:
                log.warning("GPU %s is skipped while a foreign %s holds it", gpu, names_of(users))

    def _could_have(self, request: DeviceRequest, busy: Mapping[str, str]) -> bool:
        """Whether an ask can be met once all that runs here has ended."""
        return isinstance(Allocations(capacity=self._allocations.capacity).allocate(request, busy=busy), Allocation)

    async def _must_fail(self, queue: str, item: Item, request: DeviceRequest) -> bool:
        """Whether an item that can never fit here is to be failed, as its queue's owner has asked for."""
        after = (await self._session.queue(queue)).config.fail_impossible_after
        since = self._wait_list.since(item.id)
        if after is None or since is None:
            return False
        is_so = time.monotonic() - max(since, await self._alone_since(queue, request)) >= after
        if is_so:
            self._to_fail[item.id] = after
        return is_so

    async def _alone_since(self, queue: str, request: DeviceRequest) -> float:
        """Return since when no other agent was online for a queue that could ever give what is asked for.

        Infinite when one is: also one that does not report what it has, or whose driver does not answer.
        """
        read_at, others = self._others.get(queue, (float("-inf"), ()))
        now = time.monotonic()
        if now - read_at > _ALONE_SECONDS:
            others = await self._others_of(queue)
            self._others[queue] = (now, others)
        could = any(one is None or Allocations(capacity=one).can_ever_allocate(request) for one in others)
        since = float("inf") if could else min(self._alone.get((queue, request), now), now)
        self._alone[queue, request] = since
        return since

    async def _others_of(self, queue: str) -> tuple[Capacity | None, ...]:
        """Read what the other agents can give that are online for a queue."""
        server = self._session.server
        workers = await server.list_workers(queue)
        names = {one.name for one in workers if one.status == _ONLINE} - {self._config.name}
        statuses = await read_statuses(server) if names else {}
        return tuple(Capacity.from_data(statuses[name].capacity) if name in statuses else None for name in names)

    async def _explain(self, queue: str, item: Item, request: DeviceRequest, denied: Denied) -> None:
        """Log why items wait, once a cause; say on an item's own page that this agent can never run it.

        Thousands may wait for one cause: only the first get a note. `item show` explains any of them.
        """
        cause = (queue, request, denied.never)
        count = self._denials.get(cause, 0)
        self._denials[cause] = count + 1
        if not count:
            log.info("waits-for-devices %s (and all of %s that ask for as much): %s", item.id, queue, denied.reason)
        if not denied.never or count >= _MOST_NOTED:
            return
        after = (await self._session.queue(queue)).config.fail_impossible_after
        then = (
            "waits until one can"
            if after is None
            else f"fails when none that can is online for {format_duration(after)}"
        )
        message = (
            f"The agent {self._config.name} cannot run this: {denied.reason} It is left to the queue's other agents,"
            f" and {then}."
        )
        try:
            await write_log_note(self._session.server, item.id, message)
        except LaunchError as error:
            log.debug("%s wait-note failed: %s", item.id, error)


def _is_chosen_by_hand(plan: RunPlan) -> bool:
    """Whether the queue, or who submitted it, sets which GPUs the job sees, and asks the agent for none."""
    return not visible_gpus(()).keys().isdisjoint(plan.options.get("env", {}))
