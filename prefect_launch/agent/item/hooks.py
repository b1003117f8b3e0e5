"""Hooks around the life of an item: devices, earlier outputs, image warning, stops, waiting parts, log, outputs.

`Stopping` stops the run when somebody asked for it, when its time is up, or when the agent stops its jobs. It does so
again and again until the runner has seen the run end, and decides how that stop ends the item. The reason is read from
what is on record, not from memory alone: the next agent, which finds a run stopped at its limit, ends it the same way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.agent.item.attempt import Attempt, Hook, seconds_running
from prefect_launch.agent.item.failure_report import is_other_image
from prefect_launch.agent.item.inputs import fetch_inputs
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.metrics import CollectMetrics
from prefect_launch.agent.item.outcome import Outcome, at_its_limit
from prefect_launch.agent.item.outputs import copy_previous_outputs, keep_outputs, publish_outputs
from prefect_launch.agent.item.usage import MeasureUsage
from prefect_launch.agent.log_notes import note_for_people, write_log_note
from prefect_launch.core.backoff import Backoff
from prefect_launch.core.filesystem import remove_tree
from prefect_launch.core.states import ItemState
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.core.units import format_duration
from prefect_launch.errors import LaunchError
from prefect_launch.planning.image_pinning import digest_in
from prefect_launch.queues.sent_back import sent_back_for
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import Phase, RunPlan
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item
from prefect_launch.spec.scheduling import Cause

log = logging.getLogger(__name__)


#: Before the record of a run is tried again: at first, and at most.
_RECORD_FIRST_SECONDS: Final = 0.2
_RECORD_PAUSE_SECONDS: Final = 30.0
#: How long the end of a run waits for a record that is on its way.
_RECORD_LEFT_SECONDS: Final = 1.0


class RecordRun(Hook):
    """Records on the server what a run on this machine is in: for people, who may want to look inside.

    A run elsewhere is recorded before it starts. Here its labels are the truth, so it does not end over its record; and
    a server that wrote it beside the start would take the start's cores.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._ended = asyncio.Event()
        self._fails = False

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        attempt = self.attempt
        if not attempt.runner.uses_this_machine or attempt.item.infrastructure_pid == attempt.handle:
            yield
            return
        async with OwnedTasks() as beside:
            beside.start(f"record of {attempt.item.id}", self._record)
            yield
            self._ended.set()
            with anyio.move_on_after(_RECORD_LEFT_SECONDS):
                await beside.done()
        if self._fails:
            attempt.warnings.append("The server did not record what it runs in; the agent's log says why.")

    async def _record(self) -> None:
        """Record it; try again until the run has ended."""
        pauses, level = Backoff(_RECORD_FIRST_SECONDS, _RECORD_PAUSE_SECONDS), logging.WARNING
        while not self._ended.is_set():
            self._fails = True
            try:
                await self.attempt.record_run()
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
                log.log(level, "%s not-recorded %r", self.attempt.item.id, error)
                level = logging.DEBUG
            else:
                self._fails = False
                return
            with anyio.move_on_after(pauses.next()):
                await self._ended.wait()


class ShipLog(Hook):
    """Sends the log of the run to the server; a log that cannot be sent does not make a good run a bad one."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        attempt = self.attempt
        shipper = LogShipper(attempt.server, attempt.item.id, attempt.plan.log_path, mask=attempt.plan.mask)
        shipper.follow()
        try:
            yield
            if attempt.facts.end is not None:
                await self._finish(shipper)
        finally:
            await shipper.let_go()

    async def _finish(self, shipper: LogShipper) -> None:
        try:
            await shipper.finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run itself has ended as it has
            log.warning("%s log-not-sent %r", self.attempt.item.id, error)
            self.attempt.warnings.append(
                f"The log could not be sent whole ({error}); it is in {self.attempt.plan.log_path}."
            )


class TellWaitingParts(Hook):
    """Notes in the item's log why a part of its run waits while others run."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        attempt = self.attempt
        parts = partial(attempt.runner.watch_parts, attempt.handle, self._note)
        async with OwnedTasks() as beside:
            beside.start(f"parts of {attempt.item.id}", parts)
            yield

    async def _note(self, reason: str) -> None:
        attempt = self.attempt
        name = attempt.context.resource_of(attempt.runner)
        text = f"A part of it waits in {name}: {attempt.running.masked(reason)}"
        await note_for_people(attempt.server, attempt.item.id, text)


class PreviousOutputs(Hook):
    """Lays out what the last attempt has left, so that a job continues from its checkpoint."""

    async def prepare(self) -> None:
        context = self.attempt.context
        await copy_previous_outputs(context.session, self.attempt.plan, context.config.machine)


class FetchInputs(Hook):
    """Lays out what the inputs name of the outputs of other items, and removes it at the end."""

    async def prepare(self) -> None:
        attempt = self.attempt
        fetch = partial(fetch_inputs, attempt.context.session, attempt.plan)
        await retry_until_available(f"show the inputs of {attempt.item.id}", fetch)

    async def ended(self) -> None:
        await asyncio.to_thread(remove_tree, self.attempt.plan.input_dir)


