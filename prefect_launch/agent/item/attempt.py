"""Attempt at an item: what the steps of its life share, and the protocol of the hooks around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

import anyio

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.item.failure_report import Facts
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import Ownership
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.agent.log_notes import note_for_people
from prefect_launch.agent.runner_health import Part
from prefect_launch.core.racing import racing
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import format_duration
from prefect_launch.errors import InfrastructureError, InternalError, LaunchError, OperatorError
from prefect_launch.planning.plan import with_mask
from prefect_launch.queues.transitions import retry_until_available, transition
from prefect_launch.queues.wait_reason import elsewhere_key
from prefect_launch.runners.base import ExitStatus, Runner, RunPlan
from prefect_launch.server.values import Item

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Key of a cluster's reason in the data of the state `Submitted`: an agent that adopts the run does not repeat it.
_WAIT_REASON: Final = "wait_reason"
_WAIT_TITLE: Final = "Why the run waits where it was submitted"


class CancelledBeforeStartError(Exception):
    """The item was asked to stop, or became another agent's, before anything of it ran."""


class NotNowError(OperatorError):
    """This agent cannot run a claimed item now: the item goes back into its queue."""


class Attempt:
    """One attempt at one claimed item.

    Args:
        context: the agent's.
        running_item: the item.
        hooks: make the hooks around the steps, in this order.

    Attributes:
        ownership: whether the item is still this agent's.
        facts: what is known about the attempt, for its failure report.
        warnings: what went wrong around the run; added to the message of its end.
        totals: what the run has used, by name; added to the data of its end.
    """

    def __init__(
        self, context: AgentContext, running_item: RunningItem, hooks: Sequence[Callable[[Attempt], Hook]] = ()
    ) -> None:
        self.context = context
        self.running = running_item
        self.server = context.session.server
        self.ownership = Ownership(self.server, running_item, context)
        self.facts = Facts(agent=context.config.name, queue=running_item.queue, home=context.config.home)
        self.warnings: list[str] = []
        self.totals: dict[str, float] = {}
        self.known_runner: Runner | None = None
        self.hooks = [hook(self) for hook in hooks]

    def record(self, **facts: object) -> None:
        """Add what was learned, by the fields of `Facts`."""
        self.facts = self.facts.model_copy(update=facts)
        self.running.plan = self.facts.plan

    @property
    def item(self) -> Item:
        """The item, as it was claimed."""
        return self.running.item

    @property
    def plan(self) -> RunPlan:
        """The plan of the run.

        Raises:
            InternalError: before it is made.
        """
        if self.facts.plan is None:
            raise InternalError(f"Item {self.item.id} is not planned yet.")
        return self.facts.plan

    @property
    def runner(self) -> Runner:
        """The runner of its resource.

        Raises:
            InternalError: before the item is planned.
        """
        if self.known_runner is None:
            raise InternalError(f"Item {self.item.id} has no runner yet.")
        return self.known_runner

    @property
    def end(self) -> ExitStatus:
        """How its run has ended.

        Raises:
            InternalError: before it has.
        """
        if self.facts.end is None:
            raise InternalError(f"The run of item {self.item.id} has not ended yet.")
        return self.facts.end

    @property
    def handle(self) -> str:
        """The handle of what was created; empty before."""
        return self.running.handle or ""

    def describe_held(self) -> str:
        """Say what the hooks hold for the run, such as its GPUs; an empty text for nothing."""
        return ", ".join(filter(None, (hook.describe_held() for hook in self.hooks)))

    @property
    def part(self) -> Part:
        """The place that its run goes to.

        Raises:
            InternalError: before the item is planned.
        """
        options = self.facts.plan.options if self.facts.plan is not None else {}
        return Part(self.context.resource_of(self.runner), self.runner.place_of(options))

    async def take_name(self, name: str | None) -> None:
        """Name the item as its submitter did; one that Prefect made from a job's form has a name of Prefect's own."""
        if name and name != self.item.name:
            await retry_until_available(f"rename {self.item.id}", lambda: self.server.rename_item(self.item.id, name))
            self.running.item = self.item.model_copy(update={"name": name})

    async def record_run(self) -> None:
        """Record on the server what the item runs in.

        Raises:
            LaunchError: when the server is away, fails or refuses it.
        """
        await self.server.record_infrastructure(self.item.id, self.handle)

    async def check_ours(self) -> None:
        """See that the item is still to be run, and by this agent; before each step that cannot be undone.

        Raises:
            CancelledBeforeStartError: when it is not.
        """
        if self.running.stop.is_set() or not await self.ownership.is_certain():
            raise CancelledBeforeStartError

    async def transition(self, target: ItemState, message: str, data: object = None) -> None:
        """Move the pending item on its way; when the server says that it is being stopped, stop it."""
        state = await transition(
            self.server,
            self.item.id,
            StateType.PENDING,
            target,
            message,
            data=data,
            still_ours=self.ownership.is_certain,
        )
        if state.type in (StateType.CANCELLING, StateType.CANCELLED):
            self.running.stop.set()

    async def retry_until_reachable(self, call: Callable[[], Awaitable[T]], *, until_stopped: bool = True) -> T:
        """Make a call about what was created: it may have come through though no answer did, so it is made again."""
        return await self.context.runner_health.retry_until_reachable(
            self.part, call, lambda: until_stopped and self.running.stop.is_set()
        )

    async def unless_stopped(self, work: Awaitable[T], *, or_preempted: bool = False) -> T:
        """Do something long, unless the item is asked to stop meanwhile.

        Args:
            work: to do.
            or_preempted: also unless the agent stops its jobs.

        Raises:
            CancelledBeforeStartError: when it was.
            NotNowError: when the agent does.
        """
        asked = [self.running.stop, *([self.running.preempt] if or_preempted else [])]
        async with racing(work, *asked) as task:
            if task.done():
                return task.result()
            if self.running.stop.is_set():
                raise CancelledBeforeStartError
            raise NotNowError("Its agent was asked to stop its jobs while it waited in the cluster.")


