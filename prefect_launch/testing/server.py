"""In-memory Prefect server: `InMemoryServer` implements `prefect_launch.server.protocol.Server`.

It keeps the real server's rules for what prefect-launch asks of it (the same contract tests run on both) and needs no
process, port or time. Several threads and event loops can use it at once. A test can switch it off and on, and run its
own code before and after every call, so that two callers meet at the point that the test wants. It does none of what
the real server does by itself as time goes by.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from prefect_launch.core.states import StateType
from prefect_launch.errors import SpecError
from prefect_launch.server.items import ONCE, RESULT, is_same_artifact
from prefect_launch.server.values import PAGE, Item, ItemChange, LogRecord, ServerAbout
from prefect_launch.testing.server_items import InMemoryItems
from prefect_launch.testing.server_pools import InMemoryPools
from prefect_launch.testing.server_store import Calls, Hook, Store, Watcher, as_json, call

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


class InMemoryTelemetry(Calls):
    """Calls about logs, artifacts and events."""

    @call
    def write_logs(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        self._write(item_id, records)

    @call
    def write_lines(self, lines: Sequence[tuple[UUID, LogRecord]]) -> None:
        for item_id, record in lines:
            self._write(item_id, [record])

    def _write(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        self._store.logs.setdefault(item_id, []).extend(records)

    @call
    def read_logs(
        self, item_id: UUID, *, limit: int = PAGE, offset: int = 0, since: datetime | None = None
    ) -> list[LogRecord]:
        records = sorted(self._store.logs.get(item_id, ()), key=lambda record: record.timestamp)
        records = [record for record in records if since is None or record.timestamp >= since]
        return records[offset : offset + limit]

    @call
    def create_artifact(
        self, item_id: UUID, *, key: str, kind: str, data: Any, description: str | None = None, once: str | None = None
    ) -> None:
        present = [one for one in self._store.artifacts if (one["flow_run_id"], one["key"]) == (str(item_id), key)]
        if any(is_same_artifact(one, as_json(data), once) for one in present):
            return
        now = self._store.now().isoformat()
        artifact = {"id": str(uuid4()), "created": now, "updated": now, "key": key, "type": kind}
        more = {"description": description, "data": as_json(data), "metadata_": None if once is None else {ONCE: once}}
        self._store.artifacts.append({**artifact, **more, "flow_run_id": str(item_id), "task_run_id": None})

    @call
    def put_artifact(
        self,
        item_id: UUID,
        *,
        key: str,
        kind: str,
        data: Any,
        description: str | None = None,
        artifact_id: UUID | None = None,
    ) -> UUID:
        here = [one for one in self._store.artifacts if (one["flow_run_id"], one["key"]) == (str(item_id), key)]
        found = next((one for one in here if one["id"] == str(artifact_id)), here[-1] if here else None)
        now = self._store.now().isoformat()
        if found is None:
            made = {"id": str(uuid4()), "created": now, "key": key, "type": kind, "metadata_": None}
            found = {**made, "flow_run_id": str(item_id), "task_run_id": None}
            self._store.artifacts.append(found)
        found.update(updated=now, data=as_json(data), description=description)
        return UUID(found["id"])

    @call
    def read_artifacts(self, keys: Collection[str]) -> dict[str, Any]:
        by_time = sorted(self._store.artifacts, key=lambda one: str(one["updated"]))
        return {one["key"]: one["data"] for one in by_time if one["key"] in keys}

    @call
    def list_artifacts(self, item_id: UUID) -> list[dict[str, Any]]:
        shown = (one for one in self._store.artifacts if one["type"] != RESULT)
        return [artifact for artifact in shown if artifact["flow_run_id"] == str(item_id)]

    @call
    def about(self) -> ServerAbout:
        return ServerAbout(version="3.8.8", time=self._store.now().replace(microsecond=0))

    @call
    def beat_items(self, items: Sequence[Item]) -> None:
        self._store.heartbeats.update({item.id: self._store.now() for item in items})

    def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[ItemChange]:
        watcher = Watcher(pool_ids)
        with self._store.lock:
            self._store.watchers.add(watcher)
        return self._stream(watcher, ItemChange())

    def watch_items(self, tag: str, *item_ids: UUID, state_types: Collection[StateType] = ()) -> AsyncIterator[str]:
        watcher = Watcher(tag=tag, item_ids=item_ids, state_types=state_types)
        with self._store.lock:
            self._store.watchers.add(watcher)
        return self._stream(watcher)


_MOST_CHARS: Final = 5_000


class InMemoryVariables(Calls):
    """Calls about variables."""

    @call
    def read_variable(self, name: str) -> Any:
        return self._store.variables.get(name, (None, ()))[0]

    @call
    def write_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> None:
        self._keep(name, value, tags)

    def _keep(self, name: str, value: Any, tags: Collection[str]) -> None:
        if len(json.dumps(value)) > _MOST_CHARS:
            raise SpecError(
                f"The Prefect server refuses this: value: Variable value must be ≤ {_MOST_CHARS} characters"
            )
        self._store.variables[name] = (as_json(value), tuple(tags))
        self._store.notify_setting(name)

    @call
    def create_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> bool:
        if name in self._store.variables:
            return False
        self._keep(name, value, tags)
        return True

    @call
    def delete_variable(self, name: str) -> bool:
        self._store.notify_setting(name)
        return self._store.variables.pop(name, None) is not None

    def watch_settings(self, *names: str) -> AsyncIterator[str]:
        watcher = Watcher(names=names)
        with self._store.lock:
            self._store.watchers.add(watcher)
        return self._stream(watcher)

    @call
    def list_variables(self, *tags: str) -> dict[str, Any]:
        variables = sorted(self._store.variables.items())
        return {name: value for name, (value, own) in variables if set(tags) <= set(own)}


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class InMemoryServer(InMemoryPools, InMemoryItems, InMemoryTelemetry, InMemoryVariables):
    """A Prefect server that lives as long as the object.

    Args:
        now: its clock.

    Attributes:
        calls: how often each method was called.
        before_call: awaited with the method's name before a call takes effect. What it raises, the caller gets.
        after_call: awaited with the method's name after a call took effect, before the caller has the answer: raise
            there, and the answer is lost.
    """

    def __init__(self, *, now: Callable[[], datetime] = _utc_now) -> None:
        self._store = Store(now)
        self.api_url = "http://in-memory.invalid/api"
        self.ui_url = "http://in-memory.invalid"
        self.calls: Counter[str] = Counter()
        self.before_call: Hook | None = None
        self.after_call: Hook | None = None

    @property
    def client(self) -> PrefectClient:
        """Raise: there is no Prefect behind it."""
        raise NotImplementedError("The in-memory server has no client of Prefect: use a Prefect server.")

    def down(self) -> None:
        """Go down: every call raises `ServerUnavailableError`, every event stream ends. Nothing is lost."""
        with self._store.lock:
            self._store.up = False
            for watcher in list(self._store.watchers):
                watcher.notify(None)

    def up(self) -> None:
        """Come back."""
        with self._store.lock:
            self._store.up = True

    @property
    def watching(self) -> int:
        """How many event streams of queues are open: wait for one before you queue what an agent shall hear of."""
        return sum(bool(watcher.pool_ids) for watcher in self._store.watchers)

    @property
    def heartbeats(self) -> dict[UUID, datetime]:
        """When each item was last said to be alive."""
        return dict(self._store.heartbeats)
