"""Stopping what runs: when somebody asked for it, when its time is up, or when the agent takes its jobs down.

A hook beside the watch of one run. It stops the run, again and again until the runner has seen it end, and says
afterwards how that stop ends the item. Why a run was stopped is told by what is on record, not by memory alone: the
next agent, which finds a run stopped at its limit, ends it in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Final

from prefect_launch.agent.item.attempt import Attempt, Hook
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.transitions import log
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.supervision import restarted
from prefect_launch.core.units import format_duration
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import Phase
from prefect_launch.server.values import Item
from prefect_launch.spec.retry import Cause

#: After a stop that the machine failed to do.
_RETRY_SECONDS: Final = 5.0


class Stopping(Hook):
    """Stops one run when there is a reason to, and says how that stop ends its item."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._running = attempt.running
        self._frees = ""
        self._timed_out = False

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        held = self.attempt.holds()
        self._frees = f", {held} free" if held else ""
        stopping = asyncio.create_task(restarted(f"stopping {self._running.id}", self._stop_when_due))
        try:
            yield
        finally:
            stopping.cancel()
            await asyncio.wait({stopping})

    async def _stop_when_due(self) -> None:
        """Wait for a reason, then stop the run. Cancel it once the run has ended."""
        why = await self._reason()
        log.info("%s stopping: %s", self._running.id, why)
        while True:
            try:
                await self.attempt.runner.stop(self.attempt.handle, self.attempt.context.config.stopped_run_timeout)
                return
            except LaunchError as error:
                log.warning("%s not-stopped %s", self._running.id, error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _reason(self) -> str:
        left = seconds_left(self._running.item, self.attempt.plan.timeout)
        asked = asyncio.ensure_future(self._running.stop.wait())
        preempted = asyncio.ensure_future(self._running.preempt.wait())
        waiting = {asked, preempted}
        try:
            done, _ = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if not done:
            self._timed_out = True
            return f"its time limit of {format_duration(self.attempt.plan.timeout or 0)} is over"
        return "it was asked to stop" if asked in done else "its agent stops its jobs"

    async def outcome(self) -> Outcome | None:
        # What somebody asked to stop is removed first, so that its state can say that it is gone.
        end = self.attempt.end
        if not end.stopped:
            return None
        data = {"exit_code": end.exit_code, "signal": end.signal, "oom_killed": False}
        lasted = "" if end.duration_seconds is None else f" after {end.duration_seconds:.1f} s"
        if self._running.stop.is_set():
            message = f"Stopped{lasted}: {await self._remove()}{self._frees}, {end.describe()}."
            return Outcome(state=ItemState.CANCELLED, message=message, data=data)
        if self._running.preempt.is_set() and not self._timed_out:
            message = f"[{Phase.RUN.value}] Preempted{lasted}: its agent was told to stop its jobs; {end.describe()}."
            return Outcome(state=ItemState.CRASHED, message=message, data=data, cause=Cause.PREEMPTED)
        limit = self.attempt.plan.timeout
        if limit is not None and (self._timed_out or (end.duration_seconds or 0.0) >= limit):
            told = f"The job timed out after {format_duration(limit)}, its time limit; {end.describe()}."
            message = f"[{Phase.RUN.value}] {told}"
            return Outcome(state=ItemState.FAILED, message=message, data=data, cause=Cause.TIMEOUT)
        return None

    async def _remove(self) -> str:
        try:
            await self.attempt.runner.remove(self.attempt.handle)
        except LaunchError as error:
            log.warning("%s not-cleared %s", self._running.id, error)
            return f"ended, but not removed ({error})"
        return self.attempt.runner.removed_message


def seconds_left(item: Item, timeout: float | None) -> float | None:
    """Return what is left of a run's time limit, in seconds; one that was found again has used some of it."""
    if timeout is None or item.state is None or item.state.type is not StateType.RUNNING or not item.state.timestamp:
        return timeout
    used = (datetime.now(timezone.utc) - item.state.timestamp).total_seconds()
    return max(0.0, timeout - max(0.0, used))
