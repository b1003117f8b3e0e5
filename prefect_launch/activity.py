"""What goes on: how much waits and runs on each queue, which agents are there, why an item waits.

Read from the server when asked for, and only told to people: nothing is decided by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from prefect_launch.agent_board import AgentNotice, RunningItem, order_drain, read_notices, take_drain_back
from prefect_launch.errors import LaunchError, unknown_name
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
        state: polling, running, draining or offline; `online` for an agent that tells no more.
        host: its machine, when it has told.
        slots: how many jobs it runs at a time; `None`: no limit, or not told.
        running: what it has in work; when that is much, the first of it.
        in_work: how many items it has in work.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    queues: tuple[str, ...]
    last_heartbeat: datetime | None = None
    online: bool = False
    state: str = "offline"
    host: str | None = None
    slots: int | None = None
    running: tuple[RunningItem, ...] = ()
    in_work: int = 0


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
    """List the agents of all queues, by name: those that beat, and those that have left work behind."""
    notices = await read_notices(session.server)
    pools = [pool.name for pool in await session.server.list_pools()]
    workers = await asyncio.gather(*(session.server.list_workers(pool) for pool in pools))
    found: dict[str, list[tuple[str, Worker]]] = {}
    for pool, of_pool in zip(pools, workers, strict=True):
        for worker in of_pool:
            found.setdefault(worker.name, []).append((pool, worker))
    return [_agent(name, found.get(name, []), notices.get(name)) for name in sorted(found.keys() | notices.keys())]


def _agent(name: str, beats: list[tuple[str, Worker]], notice: AgentNotice | None) -> AgentInfo:
    heard = [worker.last_heartbeat_time for _, worker in beats if worker.last_heartbeat_time]
    online = any(worker.status == _ONLINE for _, worker in beats)
    told = {} if notice is None else notice.model_dump(include={"host", "slots", "running", "in_work"})
    return AgentInfo(
        name=name,
        queues=tuple(sorted(pool for pool, _ in beats)) or (notice.queues if notice else ()),
        last_heartbeat=max(heard, default=None),
        online=online,
        state=(notice.state if notice else "online") if online else "offline",
        **told,
    )


async def drain_agent(session: Session, name: str, *, undo: bool = False) -> AgentInfo:
    """Tell an agent to drain, or, with `undo`, to take items again.

    Returns:
        The agent, as it was before.

    Raises:
        NotFoundError: when there is no agent of that name; names the nearest one.
        LaunchError: when it is offline, or was not told to drain.
    """
    there = {agent.name: agent for agent in await agents(session)}
    if undo and await take_drain_back(session.server, name):
        return there.get(name) or AgentInfo(name=name, queues=())
    if name not in there:
        raise unknown_name("agent", name, there)
    if undo:
        raise LaunchError(f"The agent {name!r} was not told to drain, or has drained already: nothing to take back.")
    if not there[name].online:
        raise LaunchError(f"The agent {name!r} is offline: it takes no items. Start it, or leave it as it is.")
    await order_drain(session.server, name)
    return there[name]


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
