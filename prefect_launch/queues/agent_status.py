"""Agent status and queue activity: what agents post about themselves, and how much waits and runs on each queue.

A worker's heartbeat says only that an agent is alive. The agent posts its state and its active items in the variable
`launch_agent_<name>` of the server. A drain request is the variable `launch_drain_<name>`. People read both with `agent
list`. Agents use them for one decision: whether another agent could ever run an item that asks for more than this one
has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.states import ACTIVE, ItemState
from prefect_launch.core.validation import clean_json
from prefect_launch.errors import LaunchError, unknown_name
from prefect_launch.queues.presence import Presence, read_presences
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import END_OF_TIME, Item, Worker
from prefect_launch.spec.item_parameters import is_scheduler

TAG: Final = "launch-agent"
DRAIN_TAG: Final = "launch-drain"
#: The server keeps no value of more than 5 000 characters.
_MOST_CHARS: Final = 4_500
_NAME_CHARS: Final = 60
#: Limits for the items that wait for devices: a third of a status at most.
_MOST_WAITS: Final = 6
_REASON_CHARS: Final = 200
_DEVICES_CHARS: Final = 500
#: A longer capacity, of a machine with very many GPUs, is left out.
_CAPACITY_CHARS: Final = 2_000


class RunningItemSummary(BaseModel):
    """An active item of an agent.

    Attributes:
        id: of the item.
        name: of its run, cut when it is long.
        is_scheduler: whether it is a sweep, whose scheduler the agent runs.
        usage: what its run uses now, by the names of `prefect_launch.core.usage`; empty: unknown.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    is_scheduler: bool = False
    usage: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, item: Item, usage: Mapping[str, float] | None = None) -> RunningItemSummary:
        """Make it of an item and what its run uses."""
        name = item.name[:_NAME_CHARS]
        return cls(id=str(item.id), name=name, is_scheduler=is_scheduler(item), usage=dict(usage or {}))

    @property
    def shown(self) -> str:
        """The name as a list shows it."""
        return f"sweep {self.name}" if self.is_scheduler else self.name


class AgentStatus(BaseModel):
    """Status of an agent, as it posts it.

    Attributes:
        name: of the agent.
        host: its machine; `None`: unknown.
        queues: that it takes items of.
        slots: how many jobs it runs at a time; `None`: no limit, or unknown.
        state: polling, running, draining, or offline: it has left, and its runs continue.
        running: its active items; the first of them when there are many.
        in_work: how many active jobs it has.
        schedulers: how many schedulers of sweeps it runs, which take none of its slots.
        max_schedulers: how many it takes; `None`: no limit, or unknown.
        waits: why items wait for its devices, by their ids; when that is much, the first of it.
        devices: who holds each of its GPUs; an empty text for none.
        capacity: what it can give at most to one item, as its devices' `Capacity`; `None`: unknown.
        problems: why it takes no items of a resource, by the resource, or of a queue, by what `problem_of` gives.
        secure_mode: whether it lets a submitter give inputs and nothing else.
        pushes_images: whether it pushes the images that it builds of code to a registry; `None`: unknown.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    host: str | None = None
    queues: tuple[str, ...] = ()
    slots: int | None = None
    state: str = "offline"
    running: tuple[RunningItemSummary, ...] = ()
    in_work: int = 0
    schedulers: int = 0
    max_schedulers: int | None = None
    waits: dict[str, str] = Field(default_factory=dict)
    devices: str = ""
    capacity: dict[str, Any] | None = None
    problems: dict[str, str] = Field(default_factory=dict)
    secure_mode: bool = False
    pushes_images: bool | None = None

    def short(self) -> AgentStatus:
        """Return it without what the server would not keep."""
        waits = {item: reason[:_REASON_CHARS] for item, reason in list(self.waits.items())[:_MOST_WAITS]}
        capacity = self.capacity if len(json.dumps(self.capacity)) <= _CAPACITY_CHARS else None
        shorter = {"waits": waits, "devices": self.devices[:_DEVICES_CHARS], "capacity": capacity}
        found = self.model_copy(update=shorter)
        while found.running and len(json.dumps(found.model_dump(mode="json"))) > _MOST_CHARS:
            found = found.model_copy(update={"running": found.running[:-1]})
        return found


async def post_status(server: Server, status: AgentStatus) -> None:
    """Post the status of an agent."""
    shown = clean_json(status.short().model_dump(mode="json"))  # An error's text may hold anything.
    await server.write_variable(_key("agent", status.name), shown, tags=[TAG])


async def delete_status(server: Server, name: str) -> None:
    """Delete the status of an agent."""
    await server.delete_variable(_key("agent", name))


async def read_statuses(server: Server) -> dict[str, AgentStatus]:
    """Read what agents have posted, by their names; other values are ignored."""
    found = {}
    for value in (await server.list_variables(TAG)).values():
        try:
            status = AgentStatus.model_validate(value)
        except ValidationError:
            continue
        found[status.name] = status
    return found


async def read_usage(server: Server) -> dict[str, dict[str, float]]:
    """Read what runs use now, as their agents have posted it lately, by the ids of their items."""
    return usage_in((await read_statuses(server)).values())


def usage_in(statuses: Iterable[AgentStatus]) -> dict[str, dict[str, float]]:
    """Return what runs use now, by the ids of their items."""
    return {one.id: one.usage for status in statuses for one in status.running if one.usage}


class DrainRequest(BaseModel):
    """Request that an agent drains: those lives of it that are online, not one that is started later.

    Attributes:
        agent: its name.
        at: when it was requested.
        instances: the lives of the agent that are to drain. Each takes itself out when it has; the last removes all.
        for_shifts: each scheduled run of the served agent is to drain. Its service ends the request.
        ends_shift: a scheduled run ends as soon as it has drained.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent: str
    at: datetime
    instances: tuple[str, ...] = ()
    for_shifts: bool = False
    ends_shift: bool = False

    def is_for(self, presence: Presence) -> bool:
        """Whether this life of the agent is to drain."""
        return self.for_shifts if presence.is_shift else presence.holder.instance in self.instances


