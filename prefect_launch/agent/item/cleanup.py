"""Cleanup after an attempt: clears away what is left of it, and writes its end, if it may.

It gathers what is learned about the attempt on the way, for the failure report. Before it writes it asks whether the
item is still this agent's: an agent that was cut off and taken for lost writes nothing over another's attempt.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

import anyio

from prefect_launch.agent.item.failure_report import Facts, read_last_lines, without_home
from prefect_launch.agent.item.finish import end_item
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import owns_item
from prefect_launch.agent.item.running_items import now
from prefect_launch.core.filesystem import remove_tree
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ItemGoneError, LaunchError, UnreachableError

if TYPE_CHECKING:
    from prefect_launch.agent.context import AgentContext
    from prefect_launch.agent.item.running_items import RunningItem
    from prefect_launch.runners.base import ExitStatus, Runner

log = logging.getLogger("prefect_launch.agent")


class AttemptCleanup:
    """The closing of one attempt.

    Args:
        context: the agent's.
        running_item: of the item.

    Attributes:
        facts: what is known about the attempt.
        runner: of its resource, once it is known.
    """

    def __init__(self, context: AgentContext, running_item: RunningItem) -> None:
        self._context = context
        self._running = running_item
        self._server = context.session.server
        self.facts = Facts(agent=context.config.name, queue=running_item.queue)
        self.runner: Runner | None = None

    def record(self, **facts: object) -> None:
        """Add what was learned, by the fields of `Facts`."""
        self.facts = self.facts.model_copy(update=facts)
        self._running.plan = self.facts.plan

    def log_error(self, error: BaseException) -> None:
        """Write to the agent's log why the attempt did not come to run, in full but for its secrets."""
        if log.isEnabledFor(logging.DEBUG):
            told = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
            log.debug("%s failed to start\n%s", self._running.id, self._running.masked(told))

    async def is_trusted(self) -> bool:
        """Whether the item is this agent's for certain: one that was not seen to be for long may have been called lost.

        It is seen at the claim, and then with the looks at all items in work that the agent takes anyhow.
        """
        return now() - self._running.held_at < self._context.trusted_seconds or await self._owns_item()

    def invalidate_lease(self) -> None:
        """Take the item for this agent's only when it is seen to be: somebody else has stopped its run."""
        self._running.held_at = float("-inf")

    async def abort(self, outcome: Outcome) -> Outcome:
        """End an item that does not come to run; what was created for it is stopped and removed first."""
        await self._read_log()
        plan = self.facts.plan
        if not await self._clear_away():
            outcome = outcome.not_again("What was created for it could not be removed.")
        elif self._running.handle is not None and plan is not None:
            if outcome.state is ItemState.CANCELLED and self.runner is not None:
                outcome = outcome.model_copy(
                    update={"message": f"{outcome.message[:-1]}: {self.runner.removed_message}."}
                )
            # The next attempt may have the same number, and must not find what this one has left.
            await anyio.to_thread.run_sync(remove_tree, plan.run_dir)
        return await self.end(outcome)

    async def requeue(self, error: UnreachableError) -> Outcome:
        """Put an item back into its queue that does not come to run: what it was to run in is away."""
        if self.runner is not None:
            self._context.runner_health.mark_down(
                self._context.resource_of(self.runner), self._running.masked(str(error))
            )
        return await self.abort(Outcome(state=ItemState.QUEUED, message=str(error)))

    async def fail_unwatchable(self, outcome: Outcome, current: StateType) -> Outcome:
        """End an item whose run cannot be watched; one that cannot be stopped either must get no second attempt."""
        if not await self._clear_away():
            outcome = outcome.not_again("Its run may still be there.")
        return await self.end(outcome, current)

    async def end(self, outcome: Outcome, current: StateType = StateType.PENDING) -> Outcome:
        """Write the item's end; one that was asked to stop meanwhile can only become cancelled.

        Returns:
            What the item has become; as it was given when the item is not this agent's any more.
        """
        if not await self.is_trusted():
            log.warning("%s not-ours-any-more %s", self._running.id, self._running.masked(outcome.message))
            return outcome
        if self._running.stop.is_set() and outcome.state is not ItemState.CANCELLED:
            outcome = outcome.cancelled()
        if outcome.state is not ItemState.COMPLETED:
            await self.complete_facts()
        outcome = self._told_to_users(outcome)
        try:
            return await end_item(self._context.session, self._running.item, outcome, current, self.facts)
        except ItemGoneError:
            log.warning("%s gone %s", self._running.id, outcome.message)
            return outcome

    def _told_to_users(self, outcome: Outcome) -> Outcome:
        """Return an end as all may read it, without secrets: where on this machine its things are, the log tells."""
        outcome = outcome.model_copy(update={"message": self._running.masked(outcome.message)})
        message = without_home(outcome.message, self._context.config.home)
        if message == outcome.message:
            return outcome
        log.info("%s in-full %s", self._running.id, outcome.message)
        return outcome.model_copy(update={"message": message})

    async def _owns_item(self) -> bool:
        if not await owns_item(self._server, self._running.id, self._running.claim):
            return False
        self._running.held_at = now()
        return True

    async def _clear_away(self) -> bool:
        """Stop and remove what was created for the item; return whether it is gone for certain."""
        handle = self._running.handle
        if self.runner is None or handle is None:
            return True
        try:
            await self.runner.stop(handle, self._context.config.stopped_run_timeout)
            await self.runner.remove(handle)
        except LaunchError as error:
            log.warning("%s not-cleared %s: %s", self._running.id, handle, error)
            return False
        return True

    async def remove(self, end: ExitStatus) -> None:
        """Remove what the run was in, once its log is safe; what is left otherwise is for the housekeeping."""
        if self.runner is None or self._running.handle is None:
            return
        if end.log_complete:
            await self.runner.remove(self._running.handle)
        else:
            log.warning("%s left %s: its log is not whole yet", self._running.id, self._running.handle)

    async def complete_facts(self) -> None:
        """Learn what is learned from the run itself, before it is removed."""
        if not self.facts.last_lines:
            await self._read_log()
        if self.runner is None or self._running.handle is None or self.facts.image is not None:
            return
        try:
            self.record(image=await self.runner.image_of(self._running.handle))
        except LaunchError as error:
            log.debug("%s image unknown: %s", self._running.id, error)

    async def _read_log(self) -> None:
        plan = self.facts.plan
        if plan is not None:
            self.record(last_lines=await read_last_lines(plan.log_path, plan.mask))
