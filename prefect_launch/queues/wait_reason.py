"""Wait reason: why an item waits, its place in the queue, and when it is expected to start.

A few requests, sent at once, read the facts when somebody asks; pure functions derive the reason. Of several reasons
the most pressing one is given: a paused queue before a missing agent, then a limit, then busy slots. The expected start
is a forecast from past runs, never a promise.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from enum import Enum
from statistics import median
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.states import ACTIVE, ItemState, StateType
from prefect_launch.core.units import utc_minute, utc_time
from prefect_launch.jobs.index import PATH_TAG
from prefect_launch.queues.agent_status import AgentInfo, online_agents, problem_of
from prefect_launch.queues.author_shares import count_waiting, has, per_author_of
from prefect_launch.queues.predecessors import Predecessors, read_predecessors
from prefect_launch.queues.sweep_status import read_sweep_status, sweep_of
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import END_OF_TIME, JOB_FLOW, PAGE, Item, ItemFilter, PriorityQueue
from prefect_launch.spec.item_parameters import author_of, is_scheduler

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session


_COUNTED: Final = frozenset({StateType.PENDING, StateType.RUNNING})
_DRAINING: Final = "draining"


class WaitCause(str, Enum):
    """Cause of a wait; the word precedes the reason in the item's log."""

    PAUSED = "paused"
    PREDECESSOR = "predecessor"
    NOT_DUE = "not due"
    NO_AGENT = "no agent"
    AWAY = "engine away"
    LIMIT = "limit"
    SHARE = "author's share"
    DEVICES = "devices"
    TURN = "its turn"
    ELSEWHERE = "elsewhere"


class QueueFacts(BaseModel):
    """Snapshot of a queue."""

    model_config = ConfigDict(frozen=True)

    queue: str
    now: datetime
    resource: str = ""
    is_paused: bool = False
    limit: int | None = None
    per_author: int | None = Field(default=None, description="How many jobs of one author may be active.")
    agents: tuple[AgentInfo, ...] = Field(default=(), description="Those that are online.")
    priorities: tuple[PriorityQueue, ...] = ()
    in_work: tuple[Item, ...] = ()

    def limit_of(self, work_queue: str | None) -> int | None:
        """Return the limit of one priority."""
        return next((one.concurrency_limit for one in self.priorities if one.name == work_queue), None)

    def counted(self, work_queue: str | None = None) -> int:
        """Count the active items, as the limits of the queue, or of one priority, do."""
        counted = [item for item in self.in_work if item.state_type in _COUNTED]
        return sum(work_queue is None or item.work_queue_name == work_queue for item in counted)

    def in_work_of(self, author: str) -> list[Item]:
        """Return an author's active jobs, as the queue's share of each author counts them."""
        counted = (item for item in self.in_work if item.state_type in _COUNTED and not is_scheduler(item))
        return [item for item in counted if author_of(item) == author]

    @property
    def accepting_agents(self) -> tuple[AgentInfo, ...]:
        """Agents that accept items: all that are not draining."""
        return tuple(agent for agent in self.agents if agent.state != _DRAINING)


class WaitFacts(BaseModel):
    """Snapshot of one waiting item."""

    model_config = ConfigDict(frozen=True)

    queue: QueueFacts
    item: Item
    ahead_by_priority: int = Field(default=0, description="How many of a higher priority wait and are due.")
    ahead_by_time: int = Field(default=0, description="How many of its own priority are due before it.")
    ahead_of_author: int = Field(default=0, description="How many of its own author are among those.")
    waiting: int = Field(default=1, description="How many wait in the queue, with it.")
    past: Past | None = None
    requested_gpus: str = Field(
        default="", description="Which GPUs one asks for that no agent has looked at yet: `2 GPUs`."
    )
    held_by_sweep: str = Field(default="", description="Why its sweep holds it, if it does.")
    waits_for: str = Field(default="", description="Which items it starts after, if they have not completed.")


