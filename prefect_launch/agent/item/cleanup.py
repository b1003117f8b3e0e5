"""Cleanup after an attempt: removes what is left of it, and writes its end.

It collects facts about the attempt for the failure report. Before it writes, it checks that the item is still this
agent's: an agent that was cut off and reported lost must not overwrite another's attempt.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Final

import anyio

from prefect_launch.agent.item.attempt import Attempt
from prefect_launch.agent.item.failure_report import read_last_lines, without_home
from prefect_launch.agent.item.finish import end_item
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import log_lost
from prefect_launch.core.filesystem import remove_tree
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ItemGoneError, LaunchError, NoRoomError, NothingMadeError, UnreachableError

if TYPE_CHECKING:
    from prefect_launch.runners.base import ExitStatus

log = logging.getLogger(__name__)

#: After each try to remove a run whose item has ended; what is there after the last one is for the housekeeping.
_REMOVE_AGAIN_SECONDS: Final = (0.2, 1.0, 5.0, 0.0)
STOPPED_BEFORE_START: Final = "Stopped before it was started."
STOPPED_AND_REMOVED: Final = "Stopped before it was started: {removed}."


class AttemptCleanup:
    """The end of one attempt, whether it came to run or not.

    Args:
        attempt: at the item.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._context = attempt.context
        self._running = attempt.running

    def log_error(self, error: BaseException) -> None:
        """Write to the agent's log why the attempt did not come to run, in full but for its secrets."""
        if log.isEnabledFor(logging.DEBUG):
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
            log.debug("%s failed to start\n%s", self._running.id, self._running.masked(text))

    async def abort(self, outcome: Outcome, *, is_made: bool = True) -> Outcome:
        """End an item that does not come to run; what was created for it is stopped and removed first."""
        await self._read_log()
        plan = self._attempt.facts.plan
        if is_made and not await self._clear_away():
            outcome = outcome.not_again("What was created for it could not be removed.")
        elif self._running.handle is not None and plan is not None:
            if outcome.state is ItemState.CANCELLED:
                message = STOPPED_AND_REMOVED.format(removed=self._attempt.runner.removed_message)
                outcome = outcome.model_copy(update={"message": message})
            # The next attempt may have the same number, and must not find what this one has left.
            await anyio.to_thread.run_sync(remove_tree, plan.run_dir)
        return await self.end(outcome)

    async def requeue(self, error: UnreachableError) -> Outcome:
        """Put an item back into its queue that does not come to run: what it was to run in is away."""
        health, why = self._context.runner_health, self._running.masked(str(error))
        if isinstance(error, NoRoomError):
            health.mark_full(self._running.queue, why)
        elif self._attempt.known_runner is not None:
            health.mark_down(self._attempt.part, why)
        queued = Outcome(state=ItemState.QUEUED, message=str(error))
        return await self.abort(queued, is_made=not isinstance(error, NothingMadeError))

    async def fail_unwatchable(self, outcome: Outcome) -> Outcome:
        """End an item whose run cannot be watched; one that cannot be stopped either must get no second attempt."""
        if not await self._clear_away():
            outcome = outcome.not_again("Its run may still be there.")
        return await self.end(outcome, StateType.RUNNING)

    async def end(self, outcome: Outcome, current: StateType = StateType.PENDING) -> Outcome:
        """Write the item's end; one that was asked to stop meanwhile can only become cancelled.

        Returns:
            What the item has become; as it was given when the item is not this agent's any more.
        """
        if not await self._attempt.ownership.is_certain():
            await log_lost(self._attempt.server, self._running.id, self._running.masked(outcome.message))
            return outcome
        if self._running.stop.is_set() and outcome.state is not ItemState.CANCELLED:
            outcome = outcome.cancelled()
        if outcome.state is not ItemState.COMPLETED:
            await self.complete_facts()
        outcome = self._for_users(outcome)
        self._running.is_ending = True
        try:
            ended = await end_item(self._context.session, self._running.item, outcome, current, self._attempt.facts)
        except ItemGoneError:
            log.warning("%s gone %s", self._running.id, outcome.message)
            return outcome
        self._running.goes_back |= ended.state.type is StateType.SCHEDULED
        return ended

    def _for_users(self, outcome: Outcome) -> Outcome:
        """Return an outcome as all may read it: without secrets, and with paths of this machine in the log alone."""
        outcome = outcome.model_copy(update={"message": self._running.masked(outcome.message)})
        message = without_home(outcome.message, self._context.config.home)
        if message == outcome.message:
            return outcome
        log.info("%s unabridged %s", self._running.id, outcome.message)
        return outcome.model_copy(update={"message": message})

    async def _clear_away(self) -> bool:
        """Stop and remove what was created for the item; return whether it is gone for certain."""
        handle = self._running.handle
        if self._attempt.known_runner is None or handle is None:
            return True
        try:
            await self._attempt.runner.stop(handle, self._context.config.stopped_run_timeout)
            await self._attempt.runner.remove(handle)
        except LaunchError as error:
            log.warning("%s not-cleared %s: %s", self._running.id, handle, error)
            return False
        return True

    async def remove(self, end: ExitStatus) -> None:
        """Remove what the run was in, once its log is safe; what is left otherwise is for the housekeeping."""
        if self._attempt.known_runner is None or self._running.handle is None:
            return
        if not end.log_complete:
            log.warning("%s left %s: its log is not whole yet", self._running.id, self._running.handle)
            return
        for pause in _REMOVE_AGAIN_SECONDS:
            try:
                await self._attempt.runner.remove(self._running.handle)
                return
            except LaunchError as error:
                log.warning("%s not-removed %s: %s", self._running.id, self._running.handle, error)
            await anyio.sleep(pause)

    async def complete_facts(self) -> None:
        """Learn what is learned from the run itself, before it is removed."""
        if not self._attempt.facts.last_lines:
            await self._read_log()
        if self._attempt.known_runner is None or self._running.handle is None or self._attempt.facts.image is not None:
            return
        try:
            self._attempt.record(image=await self._attempt.runner.image_of(self._running.handle))
        except LaunchError as error:
            log.debug("%s image unknown: %s", self._running.id, error)

    async def _read_log(self) -> None:
        plan = self._attempt.facts.plan
        if plan is not None:
            self._attempt.record(last_lines=await read_last_lines(plan.log_path, plan.mask))
