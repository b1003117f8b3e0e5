"""Why an item waits, in words: its place in the line, what keeps it there, and when it will about start.

Pure: the facts are a value, which `prefect_launch.queues.wait_facts` reads; nothing is asked or decided here.
Of several reasons it tells the one that somebody must see to first: a paused queue before a missing agent, that before
a limit, that before busy slots.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import utc_minute, utc_time
from prefect_launch.queues.activity import AgentInfo
from prefect_launch.queues.forecast import Past, seconds_until_start
from prefect_launch.server.values import Item, PriorityQueue

_COUNTED: Final = frozenset({StateType.PENDING, StateType.RUNNING})
_DRAINING: Final = "draining"


class WaitCause(str, Enum):
    """What keeps an item waiting; the word stands before the reason in the item's log."""

    PAUSED = "paused"
    NOT_DUE = "not due"
    NO_AGENT = "no agent"
    AWAY = "engine away"
    LIMIT = "limit"
    DEVICES = "devices"
    TURN = "its turn"


class QueueFacts(BaseModel):
    """What is known of a queue at one moment."""

    model_config = ConfigDict(frozen=True)

    queue: str
    now: datetime
    resource: str = ""
    is_paused: bool = False
    limit: int | None = None
    agents: tuple[AgentInfo, ...] = Field(default=(), description="Those that are online.")
    priorities: tuple[PriorityQueue, ...] = ()
    in_work: tuple[Item, ...] = ()

    def limit_of(self, work_queue: str | None) -> int | None:
        """Return the limit of one priority."""
        return next((one.concurrency_limit for one in self.priorities if one.name == work_queue), None)

    def counted(self, work_queue: str | None = None) -> int:
        """Count what the limits of the queue, or of one priority, count."""
        counted = [item for item in self.in_work if item.state_type in _COUNTED]
        return sum(work_queue is None or item.work_queue_name == work_queue for item in counted)

    @property
    def taking(self) -> tuple[AgentInfo, ...]:
        """The agents that take items."""
        return tuple(agent for agent in self.agents if agent.state != _DRAINING)


class WaitFacts(BaseModel):
    """What is known of one waiting item."""

    model_config = ConfigDict(frozen=True)

    queue: QueueFacts
    item: Item
    urgent: int = Field(default=0, description="How many of a higher priority wait and are due.")
    earlier: int = Field(default=0, description="How many of its own priority are due before it.")
    waiting: int = Field(default=1, description="How many wait in the queue, with it.")
    past: Past | None = None
    asks: str = Field(default="", description="Which GPUs one asks for that no agent has looked at yet: `2 GPUs`.")


