"""A Prefect server in memory: `InMemoryServer`, the in-memory fake of `prefect_launch.server.client.PrefectServer`.

It keeps the real server's rules for what prefect-launch asks of it (the same contract tests run on both) and needs no
process, port or time. It can be used from several threads and event loops at once, goes down and up at a word, and
calls the test's own code before and after every call, so that two callers meet at whatever point the test wants. What
the real server does by itself as time goes by, it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from uuid import UUID

from prefect_launch.testing.server_items import ItemTwin
from prefect_launch.testing.server_pools import PoolTwin
from prefect_launch.testing.server_store import Hook, Store
from prefect_launch.testing.server_telemetry import TelemetryTwin
from prefect_launch.testing.server_variables import VariableTwin


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class InMemoryServer(PoolTwin, ItemTwin, TelemetryTwin, VariableTwin):
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

    def down(self) -> None:
        """Go down: every call raises `ServerUnavailableError`, every event stream ends. Nothing is lost."""
        with self._store.lock:
            self._store.up = False
            for watcher in list(self._store.watchers):
                watcher.tell(None)

    def up(self) -> None:
        """Come back."""
        with self._store.lock:
            self._store.up = True

    @property
    def watching(self) -> int:
        """How many event streams of queues are open: wait for one before you queue what an agent shall be told of."""
        return sum(bool(watcher.pool_ids) for watcher in self._store.watchers)

    @property
    def heartbeats(self) -> dict[UUID, datetime]:
        """When each item was last said to be alive."""
        return dict(self._store.heartbeats)
