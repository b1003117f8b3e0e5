"""The server's event stream: what wakes an agent long before its next poll.

An event says "look", never what is so: it is sent before the server has committed the change, and one can be missed
while there is no connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.errors import ServerUnavailableError

if TYPE_CHECKING:
    from prefect.events.filters import EventFilter

_ITEM_RESOURCE: Final = "prefect.flow-run."
_VARIABLE_EVENTS: Final = ("prefect.variable.created", "prefect.variable.updated", "prefect.variable.deleted")


class EventCalls:
    """Streams of events; each is a connection of its own."""

    api_url: str

    async def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[str]:
        """Yield an empty text once the stream is open, then the id of an item of these pools whenever one is queued or
        asked to stop.

        What happened before the empty text may not be told: ask for it then. An event comes before the server has
            committed the change. The iterator ends when the server closes the connection.

        Raises:
            ServerUnavailableError: when the event stream cannot be reached, or breaks.
        """
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(
            event=EventNameFilter(prefix=["prefect.flow-run."]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}" for pool_id in pool_ids]),
            resource=EventResourceFilter(
                labels=ResourceSpecification({"prefect.state-type": ["SCHEDULED", "CANCELLING"]})
            ),
        )
        async for event in self._watch(wanted):
            yield "" if event is None else event.resource.id.removeprefix(_ITEM_RESOURCE)

    async def watch_variable(self, name: str) -> AsyncIterator[str]:
        """Yield an empty text once the stream is open, then the variable's name whenever it is set or deleted.

        Servers before Prefect 3.8 do not tell. As for `watch_pools`, an event comes before the change is committed.

        Raises:
            ServerUnavailableError: when the event stream cannot be reached, or breaks.
        """
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(
            event=EventNameFilter(name=list(_VARIABLE_EVENTS)),
            resource=EventResourceFilter(labels=ResourceSpecification({"prefect.resource.name": [name]})),
        )
        async for event in self._watch(wanted):
            yield "" if event is None else name

    async def _watch(self, wanted: EventFilter) -> AsyncIterator[Any]:
        """Yield `None` once the stream is open, then each event."""
        from prefect.events.clients import PrefectEventSubscriber
        from websockets.exceptions import WebSocketException

        try:
            async with PrefectEventSubscriber(
                api_url=self.api_url, filter=wanted, reconnection_attempts=0
            ) as subscriber:
                yield None
                async for event in subscriber:
                    yield event
        except (OSError, WebSocketException) as error:
            raise ServerUnavailableError(
                f"The event stream of the Prefect server at {self.api_url} cannot be read"
                f" ({type(error).__name__}: {error}). Connect again, and ask the server for what waits meanwhile."
            ) from error