class Waiting(BaseModel):
    """Why an item waits.

    Attributes:
        cause: what keeps it waiting.
        reason: the same in words, with what to do about it.
        place: its place in the line; 1 is the next.
        waiting: how many wait in its queue, with it.
        expected_start: when it will about start, if that can be told.
        basis: from what that is told, such as `20 past runs of train`.
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
        """Its place in words, such as `3rd of 12`."""
        return f"{_ordinal(self.place)} of {self.waiting}"

    def __str__(self) -> str:
        start = ""
        if self.expected_start is not None and self.basis:
            start = f" Expected to start at about {utc_minute(self.expected_start)}, from {self.basis}."
        return f"{self.reason} It is the {self.position} in the queue.{start}"


def tell(facts: WaitFacts) -> Waiting:
    """Tell why an item waits."""
    found = next(found for check in _CHECKS if (found := check(facts)) is not None)
    cause, reason = found
    start = _expected_start(facts, cause)
    return Waiting(
        cause=cause,
        reason=reason,
        place=facts.urgent + facts.earlier + 1,
        waiting=max(facts.waiting, facts.urgent + facts.earlier + 1),
        expected_start=start,
        basis=facts.past.describe() if start is not None and facts.past and cause is not WaitCause.NOT_DUE else "",
    )


_Told = tuple[WaitCause, str]


def _paused(facts: WaitFacts) -> _Told | None:
    queue, name = facts.queue, facts.item.work_queue_name
    if queue.is_paused:
        told = f"The queue {queue.queue!r} is paused. 'prefect-launch queue resume {queue.queue}' lets it go on."
    elif any(one.name == name and one.is_paused for one in queue.priorities):
        told = f"The work queue {name!r} of the queue {queue.queue!r} is paused. Resume it on the work pool's page."
    else:
        return None
    return WaitCause.PAUSED, told


def _not_due(facts: WaitFacts) -> _Told | None:
    due = _due(facts.item)
    if due is None or due <= facts.queue.now:
        return None
    if facts.item.state_name == ItemState.AWAITING_RETRY.label:
        return WaitCause.NOT_DUE, f"It is run again at {utc_time(due)}, as its retry rule says."
    return WaitCause.NOT_DUE, f"It is due at {utc_time(due)}."


def _no_agent(facts: WaitFacts) -> _Told | None:
    queue = facts.queue
    starts = f"'prefect-launch agent start -q {queue.queue}' starts one."
    if not queue.agents:
        return WaitCause.NO_AGENT, f"No agent is online for the queue {queue.queue!r}. {starts}"
    if not queue.taking:
        names = ", ".join(agent.name for agent in queue.agents)
        all_of = f"All agents of the queue {queue.queue!r} are draining ({names}): they take no more items."
        undo = "'prefect-launch agent drain NAME --undo' lets one take items again, and"
        return WaitCause.NO_AGENT, f"{all_of} {undo} {starts}"
    return None


def _away(facts: WaitFacts) -> _Told | None:
    """The agents are there, and what they would run it in is not."""
    mark = f"{facts.queue.resource}: "
    each = {
        agent.name: next((one.removeprefix(mark) for one in agent.troubles if one.startswith(mark)), "")
        for agent in facts.queue.taking
    }
    if not facts.queue.resource or not all(each.values()):
        return None
    told = " ".join(f"{name}: {why}" for name, why in each.items())
    return WaitCause.AWAY, f"No agent of the queue {facts.queue.queue!r} can reach what it would run in. {told}"


def _limit(facts: WaitFacts) -> _Told | None:
    queue, name = facts.queue, facts.item.work_queue_name
    active = queue.counted()
    if queue.limit is not None and active >= queue.limit:
        told = f"The queue's limit is reached: {active} of {queue.limit} in work."
        return WaitCause.LIMIT, f"{told}{_ahead(facts)}"
    limit = queue.limit_of(name)
    if limit is not None and queue.counted(name) >= limit:
        told = f"The limit of its priority (work queue {name!r}) is reached: {queue.counted(name)} of {limit} in work."
        return WaitCause.LIMIT, f"{told}{_ahead(facts)}"
    return None


def _no_devices(facts: WaitFacts) -> _Told | None:
    taking = facts.queue.taking
    if facts.asks and all(agent.host and not agent.devices for agent in taking):
        whose = f"no agent of the queue {facts.queue.queue!r} has a GPU ({', '.join(agent.name for agent in taking)})"
        return WaitCause.DEVICES, f"It asks for {facts.asks}, and {whose}."
    told = {agent.name: agent.waits.get(str(facts.item.id)) or _busy(agent) for agent in taking}
    if not all(told.values()) or not any(str(facts.item.id) in agent.waits for agent in taking):
        return None
    each = " ".join(f"{name}: {reason}" for name, reason in told.items())
    cards = "; ".join(f"{agent.name}: {agent.devices}" for agent in taking if agent.devices)
    return WaitCause.DEVICES, f"No agent has the devices free that it asks for. {each}{cards and f' Now: {cards}.'}"


def _no_slot(facts: WaitFacts) -> _Told | None:
    taking = facts.queue.taking
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


def _turn(facts: WaitFacts) -> _Told:
    if facts.urgent or facts.earlier:
        blocked = {f"{agent.name}: {reason}" for agent in facts.queue.taking for reason in agent.waits.values()}
        first = f" The first of them wait for devices: {' '.join(sorted(blocked))}" if blocked else ""
        return WaitCause.TURN, f"Its turn has not come.{_ahead(facts)}{first}"
    names = ", ".join(f"{agent.name}: {agent.devices}" if facts.asks else agent.name for agent in facts.queue.taking)
    what = f" and {facts.asks}" if facts.asks else ""
    return WaitCause.TURN, f"It is the next: an agent with a free slot{what} takes it within seconds ({names})."


_CHECKS: Final[tuple[Callable[[WaitFacts], _Told | None], ...]] = (
    _paused,
    _not_due,
    _no_agent,
    _away,
    _limit,
    _no_devices,
    _no_slot,
    _turn,
)


def _ahead(facts: WaitFacts) -> str:
    """Say who comes first, such as ` It is behind 3 of higher priority and 5 earlier ones.`"""
    urgent = f"{facts.urgent} of higher priority" if facts.urgent else ""
    earlier = f"{facts.earlier} earlier one{'' if facts.earlier == 1 else 's'}" if facts.earlier else ""
    told = " and ".join(part for part in (urgent, earlier) if part)
    return f" It is behind {told}." if told else ""


def _expected_start(facts: WaitFacts, cause: WaitCause) -> datetime | None:
    queue = facts.queue
    if cause is WaitCause.NOT_DUE:
        return _due(facts.item)
    if facts.past is None or cause in (WaitCause.PAUSED, WaitCause.NO_AGENT):
        return None
    typical = facts.past.typical_seconds
    running = [_seconds_in_work(item, queue.now) for item in queue.in_work]
    elsewhere = sum(agent.in_work for agent in queue.taking) - len(running)
    if cause is WaitCause.DEVICES:
        if facts.asks or (not running and elsewhere <= 0):
            return None  # What is in the way is nothing of ours, or it can never fit.
        slots: int | None = len(running) + max(0, elsewhere)  # No more fits beside what runs.
    else:
        slots = _slots(facts)
    running += [typical / 2] * elsewhere  # Their agents work for other queues too.
    wait = seconds_until_start(ahead=facts.urgent + facts.earlier, running=running, slots=slots, typical=typical)
    return queue.now + timedelta(seconds=wait)


def _slots(facts: WaitFacts) -> int | None:
    """Return how many run at a time: what the agents can, inside the limits."""
    taking = facts.queue.taking
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
