"""Handle on a flow run of the server (`ItemHandle`): what one on an item and one on a sweep have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item


class ItemHandle(ABC):
    """Handle on a flow run of the server.

    Attributes:
        id: of the flow run (a UUID as text).
        name: the flow run's.
    """

    def __init__(self, api: Api, item: Item) -> None:
        self._api = api
        self._id = item.id
        self.id = str(item.id)
        self.name = item.name

    @abstractmethod
    async def _item(self, session: Session) -> Item:
        """Read the flow run.

        Raises:
            NotFoundError: when it was deleted.
        """

    @property
    def url(self) -> str:
        """Its page in the UI."""
        return f"{self._api.ui_url}/runs/flow-run/{self.id}"

    @property
    def item(self) -> Item:
        """Its flow run as it is now.

        Raises:
            NotFoundError: when it was deleted.
        """
        return self._api.call(self._item)

    async def aitem(self) -> Item:
        """`item` for async code."""
        return await self._api.acall(self._item)

    @property
    def state(self) -> str:
        """Name of its state, in lower case: `queued`, `pending`, `running`, `paused`, `completed`, `failed`, …"""
        return (self.item.state_name or "unknown").lower()

    @property
    def message(self) -> str:
        """Why it is in its state."""
        return self.item.message