class KeepOutputs(Hook):
    """Keeps the outputs and the whole log in the job store, and shows `outputs.json` on the item's page."""

    async def ended(self) -> None:
        attempt, plan = self.attempt, self.attempt.plan
        try:
            async with attempt.context.copies:
                attempt.warnings += await keep_outputs(attempt.context.session, attempt.item.id, plan, attempt.end)
        except Exception as error:  # noqa: BLE001 - a store that fails does not make a good run a bad one
            attempt.warnings.append(f"The outputs could not be kept ({error}); they are in {plan.output_dir}.")
        try:
            fault = await retry_until_available(
                f"show the outputs of {attempt.item.id}",
                lambda: publish_outputs(attempt.server, attempt.item.id, plan.run_id, plan.output_dir),
            )
        except LaunchError as error:
            fault = f"The outputs could not be shown ({error})."
        attempt.warnings += [fault] if fault else []


class WarnOfOtherImage(Hook):
    """Notes in the item's log when its run is of another image than its tag meant when it was queued."""

    async def started(self) -> None:
        attempt = self.attempt
        await warn_of_other_image(attempt.server, attempt.item.id, attempt.plan, attempt.facts.image)


class AttachDevices(Hook):
    """Attaches the devices that an item asks for; the agent's allocator takes them back when the run has ended."""

    async def plan(self) -> None:
        attempt = self.attempt
        devices = attempt.context.devices
        attempt.record(plan=await devices.attach_devices(attempt.item.id, attempt.runner, attempt.plan))

    def describe_held(self) -> str:
        return self.attempt.context.devices.gpus_of(self.attempt.item.id)


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
        held = self.attempt.describe_held()
        self._frees = f", {held} free" if held else ""
        if self._sent_back_for:  # As the agent before this one was told.
            self._running.preempt.set()
        async with OwnedTasks() as beside:
            beside.start(f"stopping {self._running.id}", self._stop_when_due)
            yield

    @property
    def _sent_back_for(self) -> str:
        return sent_back_for(self._running.item, self.attempt.plan.attempt)

    async def _stop_when_due(self) -> None:
        """Wait for a reason, then stop the run. Cancel it once the run has ended."""
        why = await self._reason()
        log.info("%s stopping: %s", self._running.id, why)
        while True:
            try:
                await self.attempt.runner.stop(self.attempt.handle, self._grace_seconds)
                return
            except LaunchError as error:
                log.warning("%s not-stopped %s", self._running.id, error)
            await asyncio.sleep(_RETRY_SECONDS)

    @property
    def _grace_seconds(self) -> float:
        own = self.attempt.plan.stop_seconds
        return self.attempt.context.config.stopped_run_timeout if own is None else own

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
        why = f"it makes place for {self._sent_back_for}" if self._sent_back_for else "its agent stops its jobs"
        return "it was asked to stop" if asked in done else why

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
        if self._sent_back_for and not self._timed_out:
            message = f"Sent back{lasted} for {self._sent_back_for}: it starts again later, from its outputs."
            return Outcome(state=ItemState.QUEUED, message=message, data=data)
        if self._running.preempt.is_set() and not self._timed_out:
            message = f"[{Phase.RUN.value}] Preempted{lasted}: its agent was asked to stop its jobs; {end.describe()}."
            return Outcome(state=ItemState.CRASHED, message=message, data=data, cause=Cause.PREEMPTED)
        limit = self.attempt.plan.timeout
        if limit is not None and (self._timed_out or (end.duration_seconds or 0.0) >= limit):
            message = f"[{Phase.RUN.value}] {at_its_limit(end, limit)}"
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
    return None if timeout is None else max(0.0, timeout - (seconds_running(item) or 0.0))


async def warn_of_other_image(server: Server, item_id: UUID, plan: RunPlan, image: str | None) -> None:
    """Say in an item's log which image its tag meant at the enqueue, and which one runs; nothing when it is that one.

    The item is Running by then, and nothing depends on the line: whatever keeps it from being written is no fault.
    """
    if not is_other_image(plan, image):
        return
    message = (
        f"{plan.image} meant {digest_in(str(plan.resolved_image))} when this was queued, which could not be had here:"
        f" what runs is the image of that name, {image}."
    )
    log.warning("%s other-image %s", item_id, message)
    try:
        await write_log_note(server, item_id, message)
    except Exception as error:  # noqa: BLE001 - the run goes on
        log.debug("%s image-note failed: %s", item_id, error)


#: The hooks of each attempt, in this order; removing a line removes its concern.
HOOKS: Final[tuple[Callable[[Attempt], Hook], ...]] = (
    AttachDevices,
    PreviousOutputs,
    FetchInputs,
    WarnOfOtherImage,
    Stopping,
    TellWaitingParts,
    ShipLog,
    RecordRun,  # After the log: as the first to leave, it keeps no other write to the server waiting.
    KeepOutputs,
    CollectMetrics,
    MeasureUsage,
)