async def drain_scheduled_runs(server: Server, name: str) -> None:
    """Ask the scheduled runs of a served agent to drain, and to end then; write nothing if they are asked already."""
    request = await read_drain_request(server, name) or DrainRequest(agent=name, at=datetime.now(timezone.utc))
    wanted = request.model_copy(update={"for_shifts": True, "ends_shift": True})
    if wanted != request:
        await _write_drain_request(server, wanted)


async def release_scheduled_runs(server: Server, name: str) -> bool:
    """End the drain request for a served agent's runs: its service begins, or has seen that they have drained.

    Returns:
        Whether there was one.
    """
    request = await read_drain_request(server, name)
    if request is None or not request.for_shifts:
        return False
    if request.instances:
        await _write_drain_request(server, request.model_copy(update={"for_shifts": False, "ends_shift": False}))
    else:
        await cancel_drain(server, name)
    return True


async def _write_drain_request(server: Server, request: DrainRequest) -> None:
    await server.write_variable(drain_variable(request.agent), request.model_dump(mode="json"), tags=[DRAIN_TAG])


async def end_drain_request(server: Server, name: str, instances: Collection[str]) -> None:
    """Take lives of an agent that are over out of its drain request, and end it when it is for nobody else."""
    request = await read_drain_request(server, name)
    if request is None or not set(instances) & set(request.instances):
        return
    left = tuple(instance for instance in request.instances if instance not in instances)
    if left or request.for_shifts:
        await _write_drain_request(server, request.model_copy(update={"instances": left}))
    else:
        await cancel_drain(server, name)


async def cancel_drain(server: Server, name: str) -> bool:
    """Let an agent take items again; return whether it was asked to drain."""
    return await server.delete_variable(_key("drain", name))


async def read_drain_request(server: Server, name: str) -> DrainRequest | None:
    """Return the request for an agent to drain; `None` when there is none."""
    try:
        request = DrainRequest.model_validate(await server.read_variable(_key("drain", name)))
    except ValidationError:
        return None
    return request if request.agent == name else None


def problem_of(queue: str) -> str:
    """Return what the problem of a queue's own place stands under in an agent's `problems`."""
    return f"queue {queue}"


def drain_variable(name: str) -> str:
    """Return the name of the variable that tells an agent to drain."""
    return _key("drain", name)


def _key(kind: str, name: str) -> str:
    """Return a variable's name, which has fewer letters than an agent's may have."""
    safe = re.sub(r"[^a-z0-9_]", "_", name.lower())
    mark = "" if safe == name else f"_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return f"launch_{kind}_{safe}{mark}"


# --- activity of queues ---

_ONLINE = "ONLINE"
#: Three beats of a life of an agent.
_LIVING_SECONDS = 90.0


class QueueActivity(BaseModel):
    """Activity of one queue.

    Attributes:
        queue: its name.
        waiting: items that wait for an agent.
        active: items that an agent has claimed and not ended.
        submitted: those of them that wait in the cluster that they were submitted to.
        agents: names of the agents that are online for it.
    """

    model_config = ConfigDict(frozen=True)

    queue: str
    waiting: int
    active: int
    submitted: int = 0
    agents: tuple[str, ...] = ()


