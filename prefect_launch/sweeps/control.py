"""Control of a sweep from outside: pause it, resume it, run failed trials again, stop it.

What is wanted is data on the sweep's flow run, so it makes no difference whether a process runs the sweep now, which
one, and whether that is killed meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import LaunchError, NotFoundError
from prefect_launch.queues.session import QUEUE_LABEL
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.history import History, TrialState
from prefect_launch.sweeps.requests import PauseRequest, RetryRequest, SchedulerProcess, TrialCount, queued_again
from prefect_launch.sweeps.runner import LOOK_SECONDS, SweepRunner
from prefect_launch.sweeps.scheduler import Command, Control, EndSweep, decide, reason_to_end
from prefect_launch.sweeps.sweep_check import check_sweep_request
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_reader import read_trials

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
    """Which process continues a resumed sweep."""

    #: The process that has run it all the time.
    PROCESS = "process"
    #: The process that takes it from its queue: an agent, or a Prefect worker.
    QUEUE = "queue"
    #: Nobody yet: the caller, by `run_sweep`.
    CALLER = "caller"


async def _write(
    session: Session, sweep_id: UUID, stands: Callable[[Item], bool], write: Callable[[Item], Awaitable[None]]
) -> None:
    """Write a request to a sweep, and check that it stands there next to those of others."""
    for _ in range(_TRIES):
        sweep = await read_sweep(session, sweep_id)
        if stands(sweep):
            return
        await write(sweep)
    raise LaunchError(f"Others change the sweep {sweep_id} again and again. Ask once more.")


# --- pause ---


async def pause_sweep(
    api: Api, sweep_id: UUID, *, now: bool = False, report: Callable[[str], None] = _logger.info
) -> None:
    """Pause a sweep: no new trial is queued, and those that wait in the queue are not started until it is resumed.

    Args:
        api: the Prefect server.
        sweep_id: its id.
        now: stop its trials, too, and wait until they have stopped; they run again when it is resumed. Without it,
            running trials finish.
        report: is called with each line about its trials.

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
            runner = SweepRunner(api, session, sweep_id, config_of(sweep), report=report, only_stops=True)
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
        again = f" 'prefect-launch sweep resume {sweep.id}' resumes it."
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
    """Continue a sweep that is paused, or has ended, or whose process has died.

    Of one that runs, only the parameters are changed: its process reads them within seconds.

    Args:
        api: the Prefect server.
        sweep_id: its id.
        given: parameters of `sweep_config` that win over the sweep's own; `None` changes nothing.
        answer_seconds: for how long the sweep's process may be silent until it is taken for dead.

    Returns:
        Which process continues it.

    Raises:
        LaunchError: when the sweep cannot continue with these, or is being stopped; then it stays as it is. Also when
            its scheduler on an agent does not act on it in time; then it stays on record.
    """
    async with api.open() as session:
        before = await read_sweep(session, sweep_id)
        _check_not_stopping(before)
        wanted = {name: value for name, value in given.items() if value is not None}
        if "job" in wanted or "docker_image" in wanted:
            wanted = {"job": None, "docker_image": None, **wanted}
        config = config_of(before.model_copy(update={"parameters": {**before.parameters, **wanted}}))
        await check_sweep_request(api, session, config if "prior_runs" in wanted else config.without_prior_runs())
        await _write_parameters(session, sweep_id, wanted)
        if before.deployment_id is not None:
            return await _put_back(session, before, answer_seconds)
        if await _answers(session, sweep_id, answer_seconds):
            return ResumedBy.PROCESS
        pending = State.of(ItemState.CLAIMED, "The sweep is resumed.")
        await session.server.propose(sweep_id, pending, force=True)
        return ResumedBy.CALLER


async def _write_parameters(session: Session, sweep_id: UUID, wanted: Mapping[str, Any]) -> None:
    async def write(sweep: Item) -> None:
        await session.server.replace_parameters(sweep_id, {**sweep.parameters, **wanted})

    await _write(session, sweep_id, lambda sweep: {**sweep.parameters, **wanted} == sweep.parameters, write)


