"""One attempt at one claimed item: plan, prepare, create, record, start, Running, watch, finish.

Each step can be the last one of this agent's life. What was created is found again by its labels, under a name that is
the same for the same attempt; so the next agent goes on from there (`prefect_launch.agent.recovery.restart`), and
nothing is lost or started twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.devices.allocator import DevicesBusyError
from prefect_launch.agent.item.cleanup import AttemptCleanup
from prefect_launch.agent.item.log_notes import warn_of_other_image, write_log_note
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.outcome import Outcome, outcome_of_error, outcome_of_exit
from prefect_launch.agent.item.outputs import copy_previous_outputs, keep_outputs, publish_outputs
from prefect_launch.agent.item.ownership import hold_run_lock, owns_item, token_of
from prefect_launch.agent.item.previous_attempts import stop_previous_attempts
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.agent.item.stopping import Stopper
from prefect_launch.agent.item.transitions import retry_until_available, transition
from prefect_launch.core.states import ACTIVE, ItemState, StateType
from prefect_launch.core.supervision import restarted
from prefect_launch.errors import LaunchError, UnreachableError
from prefect_launch.planning.plan import Request, make_plan, with_mask
from prefect_launch.runners.base import ExitStatus, Labels, Phase, Runner, RunPlan
from prefect_launch.spec.item_parameters import check_labels, run_id_of, spec_of

T = TypeVar("T")

log = logging.getLogger("prefect_launch.agent")


class CancelledBeforeStartError(Exception):
    """The item was asked to stop before anything of it ran."""


class PreemptedBeforeStartError(Exception):
    """The agent stops its jobs, and this one waited in a cluster to be started."""

    def __str__(self) -> str:
        return "Its agent was told to stop its jobs while it waited in the cluster."


class ItemLifecycle:
    """One attempt at one item, from the claim to the final state.

    Args:
        context: the agent's.
        running_item: of the item.
    """

    def __init__(self, context: AgentContext, running_item: RunningItem) -> None:
        self._context = context
        self._server = context.session.server
        self._running = running_item
        self._item = running_item.item
        self._cleanup = AttemptCleanup(context, running_item)
        running_item.claim = running_item.claim or token_of(running_item.item)

    async def run(self) -> Outcome:
        """Do the whole attempt.

        Returns:
            How it ended; the item is in that state.
        """
        return await self._run(self._start)

    async def _run(self, start: Callable[[], Awaitable[tuple[Runner, RunPlan]]]) -> Outcome:
        """Bring the item to run, and watch it to its end."""
        try:
            runner, plan = await start()
        except CancelledBeforeStartError:
            outcome = Outcome(state=ItemState.CANCELLED, message="Stopped before it was started.")
            return await self._cleanup.abort(outcome)
        except UnreachableError as error:
            return await self._cleanup.requeue(error)
        except (DevicesBusyError, PreemptedBeforeStartError) as error:
            return await self._cleanup.abort(Outcome(state=ItemState.QUEUED, message=str(error)))
        except Exception as error:  # noqa: BLE001 - the item says why it does not run
            self._cleanup.log_error(error)
            self._cleanup.record(error=error)
            return await self._cleanup.abort(outcome_of_error(error, self._running.phase))
        return await self._watch(runner, plan, StateType.RUNNING)

    async def resume(self, runner: Runner, plan: RunPlan, handle: str, current: StateType) -> Outcome:
        """Go on with a run that was created by an agent that is gone.

        Args:
            runner: of its resource.
            plan: as it was kept in the run's folder.
            handle: of what exists.
            current: the type of the state that the item is in.
        """
        self._running.handle = handle
        self._running.phase = Phase.RUN
        self._running.claim = plan.labels.get(Labels.CLAIM, "")
        self._cleanup.runner = runner
        self._cleanup.record(plan=plan)
        plan = await self._hiding_secrets(plan)
        self._cleanup.record(plan=plan)
        if current is StateType.PENDING:
            return await self._run(partial(self._start_again, runner, plan, handle))
        return await self._watch(runner, plan, StateType.RUNNING)

    async def _hiding_secrets(self, plan: RunPlan) -> RunPlan:
        """Return a plan that was kept with what hides its secrets; its log tells which cannot be hidden any more."""
        machine, read = self._context.config.machine, self._context.session.read_secret
        plan, gone = await retry_until_available(
            f"show the secrets of {self._item.id}", lambda: with_mask(plan, machine, read)
        )
        for name in gone:
            told = f"The Secret block {name!r} cannot be read any more: its value is not masked in what follows here."
            await retry_until_available(
                f"take the log of {self._item.id}", partial(write_log_note, self._server, self._item.id, told)
            )
        return plan

    async def _start_again(self, runner: Runner, plan: RunPlan, handle: str) -> tuple[Runner, RunPlan]:
        await self._retry_until_reachable(runner, lambda: runner.start(handle))
        await self._until_running(runner, handle)
        await self._move(StateType.PENDING, ItemState.RUNNING, f"Found again by {self._context.config.name}.")
        return runner, plan

    async def _take_name(self, name: str | None) -> None:
        """Name the item as its submitter did; one that Prefect made from a job's form has a name of Prefect's own."""
        if name and name != self._item.name:
            await retry_until_available(
                f"rename {self._item.id}", lambda: self._server.rename_item(self._item.id, name)
            )
            self._item = self._running.item = self._item.model_copy(update={"name": name})

    async def _check_labels(self, of_queue: UUID) -> None:
        """See that the item is of the job that its deployment starts; the queue's own starts any.

        Raises:
            SpecError: when it is of another.
        """
        made_from = self._item.deployment_id
        labels: Mapping[str, Any] = {}
        if made_from is not None and made_from != of_queue:
            deployment = await retry_until_available(
                "show the deployment", lambda: self._server.read_deployment(made_from)
            )
            labels = self._item.labels if deployment is None else deployment.labels or {}
        if made_from is not None:
            check_labels(self._item, labels)

    async def _start(self) -> tuple[Runner, RunPlan]:
        session = self._context.session
        queue = await retry_until_available("show the queue", lambda: session.queue(self._running.queue))
        await self._check_labels(queue.deployment_id)
        request = Request(
            spec=spec_of(self._item),
            item_id=str(self._item.id),
            attempt=self._item.run_count + 1,
            queue=self._running.queue,
            config=queue.config,
            labels=self._labels(),
        )
        await self._take_name(request.spec.name)
        machine = self._context.config.machine
        plan = await self._unless_stopped(
            retry_until_available(
                "show the job", lambda: make_plan(request, machine, session.jobs, session.read_secret)
            )
        )
        self._cleanup.record(plan=plan)
        runner = self._cleanup.runner = self._context.runner(queue.config.resource)
        if plan.build_request is not None:
            from prefect_launch.agent.item.image_build import ensure_image

            plan = await self._unless_stopped(ensure_image(self._context, self._running, plan, self._move))
            self._cleanup.record(plan=plan)
        runner.check(plan)
        plan = await self._context.devices.attach_devices(self._item.id, runner, plan)
        await self._check_ours()  # Else what would be stopped, or removed, could be the next holder's.
        await stop_previous_attempts(self._context, runner, plan)
        await self._unless_stopped(copy_previous_outputs(session, plan, self._context.config.machine))
        waits_for = await runner.missing(plan)
        if waits_for is not None:
            self._running.phase = Phase.BUILD if waits_for is ItemState.BUILDING else Phase.AGENT
            await self._move(StateType.PENDING, waits_for, f"On {self._context.config.name}.")
            await self._unless_stopped(runner.prepare(plan))
        self._running.phase = Phase.RUN
        await self._check_ours()
        handle = await runner.create(plan)
        self._running.handle = handle
        await retry_until_available(
            f"record what {self._item.id} runs in", lambda: self._server.record_infrastructure(self._item.id, handle)
        )
        image = await self._retry_until_reachable(runner, lambda: runner.image_of(handle))
        self._cleanup.record(image=image)
        await self._check_ours()
        await self._retry_until_reachable(runner, lambda: runner.start(handle))
        self._context.runner_health.mark_up(queue.config.resource)
        await self._until_running(runner, handle)
        gpus = self._context.devices.gpus_of(self._item.id)
        what = f"{queue.config.resource} {Path(handle).name[:12]}{gpus and ', '}{gpus}"
        where = f"Runs on {self._context.config.name} ({what})."
        await self._move(StateType.PENDING, ItemState.RUNNING, where, data={"image": image} if image else None)
        await warn_of_other_image(self._server, self._item.id, plan, image)
        return runner, plan

    async def _until_running(self, runner: Runner, handle: str) -> None:
        """Wait until the run runs; while it waits in a cluster it takes none of the agent's slots.

        Raises:
            CancelledBeforeStartError: when the item was asked to stop.
            PreemptedBeforeStartError: when the agent stops its jobs.
        """
        try:
            await self._unless_stopped(runner.wait_running(handle, partial(self._note_wait, runner)), or_preempted=True)
        finally:
            self._running.waits_in = None

    async def _note_wait(self, runner: Runner, reason: str) -> None:
        """Show that the run waits in a cluster, and why; the server takes one state of that name, so later reasons go
        to the item's log."""
        name, reason = self._context.resource_of(runner), self._running.masked(reason)
        message = f"Waits in {name}: {reason}" if reason else f"Accepted by {name}; waits there to be started."
        is_first = self._running.waits_in is None
        if is_first:
            self._running.waits_in = runner
            self._context.slot_freed(self._running.thread_id)
        if is_first and self._item.state_name != ItemState.SUBMITTED.label:
            await self._move(StateType.PENDING, ItemState.SUBMITTED, message)
        elif message != self._item.message:
            await retry_until_available(
                f"take the log of {self._item.id}", partial(write_log_note, self._server, self._item.id, message)
            )

    async def _check_ours(self) -> None:
        """See that the item is still to be run, and by this agent.

        Raises:
            CancelledBeforeStartError: when it is not.
        """
        if self._running.stop.is_set() or not await self._cleanup.is_trusted():
            raise CancelledBeforeStartError

    async def _retry_until_reachable(
        self, runner: Runner, call: Callable[[], Awaitable[T]], *, until_stopped: bool = True
    ) -> T:
        """Make a call about what was created: it may have come through though no answer did, so it is made again."""
        return await self._context.runner_health.retry_until_reachable(
            self._context.resource_of(runner), call, lambda: until_stopped and self._running.stop.is_set()
        )

    def _labels(self) -> dict[str, str]:
        return {
            Labels.ITEM: str(self._item.id),
            Labels.ATTEMPT: str(self._item.run_count + 1),
            Labels.RUN_ID: run_id_of(self._item),
            Labels.QUEUE: self._running.queue,
            Labels.AGENT: self._context.config.name,
            Labels.CLAIM: self._running.claim,
        }

    async def _move(self, current: StateType, target: ItemState, message: str, data: object = None) -> None:
        """Move the item on its way; when the server says that it is being stopped, stop it."""
        ours = self._cleanup.is_trusted
        state = await transition(self._server, self._item.id, current, target, message, data=data, still_ours=ours)
        if state.type in (StateType.CANCELLING, StateType.CANCELLED):
            self._running.stop.set()

    async def _unless_stopped(self, work: Awaitable[T], *, or_preempted: bool = False) -> T:
        """Do something long, unless the item is asked to stop meanwhile.

        Args:
            work: to do.
            or_preempted: also unless the agent stops its jobs.

        Raises:
            CancelledBeforeStartError: when it was.
            PreemptedBeforeStartError: when the agent does.
        """
        task = asyncio.ensure_future(work)
        asked = [self._running.stop, *([self._running.preempt] if or_preempted else [])]
        stops = [asyncio.ensure_future(event.wait()) for event in asked]
        try:
            await asyncio.wait({task, *stops}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise CancelledBeforeStartError if self._running.stop.is_set() else PreemptedBeforeStartError
        finally:
            for stop in stops:
                stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _watch(self, runner: Runner, plan: RunPlan, current: StateType) -> Outcome:
        """Follow the run to its end; when another agent of this home has done so meanwhile, there is nothing to do."""
        async with hold_run_lock(plan.run_dir, self._context.config.name) as at_once:
            if not at_once and not await owns_item(self._server, self._item.id, self._running.claim, among=ACTIVE):
                return Outcome(state=ItemState.CANCELLED, message="Another agent has reported on it.")
            return await self._follow(runner, plan, current)

    async def _follow(self, runner: Runner, plan: RunPlan, current: StateType) -> Outcome:
        handle = self._running.handle or ""
        shipper = LogShipper(self._server, self._item.id, plan.log_path, mask=plan.mask)
        shipper.follow()
        frees = self._context.devices.gpus_of(self._item.id)
        stopper = Stopper(self._running, runner, plan, self._context.config.stopped_run_timeout, frees=frees)
        stopping = asyncio.create_task(restarted(f"stopping {self._item.id}", stopper.watch))
        faults = []
        try:
            watch = partial(runner.watch, handle, plan, ended=self._has_run)
            end = await self._retry_until_reachable(runner, watch, until_stopped=False)
            self._cleanup.record(end=end)
            faults += await self._finish_log(shipper, plan)
        except Exception as error:  # noqa: BLE001 - the run is out of sight: the item says so, the agent goes on
            self._cleanup.record(error=error)
            return await self._cleanup.fail_unwatchable(outcome_of_error(error, Phase.RUN), current)
        finally:
            stopping.cancel()
            await asyncio.wait({stopping})
            await shipper.let_go()
        warnings = [*end.warnings, *faults, *await self._keep(plan, end)]
        if end.stopped:
            await self._cleanup.complete_facts()
        outcome = await stopper.outcome(end)
        if outcome is None:
            outcome = outcome_of_exit(end)
            if end.stopped:
                self._cleanup.invalidate_lease()
        if warnings:
            outcome = outcome.model_copy(update={"message": f"{outcome.message} Note: {' '.join(warnings)}"})
        ended = await self._cleanup.end(outcome, current)
        await self._cleanup.remove(end)
        return ended

    async def _finish_log(self, shipper: LogShipper, plan: RunPlan) -> list[str]:
        """Send what is left of the log; returns what went wrong with it: it does not make a good run a bad one."""
        try:
            await shipper.finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run itself has ended as it has
            log.warning("%s log-not-sent %r", self._item.id, error)
            return [f"The log could not be sent whole ({error}); it is in {plan.log_path}."]
        return []

    def _has_run(self) -> None:
        """Free the slot and the devices: the run needs them no more."""
        self._running.has_run = True
        self._context.slot_freed(self._running.thread_id)

    async def _keep(self, plan: RunPlan, end: ExitStatus) -> list[str]:
        """Keep the run's outputs and its whole log; returns what went wrong with it, in words."""
        faults = []
        try:
            async with self._context.copies:
                faults += await keep_outputs(self._context.session, self._item.id, plan, end)
        except Exception as error:  # noqa: BLE001 - a store that fails does not make a good run a bad one
            faults.append(f"The outputs could not be kept ({error}); they are in {plan.output_dir}.")
        try:
            fault = await retry_until_available(
                f"show the outputs of {self._item.id}",
                lambda: publish_outputs(self._server, self._item.id, plan.run_id, plan.output_dir),
            )
        except LaunchError as error:
            fault = f"The outputs could not be shown ({error})."
        return [*faults, *([fault] if fault else [])]