class WaitReason(BaseModel):
    """Why an item waits.

    Attributes:
        cause: what keeps it waiting.
        reason: the same in words, with what to do about it.
        place: its place in the line; 1 is the next. 0 is none: its authors take turns, or it waits in the cluster that
            it was submitted to.
        waiting: how many wait in its queue, with it.
        expected_start: when it is expected to start, if it can be estimated.
        basis: what the estimate is based on, such as `20 past runs of train`.
    """

    model_config = ConfigDict(frozen=True)

    cause: WaitCause
    reason: str
    place: int
    waiting: int
    expected_start: datetime | None = None
    basis: str = ""

    @property
    def position(self) -> str:
        """Its place in words, such as `3rd of 12`; an empty text when it is in no line."""
        return f"{_ordinal(self.place)} of {self.waiting}" if self.place else ""

    def __str__(self) -> str:
        start = ""
        if self.expected_start is not None and self.basis:
            start = f" Expected to start at about {utc_minute(self.expected_start)}, from {self.basis}."
        place = f" It is the {self.position} in the queue." if self.place else ""
        return f"{self.reason}{place}{start}"


def explain_wait(facts: WaitFacts) -> WaitReason:
    """Return why an item waits."""
    found = next(found for check in _CHECKS if (found := check(facts)) is not None)
    cause, reason = found
    start = _expected_start(facts, cause)
    place = facts.ahead_by_priority + facts.ahead_by_time + 1
    return WaitReason(
        cause=cause,
        reason=reason,
        place=0 if _takes_turns(facts) else place,
        waiting=max(facts.waiting, place),
        expected_start=start,
        basis=facts.past.describe() if start is not None and facts.past and cause is not WaitCause.NOT_DUE else "",
    )


_Reason = tuple[WaitCause, str]
#: Nothing that is known says when these waits end.
_OPEN_END: Final = (WaitCause.PAUSED, WaitCause.PREDECESSOR, WaitCause.NO_AGENT)


def _paused(facts: WaitFacts) -> _Reason | None:
    queue, name = facts.queue, facts.item.work_queue_name
    if queue.is_paused:
        text = f"The queue {queue.queue!r} is paused. 'prefect-launch queue resume {queue.queue}' resumes it."
    elif any(one.name == name and one.is_paused for one in queue.priorities):
        text = f"The work queue {name!r} of the queue {queue.queue!r} is paused. Resume it on the work pool's page."
    else:
        return None
    return WaitCause.PAUSED, text


def _held_by_sweep(facts: WaitFacts) -> _Reason | None:
    return (WaitCause.PAUSED, facts.held_by_sweep) if facts.held_by_sweep else None


def _predecessors(facts: WaitFacts) -> _Reason | None:
    return (WaitCause.PREDECESSOR, facts.waits_for) if facts.waits_for else None


def _not_due(facts: WaitFacts) -> _Reason | None:
    due = _due(facts.item)
    if due is None or due <= facts.queue.now:
        return None
    if facts.item.state_name == ItemState.AWAITING_RETRY.label:
        return WaitCause.NOT_DUE, f"It is run again at {utc_time(due)}, as its retry rule says."
    return WaitCause.NOT_DUE, f"It is due at {utc_time(due)}."


def _no_agent(facts: WaitFacts) -> _Reason | None:
    queue = facts.queue
    starts = f"'prefect-launch agent start -q {queue.queue}' starts one."
    if not queue.agents:
        return WaitCause.NO_AGENT, f"No agent is online for the queue {queue.queue!r}. {starts}"
    if not queue.accepting_agents:
        names = ", ".join(agent.name for agent in queue.agents)
        all_of = f"All agents of the queue {queue.queue!r} are draining ({names}): they take no more items."
        undo = "'prefect-launch agent drain NAME --undo' lets one take items again, and"
        return WaitCause.NO_AGENT, f"{all_of} {undo} {starts}"
    return None


def _away(facts: WaitFacts) -> _Reason | None:
    """The agents are online, and the resource is not."""
    names = (facts.queue.resource, problem_of(facts.queue.queue))
    each = {
        agent.name: next((why for name in names if (why := agent.problems.get(name))), "")
        for agent in facts.queue.accepting_agents
    }
    if not facts.queue.resource or not all(each.values()):
        return None
    text = " ".join(f"{name}: {why}" for name, why in each.items())
    return WaitCause.AWAY, f"No agent of the queue {facts.queue.queue!r} can start its items now. {text}"


