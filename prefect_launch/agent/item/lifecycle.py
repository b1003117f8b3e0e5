"""Life of an item, from its claim to its final state: claim, plan, prepare, create, start, watch, finish.

The agent can die at each step; the step's "Crash:" line says what happens to the item then. The next agent finds a run
by its labels, and the same attempt gives the same name, so nothing is lost and nothing starts twice
(`prefect_launch.agent.recovery.restart`). Before each step that cannot be undone, the attempt checks that the
item is still this agent's. Devices, time limits, logs and outputs are hooks (`prefect_launch.agent.item.attempt.Hook`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from prefect_launch.agent.context import AgentContext, resource_of_item
from prefect_launch.agent.devices.allocator import DevicesBusyError
from prefect_launch.agent.item.attempt import Attempt, CancelledBeforeStartError, NotNowError, remask, until_running
from prefect_launch.agent.item.cleanup import STOPPED_BEFORE_START, AttemptCleanup
from prefect_launch.agent.item.kinds import kind_of
from prefect_launch.agent.item.outcome import Outcome, outcome_of_error, outcome_of_exit
from prefect_launch.agent.item.ownership import token_of
from prefect_launch.agent.item.previous_attempts import stop_previous_attempts
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import SubmitterError, UnreachableError
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import Labels, Phase, Runner, RunPlan
from prefect_launch.spec.item_parameters import run_id_of


class ItemLifecycle:
    """One attempt at one claimed item.

    Args:
        context: the agent's.
        running_item: the item.
    """

    def __init__(self, context: AgentContext, running_item: RunningItem) -> None:
        self._context = context
        self._kind = kind_of(running_item.item)
        self._attempt = Attempt(context, running_item, self._kind.hooks)
        self._cleanup = AttemptCleanup(self._attempt)
        self._running = running_item
        self._item = running_item.item

    async def run(self) -> Outcome:
        """Do the whole attempt; return how it ended. The item is in that state then."""
        return await self._run(self._claim, self._plan, self._prepare, self._create, self._start)

    async def _run(self, *steps: Callable[[], Awaitable[None]]) -> Outcome:
        """Take the steps that bring the item to run, then watch it to its end."""
        try:
            for step in steps:
                await step()
        except CancelledBeforeStartError:
            return await self._cleanup.abort(Outcome(state=ItemState.CANCELLED, message=STOPPED_BEFORE_START))
        except UnreachableError as error:
            return await self._cleanup.requeue(error)
        except (NotNowError, DevicesBusyError) as error:
            return await self._cleanup.abort(Outcome(state=ItemState.QUEUED, message=str(error)))
        except Exception as error:  # noqa: BLE001 - the item says why it does not run
            self._cleanup.log_error(error)
            self._attempt.record(error=error)
            return await self._cleanup.abort(self._outcome_of(error))
        return await self._watch()

    async def resume(self, runner: Runner, plan: RunPlan, handle: str, current: StateType) -> Outcome:
        """Adopt a run that an agent which is gone has created.

        Args:
            runner: of its resource.
            plan: as it was kept in the run's folder.
            handle: of what exists.
            current: the type of the state that the item is in.
        """
        self._running.handle = handle
        self._running.phase = Phase.RUN
        self._running.claim = plan.labels.get(Labels.CLAIM, "")
        self._attempt.known_runner = runner
        self._attempt.record(plan=plan)
        self._attempt.record(plan=await remask(self._attempt, plan))
        if current is StateType.PENDING:
            return await self._run(self._start_again)
        return await self._watch()

    # --- the steps ---

    async def _claim(self) -> None:
        """Take over the claim that the poller made (`prefect_launch.queues.claim`): all is done under its token.

        Crash: nothing exists; the next agent of the name gives the item back to its queue.
        """
        self._running.claim = self._running.claim or token_of(self._item)

    async def _plan(self) -> None:
        """Resolve job, options and secrets into a plan; build the image of a job that has code and none.

        Crash: nothing runs; the item goes back into its queue. The next attempt finds the built image by its tag.
        """
        attempt, session = self._attempt, self._context.session
        queue = await retry_until_available("show the queue", lambda: session.queue(self._running.queue))
        attempt.record(plan=await self._kind.plan(attempt, queue, self._labels()))
        attempt.known_runner = self._context.runner(resource_of_item(self._item, queue.config))
        if attempt.plan.build_request is not None:
            from prefect_launch.agent.item.image_build import ensure_image

            attempt.record(plan=await attempt.unless_stopped(ensure_image(attempt)))
        attempt.runner.check(attempt.plan)
        for hook in attempt.hooks:
            await hook.plan()

    async def _prepare(self) -> None:
        """Stop what earlier attempts have left running here; bring what the run needs: old outputs, image, environment.

        Crash: nothing runs; the item goes back into its queue, and the next attempt does the same again.
        """
        attempt = self._attempt
        await attempt.check_ours()  # What is stopped or removed here could be the run of a newer claim.
        await stop_previous_attempts(self._context, attempt.runner, attempt.plan)
        for hook in attempt.hooks:
            await attempt.unless_stopped(hook.prepare())
        waits_for = await attempt.runner.missing(attempt.plan)
        if waits_for is not None:
            self._running.phase = Phase.BUILD if waits_for is ItemState.BUILDING else Phase.AGENT
            await attempt.transition(waits_for, f"On {self._context.config.name}.")
            await attempt.unless_stopped(attempt.runner.prepare(attempt.plan))

    async def _create(self) -> None:
        """Create the container, or the folder of the process, with its labels; it does not run yet.

        Crash: it is found by its labels, and started; one that was not filled yet is removed, and the item requeued.
        """
        self._running.phase = Phase.RUN
        await self._attempt.check_ours()
        self._running.handle = await self._attempt.runner.create(self._attempt.plan)

    async def _start(self) -> None:
        """Start the run, and move the item to Running.

        Crash: a run whose item is still Pending is started again, which does nothing to one that runs, and moved.
        """
        attempt, handle = self._attempt, self._attempt.handle
        image = await attempt.retry_until_reachable(lambda: attempt.runner.image_of(handle))
        attempt.record(image=image)
        await self._start_run()
        resource = self._context.resource_of(attempt.runner)
        self._context.runner_health.mark_up(attempt.part, self._running.queue)
        await until_running(attempt)
        name = await attempt.runner.display_name(handle)
        what = ", ".join(filter(None, (f"{resource} {name}", attempt.describe_held())))
        message = f"Runs on {self._context.config.name} ({what})."
        await attempt.transition(ItemState.RUNNING, message, data={"image": image} if image else None)
        for hook in attempt.hooks:
            await hook.started()

    async def _start_again(self) -> None:
        """Start a run that an earlier agent has created; its item is still Pending."""
        await self._start_run()
        await until_running(self._attempt)
        await self._attempt.transition(ItemState.RUNNING, f"Found again by {self._context.config.name}.")

    async def _watch(self) -> Outcome:
        """Follow the run to its end. Crash: it continues; the next agent of the name or home follows it from here."""
        attempt = self._attempt
        async with attempt.ownership.reporting(attempt.plan.run_dir, self._context.config.name) as is_ours:
            if not is_ours:
                return Outcome(state=ItemState.CANCELLED, message="Another agent has reported on it.")
            lost: Outcome | None = None
            async with AsyncExitStack() as beside:
                for hook in attempt.hooks:
                    await beside.enter_async_context(hook.watching())
                try:
                    watch = partial(attempt.runner.watch, attempt.handle, attempt.plan, ended=self._has_run)
                    attempt.record(end=await attempt.retry_until_reachable(watch, until_stopped=False))
                except Exception as error:  # noqa: BLE001 - the run is out of sight: the item says so
                    attempt.record(error=error)
                    lost = outcome_of_error(error, Phase.RUN)
            if lost is not None:
                return await self._cleanup.fail_unwatchable(lost)
            return await self._finish()

    async def _finish(self) -> Outcome:
        """Keep what the run has left, write the item's end, then remove the run.

        Crash: the run is found ended, and finished again; what is not removed yet is left to the housekeeping.
        """
        attempt, end = self._attempt, self._attempt.end
        attempt.warnings[:0] = end.warnings
        for hook in attempt.hooks:
            await hook.ended()
        if end.stopped:
            await self._cleanup.complete_facts()
        decided = [one for hook in attempt.hooks if (one := await hook.outcome())]
        if (end.stopped or end.error) and not decided:
            attempt.ownership.invalidate()  # Perhaps somebody else has stopped it, as a run of an older claim.
            if end.succeeded:  # Or an agent that died was about to, and it came to its end before.
                end = end.model_copy(update={"stopped": False})
        outcome = (decided[0] if decided else outcome_of_exit(end)).with_notes(attempt.warnings)
        outcome = outcome.with_usage(attempt.totals)
        become = await self._cleanup.end(outcome, StateType.RUNNING)
        await self._cleanup.remove(end)
        return become

    # --- details ---

    async def _start_run(self) -> None:
        """Start what was created. Each try checks first that the item is still ours: its resource may be away long."""
        attempt = self._attempt
        if not attempt.runner.uses_this_machine:  # There a run may be found by its record alone.
            await retry_until_available(f"record what {self._item.id} runs in", attempt.record_run)

        async def start() -> None:
            await attempt.check_ours()
            await attempt.runner.start(attempt.handle)

        await attempt.retry_until_reachable(start)

    def _outcome_of(self, error: Exception) -> Outcome:
        """Say how an item ends that could not be started; where its resource refuses it, also what nobody asked for."""
        outcome = outcome_of_error(error, self._running.phase)
        is_refused = self._running.phase is Phase.RUN and isinstance(error, SubmitterError)
        note = self._attempt.plan.limits_note if is_refused else ""
        return outcome.with_notes([f"{note}."] if note else [])

    def _has_run(self) -> None:
        """Free the slot and the devices: the run needs them no more."""
        self._running.has_run = True
        self._context.slot_freed(self._running.thread_id)

    def _labels(self) -> dict[str, str]:
        return {
            Labels.ITEM: str(self._item.id),
            Labels.ATTEMPT: str(self._item.run_count + 1),
            Labels.RUN_ID: run_id_of(self._item),
            Labels.QUEUE: self._running.queue,
            Labels.AGENT: self._context.config.name,
            Labels.CLAIM: self._running.claim,
        }
