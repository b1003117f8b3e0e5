"""Stopping what runs: when somebody asked for it, when its time is up, or when the agent takes its jobs down.

A hook beside the watch of one run. It stops the run, again and again until the runner has seen it end, and says
afterwards how that stop ends the item. Why a run was stopped is told by what is on record, not by memory alone: the
next agent, which finds a run stopped at its limit, ends it in the same way.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Final

from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.agent.item.transitions import log
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import format_duration
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import ExitStatus, Phase, Runner, RunPlan
from prefect_launch.spec.retry import Cause

#: After a stop that the machine failed to do.
_RETRY_SECONDS: Final = 5.0


class Stopper:
    """Stops one run when there is a reason to.

    Args:
        running_item: of the item; its handle is what runs.
        runner: of its resource.
        plan: of the run, with its time limit.
        grace_seconds: between TERM and KILL.
        frees: the GPUs that are free once it is gone, in words.
    """

    def __init__(
        self, running_item: RunningItem, runner: Runner, plan: RunPlan, grace_seconds: float, *, frees: str = ""
    ) -> None:
        self._running = running_item
        self._runner = runner
        self._plan = plan
        self._grace = grace_seconds
        self._frees = f", {frees} free" if frees else ""
        self._timed_out = False

    async def watch(self) -> None:
        """Wait for a reason, then stop the run. Cancel it once the run has ended."""
        why = await self._reason()
        log.info("%s stopping: %s", self._running.id, why)
        while True:
            try:
                await self._runner.stop(self._running.handle or "", self._grace)
                return
            except LaunchError as error:
                log.warning("%s not-stopped %s", self._running.id, error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _reason(self) -> str:
        asked = asyncio.ensure_future(self._running.stop.wait())
        preempted = asyncio.ensure_future(self._running.preempt.wait())
        waiting = {asked, preempted}
        try:
            done, _ = await asyncio.wait(waiting, timeout=self._left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if not done:
            self._timed_out = True
            return f"its time limit of {format_duration(self._plan.timeout or 0)} is over"
        return "it was asked to stop" if asked in done else "its agent stops its jobs"

    @property
    def _left(self) -> float | None:
        """What is left of the run's time; one that was found again has used some of it."""
        if self._plan.timeout is None:
            return None
        state = self._running.item.state
        if state is None or state.type is not StateType.RUNNING or state.timestamp is None:
            return self._plan.timeout
        used = (datetime.now(timezone.utc) - state.timestamp).total_seconds()
        return max(0.0, self._plan.timeout - max(0.0, used))

    async def outcome(self, end: ExitStatus) -> Outcome | None:
        """Say how the item of a run ends that was stopped; `None` when the run ended by itself.

        What somebody asked to stop is removed first, so that its state can say that it is gone.
        """
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
        limit = self._plan.timeout
        if limit is not None and (self._timed_out or (end.duration_seconds or 0.0) >= limit):
            told = f"The job timed out after {format_duration(limit)}, its time limit; {end.describe()}."
            message = f"[{Phase.RUN.value}] {told}"
            return Outcome(state=ItemState.FAILED, message=message, data=data, cause=Cause.TIMEOUT)
        return None

    async def _remove(self) -> str:
        try:
            await self._runner.remove(self._running.handle or "")
        except LaunchError as error:
            log.warning("%s not-cleared %s", self._running.id, error)
            return f"ended, but not removed ({error})"
        return self._runner.removed_message
