"""What is told about items: log records, artifacts, heartbeats; and the server's event stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timezone
from typing import Any, Final
from uuid import UUID, uuid4

from prefect_launch.errors import ServerUnavailableError
from prefect_launch.server.rest import Rest
from prefect_launch.server.values import Item, LogRecord

_ITEM_RESOURCE: Final = "prefect.flow-run."


class TelemetryCalls:
    """Calls about logs, artifacts and events."""

    _rest: Rest
    api_url: str

    async def write_logs(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        """Add records to an item's log."""
        body = [{**record.model_dump(mode="json"), "flow_run_id": str(item_id)} for record in records]
        await self._rest.get("POST", "/logs/", json=body)

    async def read_logs(
        self, item_id: UUID, *, limit: int = 200, offset: int = 0, since: datetime | None = None
    ) -> list[LogRecord]:
        """Read an item's log, oldest first; with `since`, what is of that time or later."""
        body = {
            "logs": {
                "flow_run_id": {"any_": [str(item_id)]},
                "timestamp": None if since is None else {"after_": since.isoformat()},
            },
            "sort": "TIMESTAMP_ASC",
            "limit": limit,
            "offset": offset,
        }
        return [LogRecord.model_validate(found) for found in await self._rest.get("POST", "/logs/filter", json=body)]

    async def create_artifact(
        self, item_id: UUID, *, key: str, kind: str, data: Any, description: str | None = None
    ) -> None:
        """Attach an artifact (`kind`: markdown, table, …) to an item; the key is of `[a-z0-9-]`."""
        body = {"key": key, "type": kind, "data": data, "description": description, "flow_run_id": str(item_id)}
        await self._rest.get("POST", "/artifacts/", json=body)

    async def list_artifacts(self, item_id: UUID) -> list[dict[str, Any]]:
        """List an item's artifacts."""
        body = {"artifacts": {"flow_run_id": {"any_": [str(item_id)]}}}
        found: list[dict[str, Any]] = await self._rest.get("POST", "/artifacts/filter", json=body)
        return found

    async def beat_items(self, items: Sequence[Item]) -> None:
        """Tell the server that these items are alive, in one request."""
        now = datetime.now(timezone.utc).isoformat()
        events = [
            {
                "id": str(uuid4()),
                "occurred": now,
                "event": "prefect.flow-run.heartbeat",
                "resource": {
                    "prefect.resource.id": f"{_ITEM_RESOURCE}{item.id}",
                    "prefect.resource.name": item.name,
                },
                "related": [],
                "payload": {},
            }
            for item in items
        ]
        await self._rest.get("POST", "/events", json=events)

    async def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[str]:
        """Yield an empty text once the stream is open, then the id of an item of these pools whenever one is queued or
        asked to stop.

        What happened before the empty text may not be told: ask for it then. An event comes before the server has
            committed the change. The iterator ends when the server closes the connection.

        Raises:
            ServerUnavailableError: when the event stream cannot be reached, or breaks.
        """
        from prefect.events import ResourceSpecification
        from prefect.events.clients import PrefectEventSubscriber
        from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventResourceFilter
        from websockets.exceptions import WebSocketException

        watched = EventFilter(
            event=EventNameFilter(prefix=["prefect.flow-run."]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}" for pool_id in pool_ids]),
            resource=EventResourceFilter(
                labels=ResourceSpecification({"prefect.state-type": ["SCHEDULED", "CANCELLING"]})
            ),
        )
        try:
            async with PrefectEventSubscriber(
                api_url=self.api_url, filter=watched, reconnection_attempts=0
            ) as subscriber:
                yield ""
                async for event in subscriber:
                    yield event.resource.id.removeprefix(_ITEM_RESOURCE)
        except (OSError, WebSocketException) as error:
            raise ServerUnavailableError(
                f"The event stream of the Prefect server at {self.api_url} cannot be read"
                f" ({type(error).__name__}: {error}). Connect again, and ask the server for what waits meanwhile."
            ) from error
