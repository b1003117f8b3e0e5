"""Hook that attaches the machine's devices to a run, and says in its item's state which it holds."""

from __future__ import annotations

from prefect_launch.agent.item.attempt import Hook


class AttachDevices(Hook):
    """Attaches the devices that an item asks for; the agent's allocator takes them back when the run has ended."""

    async def plan(self) -> None:
        attempt = self.attempt
        devices = attempt.context.devices
        attempt.record(plan=await devices.attach_devices(attempt.item.id, attempt.runner, attempt.plan))

    def holds(self) -> str:
        return self.attempt.context.devices.gpus_of(self.attempt.item.id)
