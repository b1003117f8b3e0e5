"""Control of a sweep from outside: pause it, resume it, run failed trials again, stop it.

What is wanted is data on the sweep's flow run, so it makes no difference whether a process runs the sweep now, which
one, and whether that is killed meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import LaunchError
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.requests import PauseRequest, SchedulerProcess, queued_again
from prefect_launch.sweeps.runner import LOOK_SECONDS, SweepRunner, check_sweep_request
from prefect_launch.sweeps.scheduler import EndSweep
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_items import read_trials

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session

_logger = logging.getLogger("prefect_launch.sweeps")

#: A process that runs a sweep answers within this time, also when no event reaches it.
ANSWER_SECONDS: Final = LOOK_SECONDS + 2.0
_ANSWER_POLL_SECONDS: Final = 0.2
#: A state that changes under a request is read again so often.
_TRIES: Final = 5


class ResumedBy(str, Enum):
    """Who goes on with a sweep that was resumed."""

    #: The process that has run it all the time.
    PROCESS = "process"
    #: Whoever takes it from its queue: an agent, or a Prefect worker.
    QUEUE = "queue"
    #: Nobody yet: the caller, by `run_sweep`.
    CALLER = "caller"


# --- pause ---


async def pause_sweep(
    api: Api, sweep_id: UUID, *, now: bool = False, tell: Callable[[str], None] = _logger.info
) -> None:
    """Pause a sweep: no new trial is queued, and those that wait in the queue are not started until it is resumed.

    Args:
        api: the Prefect server.
        sweep_id: its id.
        now: stop its trials, too, and wait until they have stopped; they run again when it is resumed. Without it, what
            runs goes on to its end.
        tell: is told what becomes of its trials meanwhile, one line at a time.

    Raises:
        LaunchError: when it has ended, is being stopped, or is just being started.
    """
    request = PauseRequest(now=now)
    async with api.open() as session:
        for _ in range(_TRIES):
            sweep = await read_sweep(session, sweep_id)
            if await _pause(session, sweep, request):
                break
        else:
            raise LaunchError(f"The sweep {sweep_id} changes its state again and again. Pause it once more.")
        if now:
            runner = SweepRunner(api, session, sweep_id, config_of(sweep), tell=tell, until_paused=True)
            await runner.run()


async def _pause(session: Session, sweep: Item, request: PauseRequest) -> bool:
    """Bring a sweep into the state; whether it is in it."""
    _check_not_over(sweep, "pause")
    if sweep.state_type is StateType.PENDING:
        raise LaunchError(f"The sweep {sweep.id} is just being started. Pause it once it runs.")
    is_paused = sweep.state_type is StateType.PAUSED
    if is_paused and (PauseRequest.of(sweep).now or not request.now):
        return True
    # By force: one that waits in a queue is not started then, and one that is paused gets another kind of pause.
    force = sweep.state_type is not StateType.RUNNING
    return (await session.server.propose(sweep.id, request.state(sweep), force=force)).accepted


def _check_not_over(sweep: Item, what: str) -> None:
    if sweep.is_terminal:
        again = f" 'prefect-launch sweep resume {sweep.id}' lets it go on."
        raise LaunchError(f"The sweep {sweep.id} has ended already, as {sweep.state_name}: nothing to {what}.{again}")
    _check_not_stopping(sweep)


def _check_not_stopping(sweep: Item) -> None:
    if sweep.state_type is StateType.CANCELLING:
        wait = f"'prefect-launch sweep stop {sweep.id}' waits until it has ended; then it can be resumed."
        raise LaunchError(f"The sweep {sweep.id} is being stopped. {wait}")


# --- resume ---


async def resume_sweep(
    api: Api, sweep_id: UUID, given: Mapping[str, Any], *, answer_seconds: float = ANSWER_SECONDS
) -> ResumedBy:
    """Let a sweep go on that is paused, or has ended, or whose process has died.

    Of one that runs, only the parameters are changed: its process reads them within seconds.

    Args:
        api: the Prefect server.
        sweep_id: its id.
        given: parameters of `sweep_config` that win over the sweep's own; `None` changes nothing.
        answer_seconds: for how long the sweep's process may be silent until it is taken for dead.

    Returns:
        Who goes on with it.

    Raises:
        LaunchError: when the sweep cannot go on with these, or is being stopped; then it stays as it is.
    """
    async with api.open() as session:
        sweep = await read_sweep(session, sweep_id)
        _check_not_stopping(sweep)
        wanted = {name: value for name, value in given.items() if value is not None}
        if "job" in wanted or "docker_image" in wanted:
            wanted = {"job": None, "docker_image": None, **wanted}
        parameters = {**sweep.parameters, **wanted}
        await check_sweep_request(api, session, config_of(sweep.model_copy(update={"parameters": parameters})))
        await session.server.replace_parameters(sweep_id, parameters)
        if sweep.deployment_id is not None:
            return await _put_back(session, sweep)
        if await _answers(session, sweep, answer_seconds):
            return ResumedBy.PROCESS
        pending = State.of(ItemState.CLAIMED, "The sweep is resumed.")
        await session.server.propose(sweep_id, pending, force=True)
        return ResumedBy.CALLER


async def _put_back(session: Session, sweep: Item) -> ResumedBy:
    """Put a run of a deployment back into its queue, unless it runs or waits there."""
    if sweep.state_type is StateType.RUNNING:
        return ResumedBy.PROCESS
    if sweep.state_type not in (StateType.SCHEDULED, StateType.PENDING):
        # With a run on record, the server would wait for an agent to end it when the item is cancelled in the queue.
        await session.server.record_infrastructure(sweep.id, None)
        verdict = await session.server.propose(sweep.id, queued_again())
        if not verdict.accepted:
            await session.server.propose(sweep.id, queued_again(), force=True)
    return ResumedBy.QUEUE


async def _answers(session: Session, sweep: Item, seconds: float) -> bool:
    """Let a sweep be Running, and wait until its process says that it has seen it; whether it does."""
    process = SchedulerProcess.read(sweep)
    if sweep.state_type not in (StateType.PAUSED, StateType.RUNNING) or process is None or process.has_died:
        return False
    goes_on = State.of(ItemState.RUNNING, "The sweep is resumed.")
    verdict = await session.server.propose(sweep.id, goes_on)
    if not verdict.accepted or verdict.state is None:
        return False
    with anyio.move_on_after(seconds):
        while True:
            now = await session.server.read_item(sweep.id)
            process = SchedulerProcess.read(now) if now is not None else None
            if now is None or process is None or now.is_terminal:
                return False
            if process.seen == verdict.state.timestamp:
                return True
            await anyio.sleep(_ANSWER_POLL_SECONDS)
    return False


# --- stop ---


async def stop_sweep(api: Api, sweep_id: UUID, tell: Callable[[str], None]) -> EndSweep:
    """Stop a sweep and its trials, whether a process runs it or not; wait until none of them waits or runs.

    Raises:
        LaunchError: when it has ended already, and none of its trials waits or runs.
    """
    async with api.open() as session:
        sweep = await read_sweep(session, sweep_id)
        if sweep.is_terminal and not (await read_trials(session.server, sweep_id, config_of(sweep))).history.open:
            raise LaunchError(f"The sweep {sweep_id} has ended already, as {sweep.state_name}: nothing to stop.")
        runner = SweepRunner(api, session, sweep_id, config_of(sweep), tell=tell)
        runner.stop()
        end = await runner.run()
        cancelled = State.of(ItemState.CANCELLED, end.message)
        sweep = await read_sweep(session, sweep_id)
        if not sweep.is_terminal:
            await session.server.propose(sweep_id, cancelled)
        return end
