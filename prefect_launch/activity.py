"""What goes on: how much waits and runs on each queue, which agents are there, why an item waits.

Read from the server when asked for, and only told to people: nothing is decided by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from prefect_launch.server.values import Item, Worker
from prefect_launch.states import ACTIVE, StateType

if TYPE_CHECKING:
    from prefect_launch.session import Session

_ONLINE = "ONLINE"


class QueueActivity(BaseModel):
    """What goes on at one queue.

    Attributes:
        queue: its name.
        waiting: items that wait for an agent.
        active: items that an agent has in work.
        agents: names of the agents that are online for it.
    """

    model_config = ConfigDict(frozen=True)

    queue: str
    waiting: int
    active: int
    agents: tuple[str, ...] = ()


class AgentInfo(BaseModel):
    """An agent, as the server knows it.

    Attributes:
        name: of the agent.
        queues: that it takes items of.
        last_heartbeat: when it was last heard of.
        online: whether the server takes it for alive.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    queues: tuple[str, ...]
    last_heartbeat: datetime | None = None
    online: bool = False


async def queue_activity(session: Session, queues: Iterable[str]) -> list[QueueActivity]:
    """Tell what goes on at each of these queues, in their order."""
    return list(await asyncio.gather(*(_activity(session, queue) for queue in queues)))


async def _activity(session: Session, queue: str) -> QueueActivity:
    server = session.server
    waiting, active, workers = await asyncio.gather(
        server.count_items(pool=queue, state_types=[StateType.SCHEDULED]),
        server.count_items(pool=queue, state_types=sorted(ACTIVE)),
        server.list_workers(queue),
    )
    online = tuple(sorted(worker.name for worker in workers if worker.status == _ONLINE))
    return QueueActivity(queue=queue, waiting=waiting, active=active, agents=online)


async def agents(session: Session) -> list[AgentInfo]:
    """List the agents of all queues, by name."""
    pools = [pool.name for pool in await session.server.list_pools()]
    workers = await asyncio.gather(*(session.server.list_workers(pool) for pool in pools))
    found: dict[str, list[tuple[str, Worker]]] = {}
    for pool, of_pool in zip(pools, workers, strict=True):
        for worker in of_pool:
            found.setdefault(worker.name, []).append((pool, worker))
    return [_agent(name, found[name]) for name in sorted(found)]


def _agent(name: str, beats: list[tuple[str, Worker]]) -> AgentInfo:
    heard = [worker.last_heartbeat_time for _, worker in beats if worker.last_heartbeat_time]
    return AgentInfo(
        name=name,
        queues=tuple(sorted(pool for pool, _ in beats)),
        last_heartbeat=max(heard, default=None),
        online=any(worker.status == _ONLINE for _, worker in beats),
    )


async def why_waiting(session: Session, item: Item) -> str | None:
    """Tell in words why an item waits; `None` when it does not."""
    if item.state_type is not StateType.SCHEDULED or item.work_pool_name is None:
        return None
    pool = await session.server.read_pool(item.work_pool_name)
    if pool is None:
        return f"Its queue {item.work_pool_name!r} was deleted."
    if pool.is_paused:
        return f"The queue {pool.name!r} is paused. 'prefect-launch queue resume {pool.name}' lets it go on."
    due = item.next_scheduled_start_time or item.expected_start_time
    if due is not None and due > datetime.now(timezone.utc):
        return f"It is due at {due:%Y-%m-%d %H:%M:%S} UTC."
    there = await _activity(session, pool.name)
    if not there.agents:
        return (
            f"No agent is online for the queue {pool.name!r}. 'prefect-launch agent start -q {pool.name}' starts one."
        )
    if pool.concurrency_limit is not None and there.active >= pool.concurrency_limit:
        return f"The queue's limit is reached: {there.active} of {pool.concurrency_limit} in work."
    return f"The agents of the queue are at work on {there.active} items; {there.waiting - 1} others wait."