def _limit(facts: WaitFacts) -> _Reason | None:
    queue, name = facts.queue, facts.item.work_queue_name
    active = queue.counted()
    if queue.limit is not None and active >= queue.limit:
        text = f"The queue's limit is reached: {active} of {queue.limit} active."
        return WaitCause.LIMIT, f"{text}{_ahead(facts)}"
    limit = queue.limit_of(name)
    if limit is not None and queue.counted(name) >= limit:
        text = f"The limit of its priority (work queue {name!r}) is reached: {queue.counted(name)} of {limit} active."
        return WaitCause.LIMIT, f"{text}{_ahead(facts)}"
    return None


def _share(facts: WaitFacts) -> _Reason | None:
    active = len(facts.queue.in_work_of(author_of(facts.item)))
    if not _takes_turns(facts) or active < (facts.queue.per_author or 0):
        return None
    return WaitCause.SHARE, f"{_share_of_author(facts)}."


def _share_of_author(facts: WaitFacts) -> str:
    author = author_of(facts.item)
    before = f"; {facts.ahead_of_author} of {author}'s wait before it" if author and facts.ahead_of_author else ""
    active = len(facts.queue.in_work_of(author))
    return f"{has(author)} {active} of {facts.queue.per_author} in work on this queue{before}"


def _takes_turns(facts: WaitFacts) -> bool:
    """Whether its author's turn decides when it starts, more than the items before it."""
    return facts.queue.per_author is not None and not is_scheduler(facts.item)


def _scheduler(facts: WaitFacts) -> _Reason | None:
    """A sweep's scheduler needs no slot of a job, and no device."""
    if not is_scheduler(facts.item):
        return None
    queue, taking = facts.queue, facts.queue.accepting_agents
    active = sum(item.state_type in _COUNTED for item in queue.in_work if is_scheduler(item))
    if queue.limit is not None and active + 1 >= queue.limit:
        text = f"The queue's limit is {queue.limit} active items, and {active} of them are schedulers of sweeps"
        return WaitCause.LIMIT, f"{text}: one more would leave no place for their trials."
    if all(agent.max_schedulers is not None and agent.schedulers >= agent.max_schedulers for agent in taking):
        shares = ", ".join(f"{agent.name} {agent.schedulers} of {agent.max_schedulers}" for agent in taking)
        text = f"The queue's agents run as many schedulers of sweeps as they may ({shares})."
        return WaitCause.TURN, f"{text} Raise max_schedulers in an agent's config, or start another agent."
    return WaitCause.TURN, f"An agent takes it within seconds ({', '.join(agent.name for agent in taking)})."


def _no_devices(facts: WaitFacts) -> _Reason | None:
    taking = facts.queue.accepting_agents
    if facts.requested_gpus and all(agent.host and not agent.devices for agent in taking):
        whose = f"no agent of the queue {facts.queue.queue!r} has a GPU ({', '.join(agent.name for agent in taking)})"
        return WaitCause.DEVICES, f"It asks for {facts.requested_gpus}, and {whose}."
    reasons = {agent.name: agent.waits.get(str(facts.item.id)) or _busy(agent) for agent in taking}
    if not all(reasons.values()) or not any(str(facts.item.id) in agent.waits for agent in taking):
        return None
    each = " ".join(f"{name}: {reason}" for name, reason in reasons.items())
    gpus = "; ".join(f"{agent.name}: {agent.devices}" for agent in taking if agent.devices)
    return WaitCause.DEVICES, f"No agent has the devices free that it asks for. {each}{gpus and f' Now: {gpus}.'}"


def _no_slot(facts: WaitFacts) -> _Reason | None:
    taking = facts.queue.accepting_agents
    if not all(_busy(agent) for agent in taking):
        return None
    slots = sum(agent.slots or 0 for agent in taking)
    shares = ", ".join(f"{agent.name} {agent.in_work} of {agent.slots}" for agent in taking)
    are = f"All {slots} slots of the queue's agents are" if slots > 1 else "The one slot of the queue's agent is"
    return WaitCause.TURN, f"{are} busy ({shares}).{_ahead(facts)}"


