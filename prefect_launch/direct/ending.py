"""End of a direct run: outcome, failure report and retries."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast
from uuid import UUID

import anyio
from prefect.states import Cancelled, Completed, Crashed, Failed

from prefect_launch.agent.item.failure_report import Facts, build_report, publish_report, read_last_lines
from prefect_launch.agent.item.outcome import Outcome, at_its_limit, outcome_of_error, outcome_of_exit
from prefect_launch.core.states import ItemState
from prefect_launch.core.terminal import printable
from prefect_launch.errors import ExecutionError, LaunchError, SpecError
from prefect_launch.runners.base import ExitStatus, Phase, RunPlan
from prefect_launch.runners.run import RunnerRun
from prefect_launch.settings.agent_config import default_home
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.scheduling import DEFAULT_RETRIES, Cause, Retries

if TYPE_CHECKING:
    import logging

    from prefect_launch.jobs.model import Job
    from prefect_launch.queues.session import Session

    Logger = logging.Logger | logging.LoggerAdapter[Any]


P = ParamSpec("P")
R = TypeVar("R")

#: Why a run ended that has failed by itself, and not through its machine.
_ITS_OWN: Final = frozenset({Cause.FAILED.value, Cause.TIMEOUT.value})


def ending_as_its_run(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return a flow or task function that ends in the state of its run, or of the `LaunchError` that it raises.

    The state's message is how the run ended, or the error, with no words around it and no lines of the job's log. A
    flow's caller gets the run, or the error, itself; a task's by the state's `aresult`.
    """

    @functools.wraps(function)
    async def called(*args: P.args, **kwargs: P.kwargs) -> R:
        # Prefect takes a returned state as the flow's end, and returns, or raises, what is in it.
        try:
            run = await function(*args, **kwargs)
        except LaunchError as error:
            state = {ItemState.CANCELLED: Cancelled, ItemState.CRASHED: Crashed}.get(_state_of(error), Failed)
            message = str(error).partition("\n")[0] if isinstance(error, ExecutionError) else str(error)
            return cast(R, state(message=message, data=error))
        if isinstance(run, RunnerRun) and run.exit is not None:
            return cast(R, Completed(message=outcome_of_exit(run.exit).message, data=run))
        return run

    return called


def _state_of(error: LaunchError) -> ItemState:
    if not isinstance(error, ExecutionError):
        return outcome_of_error(error, Phase.RUN).state
    if error.cause is None:
        return ItemState.CANCELLED
    return ItemState.FAILED if error.cause in _ITS_OWN else ItemState.CRASHED


def outcome_of_run(plan: RunPlan, end: ExitStatus, *, timed_out: bool) -> Outcome:
    """Return the outcome of a direct run; a run that was stopped at its time limit has failed."""
    if not timed_out or plan.timeout is None:
        return outcome_of_exit(end)
    return Outcome(state=ItemState.FAILED, message=at_its_limit(end, plan.timeout), cause=Cause.TIMEOUT)


async def show_failure(
    session: Session, flow_run_id: UUID, plan: RunPlan, end: ExitStatus, outcome: Outcome, image: str | None
) -> None:
    """Attach the failure report of a direct run that failed to its flow run."""
    item = await session.server.read_item(flow_run_id)
    if item is not None:
        lines = await read_last_lines(plan.log_path, plan.mask)
        facts = Facts(plan=plan, home=default_home(), end=end, image=image, last_lines=lines)
        await publish_report(session.server, item, build_report(item, outcome, facts))


def failure_of(plan: RunPlan, end: ExitStatus, outcome: Outcome, lines: list[str]) -> ExecutionError:
    """Return the error of a failed direct run, with its exit code and the last lines of its log."""
    tail = "\n".join(f"  {line}" for line in lines)
    message = f"Run {plan.run_id}: {plan.mask.text(outcome.message)} Its whole log is {plan.log_path}.\n{tail}"
    return ExecutionError(
        printable(message).rstrip(),  # Mostly read in a terminal.
        exit_code=end.exit_code,
        last_lines=lines,
        cause=outcome.cause and outcome.cause.value,
        cancelled=outcome.state is ItemState.CANCELLED,
    )


# Retries of `launch`: the retry rule of an item, for a direct run that is followed to its end.

T = TypeVar("T")

#: A run that nobody follows has no retries: nobody would see its end.
_ONCE: Final = Retries(max=0)


def retries_here(spec: LaunchSpec, job: Job | None, *, followed: bool) -> Retries:
    """Return the retry rule of a direct run: its spec's, its job's, or the default.

    Args:
        spec: of the run.
        job: that it runs.
        followed: whether the run is followed to its end.

    Raises:
        SpecError: when the spec asks for retries of a run that is not followed.
    """
    if followed:
        return spec.retries or (job.document.retries if job else None) or DEFAULT_RETRIES
    if spec.retries is not None and spec.retries.max:
        raise SpecError(
            f"retries (max {spec.retries.max}) need somebody who sees the run's end. With synchronous=False nobody"
            f" follows a run on the resource {spec.resource!r}, which is not on this machine: leave retries out, wait"
            " for it, or put it on a queue with launch_add."
        )
    return _ONCE


async def with_retries(
    rule: Retries,
    attempt: Callable[[int], Awaitable[T]],
    *,
    first: int,
    logger: Logger,
    pause: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> T:
    """Make attempts until one succeeds, or the rule allows no more.

    Args:
        rule: the retry rule.
        attempt: makes the attempt of that number.
        first: number of the first attempt.
        logger: gets a line before each further attempt.
        pause: waits for some seconds, between two attempts.

    Raises:
        LaunchError: of the last attempt.
    """
    done = 0
    while True:
        try:
            return await attempt(first + done)
        except LaunchError as error:
            if done >= rule.max or not rule.covers(_cause_of(error)):
                raise
            delay = rule.delay_seconds(done)
            done += 1
            message = str(error).partition("\n")[0]
            logger.warning("%s It is run again in %g s (retry %d of %d).", message, delay, done, rule.max)
            await pause(delay)


def _cause_of(error: LaunchError) -> Cause | None:
    if isinstance(error, ExecutionError):
        return Cause(error.cause) if error.cause else None
    return outcome_of_error(error, Phase.RUN).cause
