"""What is told about items: log records, artifacts, heartbeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final
from uuid import UUID, uuid4

import anyio

from prefect_launch.errors import AnswerLostError
from prefect_launch.server.pools import POOL_TYPE
from prefect_launch.server.proposals import RESULT
from prefect_launch.server.rest import Rest
from prefect_launch.server.values import Item, LogRecord

#: What an artifact that is made once tells of, in its metadata.
ONCE: Final = "prefect-launch.once"
#: Requests in a row whose answers are lost, before the caller hears of it.
_LOST_MAX: Final = 5
#: What a server gets to commit a request whose answer cannot reach us any more.
_LOST_PAUSE_SECONDS: Final = 0.5


class TelemetryCalls:
    """Calls about logs, artifacts and events."""

    _rest: Rest
    api_url: str

    async def write_logs(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        """Add records to an item's log."""
        await self.write_lines([(item_id, record) for record in records])

    async def write_lines(self, lines: Sequence[tuple[UUID, LogRecord]]) -> None:
        """Add records to the logs of several items, in one request."""
        body = [{**record.model_dump(mode="json"), "flow_run_id": str(item_id)} for item_id, record in lines]
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
        self,
        item_id: UUID,
        *,
        key: str,
        kind: str,
        data: Any,
        description: str | None = None,
        once: str | None = None,
    ) -> None:
        """Attach an artifact (`kind`: markdown, table, …) to an item, unless it is there: the key is of `[a-z0-9-]`.

        Args:
            once: what it is told of, such as one attempt: the item has it when there is one of the same key that tells
                of the same. Without it, the item has it when there is one of the same key and data.
        """
        body = {"key": key, "type": kind, "data": data, "description": description, "flow_run_id": str(item_id)}
        if once is not None:
            body["metadata_"] = {ONCE: once}
        lost = 0
        while not any(is_same_artifact(found, data, once) for found in await self._artifacts(item_id, key)):
            try:
                await self._rest.get("POST", "/artifacts/", json=body)
                return
            except AnswerLostError:
                lost += 1
                if lost == _LOST_MAX:
                    raise
                await anyio.sleep(_LOST_PAUSE_SECONDS)

    async def list_artifacts(self, item_id: UUID) -> list[dict[str, Any]]:
        """List the artifacts that an item shows; the data of its states, which the server keeps as some, are not."""
        return await self._artifacts(item_id)

    async def _artifacts(self, item_id: UUID, key: str | None = None) -> list[dict[str, Any]]:
        wanted: dict[str, Any] = {"flow_run_id": {"any_": [str(item_id)]}, "type": {"not_any_": [RESULT]}}
        if key is not None:
            wanted["key"] = {"any_": [key]}
        found: list[dict[str, Any]] = await self._rest.get("POST", "/artifacts/filter", json={"artifacts": wanted})
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
                    "prefect.resource.id": f"prefect.flow-run.{item.id}",
                    "prefect.resource.name": item.name,
                },
                "related": _pool_of(item),
                "payload": {},
            }
            for item in items
        ]
        await self._rest.get("POST", "/events", json=events)


def is_same_artifact(found: Mapping[str, Any], data: Any, once: str | None) -> bool:
    """Whether an artifact of the right key is the one that is to be made."""
    if once is None:
        return bool(found["data"] == data)
    return bool((found.get("metadata_") or {}).get(ONCE) == once)


def _pool_of(item: Item) -> list[dict[str, str]]:
    """Name an item's queue in an event, as the server's own events about the item do."""
    if item.work_pool_id is None:
        return []
    return [
        {
            "prefect.resource.id": f"prefect.work-pool.{item.work_pool_id}",
            "prefect.resource.role": "work-pool",
            "prefect.resource.name": item.work_pool_name or "",
            "prefect.work-pool.type": POOL_TYPE,
        }
    ]