def _busy(agent: AgentInfo) -> str:
    """Say that an agent has no free slot; an empty text when it has."""
    if agent.slots is None or agent.in_work < agent.slots:
        return ""
    return f"{agent.in_work} of its {agent.slots} slots are in use."


def _next_in_turn(facts: WaitFacts) -> _Reason:
    if facts.ahead_by_priority or facts.ahead_by_time:
        blocked = {
            f"{agent.name}: {reason}" for agent in facts.queue.accepting_agents for reason in agent.waits.values()
        }
        first = f" The first of them wait for devices: {' '.join(sorted(blocked))}" if blocked else ""
        return WaitCause.TURN, f"Its turn has not come.{_ahead(facts)}{first}"
    names = ", ".join(
        f"{agent.name}: {agent.devices}" if facts.requested_gpus else agent.name
        for agent in facts.queue.accepting_agents
    )
    what = f" and {facts.requested_gpus}" if facts.requested_gpus else ""
    return WaitCause.TURN, f"It is the next: an agent with a free slot{what} takes it within seconds ({names})."


_CHECKS: Final[tuple[Callable[[WaitFacts], _Reason | None], ...]] = (
    _paused,
    _held_by_sweep,
    _predecessors,
    _not_due,
    _no_agent,
    _away,
    _limit,
    _share,
    _scheduler,
    _no_devices,
    _no_slot,
    _next_in_turn,
)


def _ahead(facts: WaitFacts) -> str:
    """Describe who is ahead, such as ` It is behind 3 of higher priority and 5 earlier ones.`"""
    if _takes_turns(facts):
        return f" Authors take turns. {_share_of_author(facts)}."
    urgent = f"{facts.ahead_by_priority} of higher priority" if facts.ahead_by_priority else ""
    earlier = (
        f"{facts.ahead_by_time} earlier one{'' if facts.ahead_by_time == 1 else 's'}" if facts.ahead_by_time else ""
    )
    text = " and ".join(part for part in (urgent, earlier) if part)
    return f" It is behind {text}." if text else ""


def _expected_start(facts: WaitFacts, cause: WaitCause) -> datetime | None:
    queue = facts.queue
    if cause is WaitCause.NOT_DUE:
        return _due(facts.item)
    if facts.past is None or cause in _OPEN_END or is_scheduler(facts.item):
        return None
    if _takes_turns(facts) and cause is not WaitCause.SHARE:
        return None  # Each author who comes changes it.
    typical = facts.past.typical_seconds
    running = [_seconds_in_work(item, queue.now) for item in queue.in_work if not is_scheduler(item)]
    elsewhere = sum(agent.in_work for agent in queue.accepting_agents) - len(running)
    if cause is WaitCause.DEVICES:
        if facts.requested_gpus or (not running and elsewhere <= 0):
            return None  # What is in the way is nothing of ours, or it can never fit.
        slots: int | None = len(running) + max(0, elsewhere)  # Nothing more fits.
    else:
        slots = _slots(facts)
    running += [typical / 2] * elsewhere  # Their agents work for other queues too.
    ahead = facts.ahead_by_priority + facts.ahead_by_time
    if cause is WaitCause.SHARE:  # Others do not matter: they have shares of their own.
        running = [_seconds_in_work(item, queue.now) for item in queue.in_work_of(author_of(facts.item))]
        slots, ahead = queue.per_author, facts.ahead_of_author
    wait = seconds_until_start(ahead=ahead, running=running, slots=slots, typical=typical)
    return queue.now + timedelta(seconds=wait)


def _slots(facts: WaitFacts) -> int | None:
    """Return how many run at a time: what the agents can, inside the limits."""
    taking = facts.queue.accepting_agents
    limits = [facts.queue.limit, facts.queue.limit_of(facts.item.work_queue_name)]
    if all(agent.slots is not None for agent in taking):
        limits.append(sum(agent.slots or 0 for agent in taking))
    return min((limit for limit in limits if limit), default=None)


def _seconds_in_work(item: Item, now: datetime) -> float:
    since = item.state.timestamp if item.state else None
    return max(0.0, (now - since).total_seconds()) if since and item.state_type is StateType.RUNNING else 0.0


def _due(item: Item) -> datetime | None:
    return item.next_scheduled_start_time or item.expected_start_time