async def _put_back(session: Session, before: Item, seconds: float) -> ResumedBy:
    """Put a run of a deployment back into its queue, unless it runs or waits there."""
    goes_on = await _goes_on(session, before, seconds)
    sweep = await read_sweep(session, before.id)
    if goes_on and sweep.state_type is StateType.RUNNING:
        return ResumedBy.PROCESS
    if sweep.state_type not in (StateType.SCHEDULED, StateType.PENDING):
        # With a run on record, the server would wait for an agent to end it when the item is cancelled in the queue.
        await session.server.record_infrastructure(sweep.id, None)
        verdict = await session.server.propose(sweep.id, queued_again())
        if not verdict.accepted:
            await session.server.propose(sweep.id, queued_again(), force=True)
    return ResumedBy.QUEUE


async def _goes_on(session: Session, before: Item, seconds: float) -> bool:
    """Whether the scheduler of a sweep reads what was written before this call: now, or when the sweep is resumed.

    One that decided to end before that does not: none of its trials is open, and the sweep ends within its next look.

    Args:
        session: to the server.
        before: the sweep as it was read before the write.
        seconds: within which a scheduler looks.

    Raises:
        LaunchError: when it is being stopped, or nothing tells within that time and an agent sees to the scheduler.
    """
    is_paused = False
    with anyio.move_on_after(seconds):
        while True:
            sweep = await read_sweep(session, before.id)
            _check_not_stopping(sweep)
            process, is_paused = SchedulerProcess.read(sweep), sweep.state_type is StateType.PAUSED
            if sweep.state_type is StateType.RUNNING and process is not None and process.has_died:
                return False
            if sweep.state_type not in (StateType.RUNNING, StateType.PAUSED):
                return not sweep.is_terminal
            history = (await read_trials(session.server, before.id, config_of(before))).history
            if history.open or (is_paused and not _ends_paused(before, history)):
                return True
            await anyio.sleep(_ANSWER_POLL_SECONDS)
    if not is_paused and before.deployment_id is not None:
        raise LaunchError(
            f"The scheduler of the sweep {before.id} has not acted on this request within {seconds:g} s. It stays on"
            f" record. If the sweep ends first, which 'prefect-launch sweep show {before.id}' tells, ask once more."
        )
    return is_paused


def _ends_paused(sweep: Item, history: History) -> bool:
    """Whether a scheduler ends a sweep that is paused, none of whose trials is open; an agent writes no such end."""
    if QUEUE_LABEL in sweep.labels:
        return False
    elapsed = sweep.running_seconds(datetime.now(timezone.utc))
    drained = Control(Command.DRAIN, elapsed, retries=RetryRequest.of(sweep).tries, made=TrialCount.of(sweep).made)
    return bool(decide(config_of(sweep), history, drained, lambda _: None))


async def _answers(session: Session, sweep_id: UUID, seconds: float) -> bool:
    """Let a sweep be Running, and wait until its process says that it has seen it; whether it does."""
    sweep = await read_sweep(session, sweep_id)
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


# --- run trials again ---


@dataclass(frozen=True)
class Retried:
    """What `retry_trials` has done.

    Attributes:
        numbers: of the trials that run again.
        resumed_by: which process continues the sweep, when it had ended or its process had died; else `None`.
    """

    numbers: tuple[int, ...]
    resumed_by: ResumedBy | None = None


async def retry_trials(
    api: Api, sweep_id: UUID, numbers: Collection[int] | None = None, *, answer_seconds: float = ANSWER_SECONDS
) -> Retried:
    """Let trials of a sweep run again: the same number and parameters, the next try.

    They go before new trials, and count as none. Those of a paused sweep run when it is resumed; a sweep that has ended
    continues, and so does one whose process has died. A trial that is requested already is not requested twice.

    Args:
        api: the Prefect server.
        sweep_id: the sweep's id.
        numbers: of trials that failed or were cancelled; `None`: all that failed.
        answer_seconds: as for `resume_sweep`.

    Raises:
        NotFoundError: when the sweep has no such trial.
        LaunchError: when one of them has neither failed nor was cancelled, or the sweep would end before they run, or
            is being stopped. Also when its scheduler on an agent does not act on it in time; then it stays on record.
    """
    async with api.open() as session:
        sweep = await read_sweep(session, sweep_id)
        _check_not_stopping(sweep)
        config = config_of(sweep)
        history = (await read_trials(session.server, sweep_id, config)).history
        request = RetryRequest.of(sweep)
        wanted = request.with_tries(_next_tries(sweep, history, request, numbers))
        elapsed = sweep.running_seconds(datetime.now(timezone.utc))
        end = reason_to_end(config, history, Control(elapsed_seconds=elapsed, retries=wanted.tries))
        if end is not None:
            raise LaunchError(f"The sweep {sweep_id} would end before a trial of it runs again: {end.message}")
        retried = tuple(sorted(number for number, tries in wanted.tries.items() if _is_due(history, number, tries)))
        await _write_retries(session, sweep_id, wanted)
        if await _goes_on(session, sweep, answer_seconds):
            return Retried(retried)
    resumed_by = await resume_sweep(api, sweep_id, {}, answer_seconds=answer_seconds)
    return Retried(retried, None if resumed_by is ResumedBy.PROCESS else resumed_by)


