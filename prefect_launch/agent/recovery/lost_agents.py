"""Lost agents: detects agents without heartbeats, adopts the runs within reach, and reports the others as lost.

A lost item that was being cancelled is cancelled; its run is stopped where this agent reaches it. Any other one is
Crashed, or goes back into its queue when its retry rule says so.

An agent is lost when its heartbeats have stopped for 90 s *while this agent watched*, on this agent's clock. After a
gap (a server that was away, a clock that jumped, an agent that has just started) the watch starts anew. An agent that
leaves in order takes itself off the list, and keeps its runs.

Several lives of one agent name may exist: on two hosts at once, or one after another when an agent was moved and its
old home is gone. The worker's heartbeat belongs to the name, so each life has a presence of its own. A silent life is
lost like an agent, even while another agent of its name sends heartbeats. Runs of a life that left in order are for the
next life of its name; after the same silence, also for one on another host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

import anyio

from prefect_launch.agent.context import LOST_SECONDS
from prefect_launch.agent.item.failure_report import Facts
from prefect_launch.agent.item.finish import end_item
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import holder_of, items_in_work, last_claim
from prefect_launch.core.states import ACTIVE, ItemState, StateType
from prefect_launch.core.supervision import unless_away
from prefect_launch.core.units import utc_time
from prefect_launch.errors import LaunchError
from prefect_launch.queues.agent_status import read_statuses
from prefect_launch.queues.claim import undo_claim
from prefect_launch.queues.presence import Holder, Presence, delete_presence, read_presences
from prefect_launch.runners.base import Phase
from prefect_launch.server.values import Item, State, Worker
from prefect_launch.spec.scheduling import Cause

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

#: Checks within that time.
_CHECKS: Final = 6
#: Checks that other agents get to adopt a run, before an agent that cannot reach it reports it as lost.
_TAKEOVER_CHECKS: Final = 2
#: After a longer gap between two checks nothing is known about the time between.
_GAP_SECONDS: Final = 45.0

#: The heartbeat that was seen (its time, or its count), and when it was first seen, on the watcher's clock.
_Seen = tuple["datetime | int | None", float]


class LostAgentDetector:
    """One agent's watch over the others of its queues.

    Args:
        session: an open connection.
        holder: this life of the agent that watches.
        queues: its queues.
        lost_seconds: how long heartbeats must have stood still.
        clock: gives seconds, and never goes back.
        stop_here: stops the runs of an item of a queue within this agent's reach; returns whether there was any.
        adopt_lost_run: adopts the run of an item of a queue, given the names of the lost agents; returns whether this
            or another agent has adopted it.
        on_living: gets the other lives that are not over, at each check.
    """

    def __init__(
        self,
        session: Session,
        holder: Holder,
        queues: Collection[str],
        *,
        lost_seconds: float = LOST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        stop_here: Callable[[str, Item], Awaitable[bool]] | None = None,
        adopt_lost_run: Callable[[str, Item, Collection[str]], Awaitable[bool]] | None = None,
        on_living: Callable[[list[Presence]], None] = lambda _: None,
    ) -> None:
        self._session = session
        self._server = session.server
        self._name = holder.agent
        self._queues = tuple(queues)
        self._holder = holder
        self._namesakes: set[str] = set()
        self._lost_seconds = lost_seconds
        self._clock = clock
        self._stop_here = stop_here
        self._adopt_lost_run = adopt_lost_run
        self._on_living = on_living
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._settled: dict[tuple[str, str], datetime | None] = {}
        self._left: dict[tuple[str, str], set[UUID]] = {}
        self._checked_at = float("-inf")

    async def watch(self) -> None:
        """Check every 15 s (a sixth of the time); never returns. A server that is away is no error."""
        while True:
            with unless_away(log, "lost agents not checked"):
                await self.check()
            await anyio.sleep(self._lost_seconds / _CHECKS)

    async def check(self) -> None:
        """Check once: adopt the runs within reach, and report the others as lost.

        Raises:
            LaunchError: when the server does not answer.
        """
        if self._clock() - self._checked_at > _GAP_SECONDS:
            self._seen.clear()
        silent_lives = await self._find_silent_lives()
        for queue in self._queues:
            others = [one for one in await self._server.list_workers(queue) if one.name != self._name]
            silent = {one.name: one for one in others if self._silence(queue, one) >= self._lost_seconds}
            living = {one.name for one in others} - silent.keys()
            for worker in silent.values():
                key, beat = (queue, worker.name), worker.last_heartbeat_time
                is_settled = key in self._settled and self._settled[key] == beat
                if not is_settled and await self._settle(queue, worker, silent.keys(), living):
                    self._settled[key] = beat
                    self._left.pop(key, None)
            alive = living | {self._name}
            for life in silent_lives:
                # One that died before its first heartbeat is no worker of the queue: its presence alone shows it.
                if queue in life.queues and life.holder.agent not in silent:
                    await self._settle_silent_life(queue, life, alive)
        for life in silent_lives:
            await self._forget(life)
        self._checked_at = self._clock()

    async def _find_silent_lives(self) -> list[Presence]:
        """Return the lives that are silent for too long; warn when another agent has this one's name."""
        silent = []
        living = []
        for life in await read_presences(self._server):
            key, who = ("", life.holder.instance), life.holder
            if who.instance == self._holder.instance:
                continue
            before = self._seen.get(key)
            if before is None or before[0] != life.beat:
                self._seen[key] = (life.beat, self._clock())
                if before is not None and who.agent == self._name and who.instance not in self._namesakes:
                    self._namesakes.add(who.instance)
                    log.warning(
                        "same-name: another agent called %s runs on %s. Each knows only its own items; give one of them"
                        " another name (--name).",
                        who.agent,
                        who.host,
                    )
            is_for_this = not life.has_left or who.agent == self._name
            is_silent = self._clock() - self._seen[key][1] >= self._lost_seconds
            if is_for_this and is_silent:
                silent.append(life)
            elif not life.has_left and not is_silent:
                living.append(life)
        self._on_living(living)
        return silent

    async def _settle_silent_life(self, queue: str, life: Presence, living: Collection[str]) -> None:
        """Settle what a life of an agent holds that is over, though no worker of its name is silent."""
        who = life.holder
        if (queue, who.instance) in self._settled:
            return
        in_work = await self._in_work(living)
        kept = False
        for item in await items_in_work(self._server, queue):
            history = await self._server.read_states(item.id)
            holder = holder_of(history)
            if holder is None or holder.instance != who.instance or history[-1].type not in ACTIVE:
                continue
            if await self._is_adopted(queue, item, ()) or str(item.id) in in_work:
                kept = True
            elif history[-1].type is StateType.PENDING and who.agent == self._name:
                why = f"{who} has claimed it and is not heard of any more; another agent of its name gives it back."
                log.warning("%s orphan %s", item.id, why)
                await undo_claim(self._server, item, why)
            else:
                await self._report_lost(queue, item, holder, history, life.at)
        if not kept:
            self._settled[(queue, who.instance)] = None

    async def _forget(self, life: Presence) -> None:
        """Delete the presence of a life once none of its items is active on any of its queues."""
        if all((queue, life.holder.instance) in self._settled for queue in life.queues):
            await delete_presence(self._server, life.holder.instance)

    def _silence(self, queue: str, worker: Worker) -> float:
        """Return for how long this agent has seen the heartbeats of another stand still, in seconds."""
        key, beat = (queue, worker.name), worker.last_heartbeat_time
        if key not in self._seen or self._seen[key][0] != beat:
            self._seen[key] = (beat, self._clock())
            self._left.pop(key, None)
        return self._clock() - self._seen[key][1]

    async def _settle(self, queue: str, worker: Worker, lost: Collection[str], living: Collection[str] = ()) -> bool:
        """Adopt what is within reach of all that a lost agent holds, and report the rest as lost.

        What another agent may adopt is reported two checks later, unless that agent's status says that it runs it.

        Returns:
            Whether none of its items is active any more: an agent that has adopted one may be lost too.
        """
        key = (queue, worker.name)
        left = self._left.get(key)
        patience = self._lost_seconds * (1 + _TAKEOVER_CHECKS / _CHECKS)
        waits = self._adopt_lost_run is not None and self._silence(queue, worker) < patience
        in_work = set() if waits else await self._in_work(living)
        kept: set[UUID] = set()
        for item in await items_in_work(self._server, queue):
            if left is not None and item.id not in left:
                continue
            history = await self._server.read_states(item.id)
            holder = holder_of(history)
            if holder is None or holder.agent != worker.name or history[-1].type not in ACTIVE:
                continue
            if await self._is_adopted(queue, item, lost) or waits or str(item.id) in in_work:
                kept.add(item.id)
            else:
                await self._report_lost(queue, item, holder, history, worker.last_heartbeat_time)
        self._left[key] = kept
        return not kept

    async def _is_adopted(self, queue: str, item: Item, lost: Collection[str]) -> bool:
        try:
            return self._adopt_lost_run is not None and await self._adopt_lost_run(queue, item, lost)
        except (LaunchError, OSError) as error:
            log.warning("%s not-adopted %s", item.id, error)
            return False

    async def _in_work(self, living: Collection[str]) -> set[str]:
        """Return the ids of the items that living agents report as active; read only when something is lost."""
        statuses = (await read_statuses(self._server)).values() if living else ()
        return {one.id for status in statuses if status.name in living for one in status.running}

    async def _report_lost(
        self, queue: str, item: Item, holder: Holder, history: list[State], beat: datetime | None
    ) -> None:
        seen = utc_time(beat) if beat else "an unknown time"
        why = f"Agent {holder.agent} on {holder.host} was last seen at {seen}."
        log.warning("%s lost %s", item.id, why)
        current = history[-1].type
        if current is StateType.CANCELLING:
            what = await self._stop_what_is_here(queue, item)
            outcome = Outcome(state=ItemState.CANCELLED, message=f"{why} {what}")
        else:
            outcome = Outcome(state=ItemState.CRASHED, message=f"[{Phase.RUN.value}] {why}", cause=Cause.LOST)
        facts = Facts(agent=str(holder), attempt=_attempt(item))
        claim = last_claim(history)
        token = claim.transition_id if claim else None
        # Several agents may report the same claim; the server takes the first.
        once = uuid5(item.id, f"lost {token}")
        await end_item(self._session, item, outcome, current, facts, transition_id=once)

    async def _stop_what_is_here(self, queue: str, item: Item) -> str:
        """Stop what can be reached of an item that was being stopped; say in words what has become of it."""
        try:
            if self._stop_here is not None and await self._stop_here(queue, item):
                return "Its run was stopped by another agent that reaches it: it is gone."
        except LaunchError as error:
            log.warning("%s not-stopped %s", item.id, error)
        return "When it comes back, it stops what it has of it."


def _attempt(item: Item) -> int:
    return item.run_count + (item.state_type is StateType.PENDING)
