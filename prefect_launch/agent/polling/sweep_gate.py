"""Gate for items of sweeps: those of a sweep that is paused are not claimed.

They are passed over before the claim, as items that do not fit the free devices are: nothing is claimed and given back.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from prefect_launch.agent.devices.allocator import DeviceAllocator
from prefect_launch.queues.sweep_status import SweepStatuses, sweep_of
from prefect_launch.server.values import Item


class SweepGate:
    """Admission check that asks an item's sweep first, and the devices then.

    Args:
        sweeps: knows the sweeps.
        devices: of the agent.
    """

    def __init__(self, sweeps: SweepStatuses, devices: DeviceAllocator) -> None:
        self._sweeps = sweeps
        self._devices = devices

    async def try_reserve(self, queue: str, item: Item) -> bool:
        """Whether an item may be claimed now; the devices that it needs are reserved for it from here on.

        Raises:
            LaunchError: when the server does not answer.
        """
        sweep = sweep_of(item)
        if sweep is not None and (await self._sweeps.of(sweep, item.id)).held:
            self._devices.wait_list.leave(item.id)  # No device is kept for it meanwhile.
            return False
        return await self._devices.try_reserve(queue, item)

    def sync_waiting(self, queue: str, shown: Collection[UUID]) -> None:
        """Note the ids of all that a queue has waiting."""
        self._devices.sync_waiting(queue, shown)

    def release(self, item_id: UUID | str) -> None:
        """Take back what was reserved for an item."""
        self._devices.release(item_id)
