"""Kinds of item: what differs between a job and a sweep's scheduler in the life of an item.

A scheduler is a program of prefect-launch's own (`python -m prefect_launch.sweeps ID`): it runs on the agent's machine,
in the agent's Python and with the agent's environment, on any queue, and takes no device and no slot of a job. It
leaves a file that says how its sweep ended; without that file, another scheduler continues the sweep.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import anyio

from prefect_launch.agent.context import SCHEDULER_RESOURCE
from prefect_launch.agent.item.attempt import Attempt, Hook
from prefect_launch.agent.item.finish import check_deployment
from prefect_launch.agent.item.hooks import HOOKS, RecordRun, ShipLog, Stopping
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.core.states import ItemState
from prefect_launch.planning.plan import Request, make_plan, plan_agent_program
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import Phase, RunPlan
from prefect_launch.spec.item_parameters import is_scheduler, run_id_of, spec_of
from prefect_launch.spec.scheduling import Cause

if TYPE_CHECKING:
    from prefect_launch.queues.session import CachedQueue
    from prefect_launch.server.values import Item


class ItemKind(ABC):
    """What the life of an item asks of its kind."""

    #: The hooks of each attempt, in their order.
    hooks: ClassVar[Sequence[Callable[[Attempt], Hook]]]

    @abstractmethod
    async def plan(self, attempt: Attempt, queue: CachedQueue, labels: dict[str, str]) -> RunPlan:
        """Plan an attempt, and lay out its folder.

        Args:
            attempt: at the item.
            queue: the item's.
            labels: of the run.

        Raises:
            LaunchError: when the item asks for what cannot be done.
        """


class JobKind(ItemKind):
    """Items that run a job."""

    hooks = HOOKS

    async def plan(self, attempt: Attempt, queue: CachedQueue, labels: dict[str, str]) -> RunPlan:
        item, session = attempt.item, attempt.context.session
        await check_deployment(attempt.server, item, queue.deployment_id)
        request = Request(
            spec=spec_of(item),
            item_id=str(item.id),
            attempt=item.run_count + 1,
            queue=queue.name,
            config=queue.config,
            labels=labels,
        )
        await attempt.take_name(request.spec.name)
        make = partial(make_plan, request, attempt.context.config.machine, session.jobs, session.read_secret)
        return await attempt.unless_stopped(retry_until_available("show the job", make))


#: The program of a scheduler; the sweep's id follows.
SCHEDULER_PROGRAM: Final = (sys.executable, "-m", "prefect_launch.sweeps")
#: What a scheduler gets to stop its trials, beyond what the agents of those give them.
STOP_MARGIN_SECONDS: Final = 120.0


class ReadSweepEnd(Hook):
    """Reads how the sweep ended from the file that its scheduler left.

    A scheduler without that file was killed, or asked to leave: the sweep returns to its queue. What is paused, or
    has ended meanwhile, or is another agent's by now, only the server says.
    """

    async def outcome(self) -> Outcome | None:
        from prefect_launch.sweeps.program import read_end
        from prefect_launch.sweeps.scheduler import Outcome as SweepOutcome

        attempt, end = self.attempt, self.attempt.end
        attempt.ownership.invalidate()
        ended = await anyio.to_thread.run_sync(read_end, attempt.plan.output_dir)
        if ended is not None and ended.outcome is not None:
            states: Mapping[SweepOutcome, ItemState] = {
                SweepOutcome.FINISHED: ItemState.COMPLETED,
                SweepOutcome.FAILED: ItemState.FAILED,
                SweepOutcome.STOPPED: ItemState.CANCELLED,
            }
            return Outcome(state=states[ended.outcome], message=ended.message, is_explained=True)
        if attempt.running.stop.is_set():
            message = "Stopped: its scheduler ended before it had seen all trials end; their agents stop them."
            return Outcome(state=ItemState.CANCELLED, message=message)
        if attempt.running.preempt.is_set():
            message = "Its agent drains, or stops its jobs: another agent continues the sweep."
            return Outcome(state=ItemState.CRASHED, message=f"[{Phase.RUN.value}] {message}", cause=Cause.PREEMPTED)
        why = ended.message if ended else f"The sweep's scheduler: {end.describe()}."
        message = f"{why} Another agent continues the sweep."
        return Outcome(state=ItemState.CRASHED, message=f"[{Phase.RUN.value}] {message}", cause=Cause.LOST)


class SchedulerKind(ItemKind):
    """Items that are sweeps: their run is the sweep's scheduler."""

    hooks = (ReadSweepEnd, Stopping, ShipLog, RecordRun)

    async def plan(self, attempt: Attempt, queue: CachedQueue, labels: dict[str, str]) -> RunPlan:
        item, config = attempt.item, attempt.context.config
        make = partial(
            plan_agent_program,
            (*SCHEDULER_PROGRAM, str(item.id)),
            item_id=str(item.id),
            attempt=item.run_count + 1,
            run_id=run_id_of(item),
            labels=labels,
            stop_seconds=config.stopped_run_timeout + STOP_MARGIN_SECONDS,
            machine=config.machine,
            resource=SCHEDULER_RESOURCE,
        )
        return await anyio.to_thread.run_sync(make)


_JOB: Final = JobKind()
_SCHEDULER: Final = SchedulerKind()


def kind_of(item: Item) -> ItemKind:
    """Return the kind of an item, which its flow decides."""
    return _SCHEDULER if is_scheduler(item) else _JOB