class AgentInfo(AgentStatus):
    """An agent, as the server knows it: its last status, and what its heartbeats tell.

    Attributes:
        last_heartbeat: when it sent the last one.
        online: whether the server takes it for alive. Without a status, its state is `online` then.
        hosts: where agents of this name run now, one for each: more than one is a mistake.
    """

    last_heartbeat: datetime | None = None
    online: bool = False
    hosts: tuple[str, ...] = ()


async def queue_activity(server: Server, queues: Iterable[str]) -> list[QueueActivity]:
    """Return the activity of each of these queues, in their order."""
    return list(await asyncio.gather(*(_activity(server, queue) for queue in queues)))


async def _activity(server: Server, queue: str) -> QueueActivity:
    waiting, active, submitted, workers = await asyncio.gather(
        server.count_due(queue, before=END_OF_TIME),
        server.count_items(pool=queue, state_types=sorted(ACTIVE)),
        server.count_items(pool=queue, state_names=[ItemState.SUBMITTED.label]),
        server.list_workers(queue),
    )
    online = tuple(sorted(worker.name for worker in workers if worker.status == _ONLINE))
    return QueueActivity(queue=queue, waiting=waiting, active=active, submitted=submitted, agents=online)


async def agents(server: Server) -> list[AgentInfo]:
    """List the agents of all queues, by name: those that beat, and those that have left work behind."""
    return await _agents(server, await read_presences(server))


async def _agents(server: Server, presences: Collection[Presence]) -> list[AgentInfo]:
    statuses = await read_statuses(server)
    pools = [pool.name for pool in await server.list_pools()]
    workers = await asyncio.gather(*(server.list_workers(pool) for pool in pools))
    found: dict[str, list[tuple[str, Worker]]] = {}
    for pool, of_pool in zip(pools, workers, strict=True):
        for worker in of_pool:
            found.setdefault(worker.name, []).append((pool, worker))
    hosts = _hosts(presences)
    return [
        _agent(name, found.get(name, []), statuses.get(name)).model_copy(update={"hosts": hosts.get(name, ())})
        for name in sorted(found.keys() | statuses.keys())
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
    workers, statuses = await asyncio.gather(server.list_workers(queue), read_statuses(server))
    online = sorted((worker for worker in workers if worker.status == _ONLINE), key=lambda worker: worker.name)
    return [_agent(worker.name, [(queue, worker)], statuses.get(worker.name)) for worker in online]


def _agent(name: str, beats: list[tuple[str, Worker]], status: AgentStatus | None) -> AgentInfo:
    heard = [worker.last_heartbeat_time for _, worker in beats if worker.last_heartbeat_time]
    online = any(worker.status == _ONLINE for _, worker in beats)
    posted = {"name": name, "state": "online"} if status is None else status.model_dump()
    now = {
        "queues": tuple(sorted(pool for pool, _ in beats)) or posted.get("queues", ()),
        "last_heartbeat": max(heard, default=None),
        "online": online,
        **({} if online else {"state": "offline", "problems": {}}),
    }
    return AgentInfo.model_validate({**posted, **now})


async def drain_agent(server: Server, name: str, *, undo: bool = False) -> AgentInfo:
    """Ask an agent to drain, or, with `undo`, to take items again; it acts at once, or at its next poll.

    The request is for the lives of the agent that are online now, and for all scheduled runs of a served one until
    its service ends.

    Returns:
        The agent, as it was before.

    Raises:
        NotFoundError: when there is no agent of that name; names the nearest one.
        LaunchError: when it is offline, or was not asked to drain.
    """
    presences = await read_presences(server)
    there = {agent.name: agent for agent in await _agents(server, presences)}
    if undo and await cancel_drain(server, name):
        return there.get(name) or AgentInfo(name=name)
    if name not in there:
        raise unknown_name("agent", name, there)
    if undo:
        raise LaunchError(f"The agent {name!r} was not asked to drain, or has drained already: nothing to undo.")
    if not there[name].online:
        raise LaunchError(f"The agent {name!r} is offline: it takes no items. Start it, or leave it as it is.")
    lives = [one for one in presences if one.holder.agent == name and not one.has_left]
    instances = tuple(one.holder.instance for one in lives if not one.is_shift)
    is_served = any(one.is_shift for one in lives)
    request = DrainRequest(agent=name, at=datetime.now(timezone.utc), instances=instances, for_shifts=is_served)
    await _write_drain_request(server, request)
    return there[name]
