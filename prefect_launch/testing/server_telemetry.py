"""The in-memory server's logs, artifacts, heartbeats of items, and event stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from prefect_launch.server.items import ONCE, is_same_artifact
from prefect_launch.server.values import Item, LogRecord
from prefect_launch.testing import server_checks as checks
from prefect_launch.testing.server_store import Calls, Watcher, as_json, call


class TelemetryTwin(Calls):
    """Calls about logs, artifacts and events."""

    @call
    def write_logs(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        """Add records to an item's log, whether the item is there or not."""
        self._write(item_id, records)

    @call
    def write_lines(self, lines: Sequence[tuple[UUID, LogRecord]]) -> None:
        """Add records to the logs of several items."""
        for item_id, record in lines:
            self._write(item_id, [record])

    def _write(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        self._store.logs.setdefault(item_id, []).extend(records)

    @call
    def read_logs(
        self, item_id: UUID, *, limit: int = 200, offset: int = 0, since: datetime | None = None
    ) -> list[LogRecord]:
        """Read an item's log, oldest first; with `since`, what is of that time or later."""
        records = sorted(self._store.logs.get(item_id, ()), key=lambda record: record.timestamp)
        records = [record for record in records if since is None or record.timestamp >= since]
        return records[offset : offset + limit]

    @call
    def create_artifact(
        self,
        item_id: UUID,
        *,
        key: str,
        kind: str,
        data: Any,
        description: str | None = None,
        once: str | None = None,
    ) -> None:
        """Attach an artifact to an item, unless it has it already.

        Raises:
            SpecError: for a key that is not of `[a-z0-9-]`.
        """
        checks.check_artifact_key(key)
        present = [one for one in self._store.artifacts if (one["flow_run_id"], one["key"]) == (str(item_id), key)]
        if any(is_same_artifact(one, as_json(data), once) for one in present):
            return
        now = self._store.now().isoformat()
        artifact = {"id": str(uuid4()), "created": now, "updated": now, "key": key, "type": kind}
        more = {"description": description, "data": as_json(data), "metadata_": None if once is None else {ONCE: once}}
        self._store.artifacts.append({**artifact, **more, "flow_run_id": str(item_id), "task_run_id": None})

    @call
    def list_artifacts(self, item_id: UUID) -> list[dict[str, Any]]:
        """List an item's artifacts."""
        return [artifact for artifact in self._store.artifacts if artifact["flow_run_id"] == str(item_id)]

    @call
    def beat_items(self, items: Sequence[Item]) -> None:
        """Note that these items are alive."""
        self._store.heartbeats.update({item.id: self._store.now() for item in items})

    def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[str]:
        """Yield an empty text, then the id of an item of these pools whenever one is queued or asked to stop.

        Tells what happens from this call on. Ends when the server goes down.

        Raises:
            ServerUnavailableError: at the first step, when the server is down.
        """
        watcher = Watcher(pool_ids)
        with self._store.lock:
            self._store.watchers.add(watcher)
        return self._told(watcher)
