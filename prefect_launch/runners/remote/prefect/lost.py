"""Lost child flow runs: those whose worker, infrastructure or wrapper is gone, so that nobody else would end them.

A child is silent while its state and its wrapper's heartbeat stay as they are. Time counts
only while the server answers. A child that has not started is ended for good: the input that its wrapper would take
first is taken, so that a wrapper that starts later starts no job.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.core.states import StateType
from prefect_launch.errors import ItemGoneError
from prefect_launch.runners.remote.prefect.waiting import WaitReasons
from prefect_launch.runners.remote.prefect.wrapper import HEARTBEAT_LABEL, START_KEY
from prefect_launch.server.values import Item, State

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

#: Four heartbeats of a wrapper; a worker is offline after a third of it. A wrapper that finds its flow run ended ends
#: its job.
LOST_SECONDS: Final = 240.0
#: What a worker has taken gets so many times the limit to start: an hour.
_TO_START: Final = 15
#: The same of infrastructure that outlives its worker, such as a pod that waits for a GPU: a day.
_TO_BEGIN: Final = 360
#: A worker gets this part of the limit to end what is cancelled before it has started.
_TO_CANCEL: Final = 0.25
#: The most that counts of the time between two looks.
_MOST_SECONDS: Final = 15.0
#: Content of the input that is taken first by the one that may start a run, or rule it out.
NOBODY: Final = "nobody: it was asked to end before it was started"


class Silence:
    """How long each child has shown the same signs.

    Args:
        clock: its clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._silent: dict[UUID, tuple[object, float]] = {}

    def seconds(self, signs: Mapping[UUID, object]) -> dict[UUID, float]:
        """Return for how long each child has shown the signs that it shows now; called at each look."""
        now = self._clock()
        passed, self._looked_at = min(now - self._looked_at, _MOST_SECONDS), now
        known, self._silent = self._silent, {}
        for child, sign in signs.items():
            last, before = known.get(child, (None, 0.0))
            is_same = child in known and sign == last
            self._silent[child] = (sign, before + passed if is_same else 0.0)
        return {child: before for child, (_, before) in self._silent.items()}


class LostRuns:
    """Ends the children that are lost.

    Args:
        lost_seconds: for how long a child is silent that counts as lost.
        clock: its clock, in seconds.
    """

    def __init__(self, lost_seconds: float = LOST_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._lost_seconds = lost_seconds
        self._silence = Silence(clock)

    async def end(self, server: Server, reasons: WaitReasons, children: Collection[Item]) -> None:
        """End those of the children that are lost, each with its reason; called at each look.

        Args:
            server: the Prefect server.
            reasons: knows their pools and workers.
            children: all that are followed.
        """
        waiting = {child.id: child for child in children if _may_be_lost(child)}
        silent = self._silence.seconds({child.id: _signs_of(child) for child in waiting.values()})
        for child_id, seconds in silent.items():
            child = waiting[child_id]
            with contextlib.suppress(ItemGoneError):
                if child.start_time is not None:
                    await self._end_started(server, child, seconds)
                elif child.state_type is StateType.CANCELLING:
                    await self._end_cancelled(server, child, seconds)
                elif (why := await self._why_never_started(reasons, child, seconds)) is not None:
                    await self._end_waiting(server, child, seconds, _crashed(why))

    async def _end_started(self, server: Server, child: Item, seconds: float) -> None:
        if seconds >= self._lost_seconds:
            message = "Nothing was heard of its job for long: what ran it is lost."
            await server.propose(child.id, _cancelled(message) if _is_cancelling(child) else _crashed(message))

    async def _end_cancelled(self, server: Server, child: Item, seconds: float) -> None:
        if seconds >= self._lost_seconds * _TO_CANCEL:
            message = "It had not started, and no worker has ended it."
            await self._end_waiting(server, child, seconds, _cancelled(message))

    async def _why_never_started(self, reasons: WaitReasons, child: Item, seconds: float) -> str | None:
        """Say why a child that a worker has taken will not start; None while it may."""
        if seconds < self._lost_seconds:
            return None
        lives_by_itself = child.infrastructure_pid is not None and not await reasons.is_process(child)
        worker = await reasons.lost_worker(child)
        if worker is not None and (not lives_by_itself or seconds >= self._lost_seconds * _TO_BEGIN):
            return f"{worker} is gone, which had taken it, and nothing has started it."
        if not lives_by_itself and seconds >= self._lost_seconds * _TO_START:
            return f"It was {child.state_name} for very long, and its worker has not started it."
        return None

    async def _end_waiting(self, server: Server, child: Item, seconds: float, state: State) -> None:
        """End a child that has not started, unless its wrapper is about to start its job."""
        is_ruled_out = await server.put_input(child.id, START_KEY, NOBODY)
        held = NOBODY if is_ruled_out else await server.read_input(child.id, START_KEY)
        # A wrapper that has begun ends it soon, or starts its job, unless it is lost itself.
        if held == NOBODY or seconds >= 2 * self._lost_seconds:
            await server.propose(child.id, state)


def _may_be_lost(child: Item) -> bool:
    """Whether somebody has a child in hand; what is scheduled waits for anybody."""
    if child.state_type is StateType.PAUSED:
        return child.start_time is not None
    return child.state_type in (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def _signs_of(child: Item) -> object:
    at = child.state.timestamp if child.state is not None else None
    return child.state_name, at, child.infrastructure_pid, child.labels.get(HEARTBEAT_LABEL)


def _is_cancelling(child: Item) -> bool:
    return child.state_type is StateType.CANCELLING


def _crashed(message: str) -> State:
    return State(type=StateType.CRASHED, name="Crashed", message=message)


def _cancelled(message: str) -> State:
    return State(type=StateType.CANCELLED, name="Cancelled", message=message)
