"""In-memory GPUs: `InMemoryGpus`, the fake of `prefect_launch.agent.devices.gpus.NvmlProbe`."""

from __future__ import annotations

from prefect_launch.agent.devices.allocations import Gpu
from prefect_launch.agent.devices.gpus import GpuInfo


class InMemoryGpus:
    """A machine's GPUs, with the processes that hold them.

    Args:
        count: how many there are.

    Attributes:
        users: by a GPU's index, the ids of the processes that compute on it; set it as the test wants.
        looks: how often somebody has looked.
        away: why the driver does not answer; set it as the test wants, an empty text for a driver that does.
    """

    def __init__(self, count: int) -> None:
        self.gpus = tuple(Gpu(index=str(index), uuid=f"GPU-{index:08x}", name="Test GPU") for index in range(count))
        self.users: dict[str, tuple[int, ...]] = {}
        self.looks = 0
        self.away = ""

    def look(self) -> GpuInfo:
        """Look at the GPUs."""
        self.looks += 1
        if self.away:
            return GpuInfo(note=self.away, is_away=True)
        return GpuInfo(gpus=self.gpus, users=dict(self.users), note="" if self.gpus else "none in memory")