def _ordinal(number: int) -> str:
    last = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else last}"


# --- forecast ---

#: What is left of a run that takes longer than the typical one, as a share of that.
_OVERTIME: Final = 0.1


class Past(BaseModel):
    """Durations of past runs, for a forecast."""

    model_config = ConfigDict(frozen=True)

    seconds: tuple[float, ...] = Field(description="How long each took.")
    job: str = Field(default="", description="The job that they are of; empty: any job of the queue.")

    @property
    def typical_seconds(self) -> float:
        """Their median."""
        return median(self.seconds)

    def describe(self) -> str:
        """Say what they are, such as `20 past runs of train`."""
        runs = f"{len(self.seconds)} past run{'' if len(self.seconds) == 1 else 's'}"
        return f"{runs} of {self.job}" if self.job else f"{runs} of the queue"


def seconds_until_start(*, ahead: int, running: Sequence[float], slots: int | None, typical: float) -> float:
    """Return when the item behind `ahead` others gets a slot, in seconds from now.

    Args:
        ahead: how many start before it.
        running: for how long each active item has been running, in seconds.
        slots: how many run at a time; `None`: any number.
        typical: how long a run takes, in seconds.
    """
    if slots is None:
        return 0.0
    ends = sorted(max(typical - seconds, typical * _OVERTIME) for seconds in running)
    # When more run than may (the limit was lowered), the first to end free no slot.
    free_at = ends[max(0, len(ends) - slots) :] + [0.0] * max(0, slots - len(ends))
    heapq.heapify(free_at)
    for _ in range(ahead):
        heapq.heapreplace(free_at, free_at[0] + typical)
    return free_at[0]


# --- reading the facts ---

#: A forecast is made from so many past runs, the latest.
PAST_RUNS: Final = 20
#: Of so many items in a line it is read whether they are held.
_LOOKED_AT: Final = 50


async def why_waiting(session: Session, item: Item) -> WaitReason | None:
    """Return why an item waits; `None` when it does not, or its queue is gone."""
    if item.state_name == ItemState.SUBMITTED.label:
        return await _read_wait_elsewhere(session.server, item)
    if item.state_type is not StateType.SCHEDULED or item.work_pool_name is None:
        return None
    queue, past = await asyncio.gather(
        read_queue_facts(session.server, item.work_pool_name), read_past(session.server, item.work_pool_name, item.tags)
    )
    return None if queue is None else explain_wait(await _read_place(session.server, queue, item, past))


def elsewhere_key(attempt: int) -> str:
    """Return the key of the artifact with the newest reason why an attempt waits in the cluster it was submitted to."""
    return f"waits-{attempt}"


async def _read_wait_elsewhere(server: Server, item: Item) -> WaitReason:
    """Return the newest reason that a cluster gives: the first is the state's message, later ones replace another."""
    key = elsewhere_key(item.run_count + 1)
    noted = next((str(one["data"]) for one in await server.list_artifacts(item.id) if one["key"] == key), None)
    reason = noted or item.message
    return WaitReason(cause=WaitCause.ELSEWHERE, reason=reason, place=0, waiting=0)


async def why_would_wait(
    session: Session, queue_name: str, item: Item, *, requested_gpus: str = ""
) -> WaitReason | None:
    """Return why an item that is not queued yet would wait; `None` when there is no such queue."""
    queue, past = await asyncio.gather(
        read_queue_facts(session.server, queue_name), read_past(session.server, queue_name, item.tags)
    )
    if queue is None:
        return None
    facts = await _read_place(session.server, queue, item, past, is_there=False)
    return explain_wait(facts.model_copy(update={"requested_gpus": requested_gpus}))


async def read_queue_if_full(session: Session, item: Item) -> QueueFacts | None:
    """Return the queue of an item that waits for nothing but a place in work, of which there is none; `None` else."""
    queue = await read_queue_facts(session.server, item.work_pool_name or "")
    if queue is None:
        return None
    facts = await _read_place(session.server, queue, item, None)
    keeps = next(check for check in _CHECKS if check(facts) is not None)
    limit = queue.limit_of(item.work_queue_name)
    if limit is not None and queue.counted(item.work_queue_name) >= limit:
        return None
    return queue if keeps in (_limit, _no_slot) else None


