"""What goes on: how much waits and runs on each queue, and which agents are there.

Read from the server when asked for, and only told to people: nothing is decided by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.states import ACTIVE, StateType
from prefect_launch.errors import LaunchError, unknown_name
from prefect_launch.queues.agent_status import AgentNotice, RunningItem, order_drain, read_notices, take_drain_back
from prefect_launch.queues.presence import read_presences
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Worker

if TYPE_CHECKING:
    from prefect_launch.queues.presence import Presence
    from prefect_launch.queues.session import Session

_ONLINE = "ONLINE"
#: Three beats of a life of an agent.
_LIVING_SECONDS = 90.0
#: What an agent tells of itself in its notice.
_TOLD = {"host", "slots", "running", "in_work", "waits", "devices", "secure_mode"}


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
        waits: why items wait for its devices, by their ids.
        devices: who holds each of its GPUs; an empty text for none.
        troubles: why it takes no items of a resource, one text each.
        secure_mode: whether it lets a submitter give inputs and nothing else.
        hosts: where agents of this name run now, one for each: more than one is a mistake.
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
    waits: dict[str, str] = Field(default_factory=dict)
    devices: str = ""
    troubles: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    secure_mode: bool = False


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
    hosts = _hosts(await read_presences(session.server))
    return [
        _agent(name, found.get(name, []), notices.get(name)).model_copy(update={"hosts": hosts.get(name, ())})
        for name in sorted(found.keys() | notices.keys())
    ]


def _hosts(presences: Iterable[Presence]) -> dict[str, tuple[str, ...]]:
    """Return where agents run that have beaten lately, by their names; clocks of machines may differ a little."""
    now, found = datetime.now(timezone.utc), dict[str, tuple[str, ...]]()
    for one in presences:
        if not one.has_left and abs((now - one.at).total_seconds()) < _LIVING_SECONDS:
            found[one.holder.agent] = (*found.get(one.holder.agent, ()), one.holder.host)
    return found


async def online_agents(server: Server, queue: str) -> list[AgentInfo]:
    """List the agents that are online for one queue, by name."""
    workers, notices = await asyncio.gather(server.list_workers(queue), read_notices(server))
    online = sorted((worker for worker in workers if worker.status == _ONLINE), key=lambda worker: worker.name)
    return [_agent(worker.name, [(queue, worker)], notices.get(worker.name)) for worker in online]


def _agent(name: str, beats: list[tuple[str, Worker]], notice: AgentNotice | None) -> AgentInfo:
    heard = [worker.last_heartbeat_time for _, worker in beats if worker.last_heartbeat_time]
    online = any(worker.status == _ONLINE for _, worker in beats)
    told = {} if notice is None else notice.model_dump(include=_TOLD)
    if online and notice is not None:
        told["troubles"] = notice.troubles
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