def seconds_running(item: Item) -> float | None:
    """Return how long the run of an item has been running that was found again; None for one that was not."""
    if item.state is None or item.state.type is not StateType.RUNNING or not item.state.timestamp:
        return None
    return max(0.0, (datetime.now(timezone.utc) - item.state.timestamp).total_seconds())


async def until_running(attempt: Attempt) -> None:
    """Wait until the run runs; while a cluster holds it, its item says so and takes no slot of the agent.

    Raises:
        CancelledBeforeStartError: when the item was asked to stop.
        NotNowError: when the agent stops its jobs.
        InfrastructureError: when it does not run within the agent's `start_timeout`.
    """
    wait, limit = _WaitElsewhere(attempt), attempt.context.config.start_timeout
    try:
        with anyio.move_on_after(limit) as waited:
            waiting = attempt.runner.wait_running(attempt.handle, wait.note)
            await attempt.unless_stopped(waiting, or_preempted=True)
    finally:
        attempt.running.waits_in = None
    await wait.end()
    if limit and waited.cancelled_caught:
        raise InfrastructureError(
            f"The run did not start within {format_duration(limit)}, the agent's start_timeout. {wait.message} Ask for"
            " less or for another place, or have the agent's operator raise start_timeout."
        )


class _WaitElsewhere:
    """Shows that a run waits in a cluster, and why.

    The server takes one state of that name: the first reason is its message. Later ones are in the item's log, the
    newest on its page.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._artifact: UUID | None = None
        self.message = "No reason was told."

    async def note(self, reason: str) -> None:
        """Show a reason, the first or another one."""
        attempt = self._attempt
        name, reason = attempt.context.resource_of(attempt.runner), attempt.running.masked(reason)
        if reason and attempt.plan.limits_note:
            reason = f"{reason} ({attempt.plan.limits_note})"
        self.message = f"Waits in {name}: {reason}" if reason else f"Accepted by {name}; waits there to be started."
        is_first, has_state = attempt.running.waits_in is None, attempt.item.state_name == ItemState.SUBMITTED.label
        if is_first:
            attempt.running.waits_in = attempt.runner
            attempt.context.slot_freed(attempt.running.thread_id)
        if is_first and not has_state:
            await attempt.transition(ItemState.SUBMITTED, self.message, data={_WAIT_REASON: reason})
        elif not (is_first and attempt.item.state and attempt.item.state.data == {_WAIT_REASON: reason}):
            await note_for_people(attempt.server, attempt.item.id, self.message)
            await self._put(self.message)

    async def end(self) -> None:
        """Let the item's page say no longer that it waits."""
        if self._artifact is not None:
            await self._put(f"It waits no longer. The last reason: {self.message}")

    async def _put(self, text: str) -> None:
        """Put a text onto the item's page, in place of the last one; a page that cannot be written delays no run."""
        put = partial(self._attempt.server.put_artifact, self._attempt.item.id, artifact_id=self._artifact)
        try:
            key = elsewhere_key(self._attempt.item.run_count + 1)
            self._artifact = await put(key=key, kind="markdown", data=text, description=_WAIT_TITLE)
        except LaunchError as error:
            log.warning("%s wait-not-shown %s", self._attempt.item.id, error)


async def remask(attempt: Attempt, plan: RunPlan) -> RunPlan:
    """Return a stored plan with the mask of its secrets; a log note names those that cannot be read any more."""
    context, item_id = attempt.context, attempt.item.id
    read = partial(with_mask, plan, context.config.machine, context.session.read_secret)
    plan, gone = await retry_until_available(f"show the secrets of {item_id}", read)
    for name in gone:
        text = f"The Secret block {name!r} cannot be read any more: its value is not masked in what follows here."
        await note_for_people(attempt.server, item_id, text)
    return plan


class Hook:
    """A hook around the steps of one attempt; each method does nothing unless a hook overrides it.

    `prefect_launch.agent.item.hooks.HOOKS` lists them. An error of `plan` or `prepare` keeps the item from its start;
    the other methods deal with their own errors.

    Args:
        attempt: at the item.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def describe_held(self) -> str:
        """Say what it holds for the run, in words; an empty text for nothing."""
        return ""

    async def plan(self) -> None:
        """Complete the plan; nothing of the attempt exists yet."""

    async def prepare(self) -> None:
        """Lay out what the run needs; it is cancelled when the item is asked to stop."""

    async def started(self) -> None:
        """Do something once the item is Running."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Do something while the run is watched; `facts.end` is known at the end of a run that was."""
        yield

    async def ended(self) -> None:
        """Keep what the run has left."""

    async def outcome(self) -> Outcome | None:
        """Return how the item ends; `None` when this hook does not decide it."""
        return None
