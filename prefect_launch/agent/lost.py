"""Items of agents that are gone: any other agent of the queue goes on with what it can reach of them, tells of the
rest, and puts that back when its rule says so.

What was being stopped is cancelled, and stopped at once where it can be reached from here.
An agent is lost when its heartbeats have stood still for 90 s *while this agent looked on*, again and again, on its own
clock. A server that was away, a clock that jumped or an agent that has just come by itself prove nothing: the watch
starts anew after a gap. An agent that left in order has taken itself off the list, and what it left running is its own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

import anyio

from prefect_launch.agent.certificate import Facts
from prefect_launch.agent.ending import end_item
from prefect_launch.agent.held import Holder, holder_of, items_in_work, last_claim
from prefect_launch.agent.moves import log
from prefect_launch.agent.outcome import Outcome
from prefect_launch.agent_board import read_notices
from prefect_launch.errors import LaunchError
from prefect_launch.retry import Cause
from prefect_launch.runners.base import Phase
from prefect_launch.server.values import Item, State, Worker
from prefect_launch.states import ACTIVE, ItemState, StateType

if TYPE_CHECKING:
    from prefect_launch.session import Session

#: Six heartbeats of an agent; the same patience as for the heartbeats of items.
LOST_SECONDS: Final = 90.0
#: How often is looked in that time.
_LOOKS: Final = 6
#: How many looks an agent gets to go on with what another one cannot reach, before that one tells of it.
_HEIRS_LOOKS: Final = 2
#: After a longer gap between two looks nothing is known about the time between.
_GAP_SECONDS: Final = 45.0

_Seen = tuple["datetime | None", float]


class LostWatch:
    """One agent's watch over the others of its queues.

    Args:
        session: an open connection.
        name: of the agent that watches.
        queues: its queues.
        lost_seconds: how long heartbeats must have stood still.
        clock: gives seconds, and never goes back.
        stop_here: stops what an item of a queue has at work within this agent's reach, and says whether there was any.
        go_on: goes on with the run of an item of a queue whose agent is one of those that are lost, by their names, and
            says whether it is gone on with here.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        queues: Collection[str],
        *,
        lost_seconds: float = LOST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        stop_here: Callable[[str, Item], Awaitable[bool]] | None = None,
        go_on: Callable[[str, Item, Collection[str]], Awaitable[bool]] | None = None,
    ) -> None:
        self._session = session
        self._server = session.server
        self._name = name
        self._queues = tuple(queues)
        self._lost_seconds = lost_seconds
        self._clock = clock
        self._stop_here = stop_here
        self._go_on = go_on
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._settled: dict[tuple[str, str], datetime | None] = {}
        self._left: dict[tuple[str, str], set[UUID]] = {}
        self._looked_at = float("-inf")

    async def watch(self) -> None:
        """Look every 15 s (a sixth of the time), for ever; a server that is away is no fault."""
        while True:
            try:
                await self.look()
            except LaunchError as error:
                log.debug("not looked for lost agents: %s", error)
            await anyio.sleep(self._lost_seconds / _LOOKS)

    async def look(self) -> None:
        """Look once, go on with what is within reach, and tell what is lost.

        Raises:
            LaunchError: when the server does not answer.
        """
        if self._clock() - self._looked_at > _GAP_SECONDS:
            self._seen.clear()
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
        self._looked_at = self._clock()

    def _silence(self, queue: str, worker: Worker) -> float:
        """Return for how long this agent has seen the heartbeats of another stand still, in seconds."""
        key, beat = (queue, worker.name), worker.last_heartbeat_time
        if key not in self._seen or self._seen[key][0] != beat:
            self._seen[key] = (beat, self._clock())
            self._left.pop(key, None)
        return self._clock() - self._seen[key][1]

    async def _settle(self, queue: str, worker: Worker, lost: Collection[str], living: Collection[str] = ()) -> bool:
        """Go on with what is within reach of all that the agent of this name holds, and tell of the rest.

        What an agent out of sight may go on with is told of two looks later, unless that agent says it does.

        Returns:
            Whether nothing of it is at work any more: whoever goes on with something may be lost too.
        """
        key = (queue, worker.name)
        left = self._left.get(key)
        patience = self._lost_seconds * (1 + _HEIRS_LOOKS / _LOOKS)
        waits = self._go_on is not None and self._silence(queue, worker) < patience
        in_work = set() if waits else await self._in_work(living)
        kept: set[UUID] = set()
        for item in await items_in_work(self._server, queue):
            if left is not None and item.id not in left:
                continue
            history = await self._server.read_states(item.id)
            holder = holder_of(history)
            if holder is None or holder.agent != worker.name or history[-1].type not in ACTIVE:
                continue
            if await self._is_gone_on_with(queue, item, lost) or waits or str(item.id) in in_work:
                kept.add(item.id)
            else:
                await self._tell(queue, item, holder, history, worker)
        self._left[key] = kept
        return not kept

    async def _is_gone_on_with(self, queue: str, item: Item, lost: Collection[str]) -> bool:
        try:
            return self._go_on is not None and await self._go_on(queue, item, lost)
        except (LaunchError, OSError) as error:
            log.warning("%s not-gone-on-with %s", item.id, error)
            return False

    async def _in_work(self, living: Collection[str]) -> set[str]:
        """Return the ids of what agents that beat say they have in work; asked only when something is lost."""
        notices = (await read_notices(self._server)).values() if living else ()
        return {one.id for notice in notices if notice.name in living for one in notice.running}

    async def _tell(self, queue: str, item: Item, holder: Holder, history: list[State], worker: Worker) -> None:
        beat = worker.last_heartbeat_time
        seen = f"{beat:%Y-%m-%d %H:%M:%S} UTC" if beat else "an unknown time"
        why = f"Agent {holder.agent} on {holder.host} was last seen at {seen}."
        log.warning("%s lost %s", item.id, why)
        current = history[-1].type
        if current is StateType.CANCELLING:
            what = await self._stop_what_is_here(queue, item)
            outcome = Outcome(state=ItemState.CANCELLED, message=f"{why} {what}")
        else:
            outcome = Outcome(state=ItemState.CRASHED, message=f"[{Phase.RUN.value}] {why}", cause=Cause.LOST)
        facts = Facts(agent=f"{holder.agent} on {holder.host}", attempt=_attempt(item))
        claim = last_claim(history)
        token = claim.transition_id if claim else None
        # Several agents may tell of the same claim; the server takes the first.
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
