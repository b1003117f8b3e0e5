"""Waiting reasons: why a child flow run waits in its work pool, in words that name the pool."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from prefect_launch.core.states import StateType
from prefect_launch.server.values import Item, Pool, PriorityQueue

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

#: How long a pool is taken to be as it was seen.
_TRUSTED_SECONDS: Final = 5.0
#: A worker looks for runs every 10 to 15 s: one that waits for longer waits for something.
_USUAL: Final = timedelta(seconds=30)


class WaitReasons:
    """Why child flow runs wait, by what their pools look like now; one request or two a pool.

    Args:
        server: the Prefect server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen: dict[str, tuple[float, Pool | None, list[PriorityQueue]]] = {}

    async def of(self, children: Collection[Item]) -> dict[str, str]:
        """Return the reasons of those that wait, by their ids; an empty text where nothing is in the way."""
        waiting = [one for one in children if one.state_type in (StateType.SCHEDULED, StateType.PENDING)]
        return {str(child.id): await self._reason(child) for child in waiting}

    async def _reason(self, child: Item) -> str:
        if child.state_type is StateType.PENDING:
            told = child.message
            return f"{child.state_name}: {told}" if told else ""
        name = child.work_pool_name
        if name is None:
            return "its work pool was deleted"
        pool, queues = await self._look(name)
        if pool is None:
            return f"the work pool {name!r} was deleted"
        if pool.is_paused:
            return f"the work pool {name!r} is paused"
        queue = next((one for one in queues if one.name == child.work_queue_name), None)
        if queue is not None and queue.is_paused:
            return f"the work queue {queue.name!r} of the work pool {name!r} is paused"
        if pool.status == "NOT_READY":
            return f"the work pool {name!r} has no worker online"
        due = child.next_scheduled_start_time
        if due is None or datetime.now(timezone.utc) - due < _USUAL:
            return ""
        if queue is not None and queue.concurrency_limit is not None:
            limit = queue.concurrency_limit
            return f"the work queue {queue.name!r} of the work pool {name!r} runs at most {limit} at a time"
        if pool.concurrency_limit is not None:
            return f"the work pool {name!r} runs at most {pool.concurrency_limit} at a time"
        return f"no worker of the work pool {name!r} has taken it yet: its workers may be at their limits"

    async def _look(self, name: str) -> tuple[Pool | None, list[PriorityQueue]]:
        seen = self._seen.get(name)
        if seen is None or time.monotonic() - seen[0] > _TRUSTED_SECONDS:
            pool = await self._server.read_pool(name)
            queues = await self._server.list_queues(name) if pool is not None else []
            seen = self._seen[name] = (time.monotonic(), pool, queues)
        return seen[1], seen[2]