_AGAIN: Final = frozenset({TrialState.FAILED, TrialState.CANCELLED})


def _next_tries(
    sweep: Item, history: History, request: RetryRequest, numbers: Collection[int] | None
) -> dict[int, int]:
    """Return the try that is wanted of each trial, without those that run again already."""
    trials = {trial.number: trial for trial in history.trials}
    if numbers is None:
        failed = [trial for trial in history.trials if trial.state is TrialState.FAILED]
        if not failed:
            shown = f"'prefect-launch sweep show {sweep.id}' shows its trials."
            raise LaunchError(f"No trial of the sweep {sweep.id} has failed: nothing to retry. {shown}")
        numbers = [trial.number for trial in failed]
    tries = {}
    for number in numbers:
        trial = trials.get(number)
        if trial is None:
            known = f"its trials are 0 to {max(trials)}" if trials else "it has no trial yet"
            raise NotFoundError(f"The sweep {sweep.id} has no trial {number}: {known}.")
        if trial.state in _AGAIN:
            tries[number] = trial.tries + 1
        elif trial.state is not TrialState.HELD and not (trial.state.is_open and request.tries.get(number, 0) > 1):
            raise LaunchError(
                f"Trial {number} of the sweep {sweep.id} is {trial.state.value}: only a trial that failed, or was"
                " cancelled, runs again. To run its parameters once more, queue its job with them:"
                " 'prefect-launch add'."
            )
    return tries


def _is_due(history: History, number: int, tries: int) -> bool:
    """Whether a trial is still to be queued for the try that is wanted, or runs under it."""
    trial = next((trial for trial in history.trials if trial.number == number), None)
    return trial is not None and (trial.tries < tries or (trial.tries == tries and trial.state.is_open))


async def _write_retries(session: Session, sweep_id: UUID, wanted: RetryRequest) -> None:
    def with_others(sweep: Item) -> RetryRequest:
        return RetryRequest.of(sweep).with_tries(wanted.tries)

    async def write(sweep: Item) -> None:
        await session.server.label_item(sweep_id, with_others(sweep).labels)

    await _write(session, sweep_id, lambda sweep: with_others(sweep) == RetryRequest.of(sweep), write)


# --- stop ---


async def stop_sweep(api: Api, sweep_id: UUID, report: Callable[[str], None]) -> EndSweep:
    """Stop a sweep and its trials, whether a process runs it or not; wait until none of them waits or runs.

    Raises:
        LaunchError: when it has ended already, and none of its trials waits or runs.
    """
    async with api.open() as session:
        sweep = await read_sweep(session, sweep_id)
        if sweep.is_terminal and not (await read_trials(session.server, sweep_id, config_of(sweep))).history.open:
            raise LaunchError(f"The sweep {sweep_id} has ended already, as {sweep.state_name}: nothing to stop.")
        runner = SweepRunner(api, session, sweep_id, config_of(sweep), report=report, only_stops=True)
        runner.stop()
        end = await runner.run()
        cancelled = State.of(ItemState.CANCELLED, end.message)
        sweep = await read_sweep(session, sweep_id)
        # What no process had, the server has cancelled by itself and without a word.
        if not sweep.is_terminal or (sweep.state_type is StateType.CANCELLED and not sweep.message):
            await session.server.propose(sweep_id, cancelled)
        return end
