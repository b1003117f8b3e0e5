"""Waiting reasons: why a child flow run waits in its work pool, in words that name the pool."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from prefect_launch.core.states import StateType
from prefect_launch.runners.remote.prefect.options import PROCESS_TYPE
from prefect_launch.runners.remote.prefect.status import is_held
from prefect_launch.server.values import PAGE, Item, Pool, PriorityQueue

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

#: How long a pool is taken to be as it was seen.
_TRUSTED_SECONDS: Final = 5.0
#: A worker looks for runs every 10 to 15 s: one that waits for longer waits for something.
_USUAL: Final = timedelta(seconds=30)
_WAITING: Final = (StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED)
#: Names the worker that has taken a flow run.
_WORKER_LABEL: Final = "prefect.worker.name"


class WaitReasons:
    """Why child flow runs wait, by what their pools look like now; one request or two a pool.

    Args:
        server: the Prefect server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen: dict[str, tuple[float, Pool | None, list[PriorityQueue]]] = {}
        self._workers: dict[str, tuple[float, set[str] | None]] = {}

    async def of(self, children: Collection[Item]) -> dict[str, str]:
        """Return the reasons of those that wait, by their ids; an empty text where nothing is in the way."""
        waiting = [one for one in children if one.state_type in _WAITING and not is_held(one)]
        return {str(child.id): await self._reason(child) for child in waiting}

    async def _reason(self, child: Item) -> str:
        if child.state_type is StateType.PENDING:
            worker = await self.lost_worker(child)
            told = "; ".join(filter(None, (child.message, f"{worker} is gone, which had taken it" if worker else "")))
            return f"{child.state_name}: {told}" if told else ""
        if child.state_type is StateType.PAUSED:
            return "its flow run is paused: resume it"
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

    async def lost_worker(self, child: Item) -> str | None:
        """Return what a child's worker is called, when it has gone offline since it took the child; else None."""
        pool, name = child.work_pool_name, child.labels.get(_WORKER_LABEL)
        if pool is None:
            return None
        if name is None:
            found = (await self._look(pool))[0]
            return (
                f"the worker of the work pool {pool!r}" if found is not None and found.status == "NOT_READY" else None
            )
        seen = self._workers.get(pool)
        if seen is None or time.monotonic() - seen[0] > _TRUSTED_SECONDS:
            workers = await self._server.list_workers(pool)
            online = {one.name for one in workers if one.status != "OFFLINE"}
            # Of more than a page, some are not seen.
            seen = self._workers[pool] = (time.monotonic(), online if len(workers) < PAGE else None)
        is_online = seen[1] is None or name in seen[1]
        return None if is_online else f"the worker {name!r}"

    async def is_process(self, child: Item) -> bool:
        """Whether what runs a child is a process of its worker's machine."""
        found = (await self._look(child.work_pool_name))[0] if child.work_pool_name is not None else None
        return found is not None and found.type == PROCESS_TYPE

    async def _look(self, name: str) -> tuple[Pool | None, list[PriorityQueue]]:
        seen = self._seen.get(name)
        if seen is None or time.monotonic() - seen[0] > _TRUSTED_SECONDS:
            pool = await self._server.read_pool(name)
            queues = await self._server.list_queues(name) if pool is not None else []
            seen = self._seen[name] = (time.monotonic(), pool, queues)
        return seen[1], seen[2]
