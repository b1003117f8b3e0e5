"""GPUs in memory: `InMemoryCards`, the twin of `prefect_launch.agent.devices.gpus.NvmlReader`."""

from __future__ import annotations

from prefect_launch.agent.devices.allocations import Card
from prefect_launch.agent.devices.gpus import Cards


class InMemoryCards:
    """A machine's GPUs, with the processes that hold them.

    Args:
        count: how many there are.

    Attributes:
        users: by a card's index, the ids of the processes that compute on it; set it as the test wants.
        looks: how often somebody has looked.
        away: why the driver does not answer; set it as the test wants, an empty text for a driver that does.
    """

    def __init__(self, count: int) -> None:
        self.cards = tuple(Card(index=str(index), uuid=f"GPU-{index:08x}", name="Test GPU") for index in range(count))
        self.users: dict[str, tuple[int, ...]] = {}
        self.looks = 0
        self.away = ""

    def look(self) -> Cards:
        """Look at the cards."""
        self.looks += 1
        if self.away:
            return Cards(note=self.away, is_away=True)
        return Cards(cards=self.cards, users=dict(self.users), note="" if self.cards else "none in memory")