async def read_queue_facts(server: Server, name: str) -> QueueFacts | None:
    """Read what is known of a queue now; `None` when it is gone."""
    pool, priorities, agents, in_work = await asyncio.gather(
        server.read_pool(name),
        server.list_queues(name),
        online_agents(server, name),
        server.list_items(pool=name, state_types=sorted(ACTIVE), limit=PAGE),
    )
    if pool is None:
        return None
    configuration = pool.base_job_template.get("job_configuration") or {}
    return QueueFacts(
        queue=name,
        now=datetime.now(timezone.utc),
        resource=str(configuration.get("resource") or ""),
        is_paused=pool.is_paused,
        limit=pool.concurrency_limit,
        per_author=per_author_of(pool),
        agents=tuple(agents),
        priorities=tuple(priorities),
        in_work=tuple(in_work),
    )


async def read_past(server: Server, queue: str, tags: tuple[str, ...]) -> Past | None:
    """Read how long past runs took: those of the item's job, or of its queue when that has not run there yet."""
    job = next((tag.removeprefix(PATH_TAG) for tag in tags if tag.startswith(PATH_TAG)), "")
    for name in dict.fromkeys((job, "")):
        wanted = [f"{PATH_TAG}{name}"] if name else None
        ended = ItemFilter(pool=queue, flow=JOB_FLOW, tags=wanted, state_types=[StateType.COMPLETED])
        done = await server.list_items(**ended, limit=PAST_RUNS)
        if done:
            return Past(seconds=tuple(item.total_run_time for item in done), job=name)
    return None


async def _count_ahead(server: Server, item: Item, *, pool: str, queue: str | None, due_before: datetime) -> int:
    """Count what waits in a line, with the item; of a short line, without what predecessors or sweeps hold."""
    count = await server.count_due(pool, before=due_before, queues=[queue] if queue else ())
    if not 0 < count <= _LOOKED_AT:
        return count
    line = ItemFilter(pool=pool, queue=queue, due_before=due_before, state_types=[StateType.SCHEDULED])
    listed = await server.list_items(**line, limit=_LOOKED_AT)
    others = [one for one in listed if one.id != item.id]
    held = {one for one, found in (await read_predecessors(server, others)).items() if found.waits_for}
    for sweep in {found for one in others if (found := sweep_of(one)) is not None}:
        if (await read_sweep_status(server, sweep)).held:
            held |= {one.id for one in others if sweep_of(one) == sweep}
    return len(listed) - len(held)


async def _read_place(
    server: Server, queue: QueueFacts, item: Item, past: Past | None, *, is_there: bool = True
) -> WaitFacts:
    rank = next((one.priority or 0 for one in queue.priorities if one.name == item.work_queue_name), 0)
    above = [one.name for one in queue.priorities if (one.priority or 0) < rank]
    due = item.next_scheduled_start_time or queue.now
    in_all, own, *urgent = await asyncio.gather(
        server.count_due(queue.queue, before=END_OF_TIME),
        _count_ahead(server, item, pool=queue.queue, queue=item.work_queue_name, due_before=due),
        *(_count_ahead(server, item, pool=queue.queue, queue=name, due_before=max(due, queue.now)) for name in above),
    )
    ahead_of_author = 0
    if queue.per_author is not None and (author := author_of(item)):
        lines = [(item.work_queue_name, due), *((name, max(due, queue.now)) for name in above)]
        before = [count_waiting(server, author, pool=queue.queue, queue=name, due_before=by) for name, by in lines]
        ahead_of_author = max(0, sum(await asyncio.gather(*before)) - is_there)
    sweep = sweep_of(item)
    predecessors = (await read_predecessors(server, [item])).get(item.id, Predecessors())
    return WaitFacts(
        queue=queue,
        item=item,
        ahead_by_priority=sum(urgent),
        ahead_by_time=max(0, own - is_there),
        ahead_of_author=ahead_of_author,
        waiting=max(1, in_all + (not is_there)),
        past=past,
        held_by_sweep=(await read_sweep_status(server, sweep)).held if sweep is not None else "",
        waits_for=predecessors.failure or predecessors.waits_for,
    )
