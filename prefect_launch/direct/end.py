"""The end of a direct run, as its caller, its flow run's state and its page in the UI are told."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect.states import Cancelled, Completed, Crashed, Failed

from prefect_launch.agent.item.failure_report import Facts, build_report, publish_report, read_last_lines
from prefect_launch.agent.item.outcome import Outcome, outcome_of_error, outcome_of_exit
from prefect_launch.core.states import ItemState
from prefect_launch.core.terminal import printable
from prefect_launch.core.units import format_duration
from prefect_launch.errors import ExecutionError, LaunchError
from prefect_launch.runners.base import ExitStatus, Phase, RunPlan
from prefect_launch.runners.run import RunnerRun
from prefect_launch.spec.retry import Cause

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

P = ParamSpec("P")
R = TypeVar("R")

#: Why a run ended that has failed by itself, and not through its machine.
_ITS_OWN: Final = frozenset({Cause.FAILED.value, Cause.TIMEOUT.value})


def ending_as_its_run(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Let the function of a flow or task end in the state of the run that it returns, or the `LaunchError` it raises.

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
            told = str(error).partition("\n")[0] if isinstance(error, ExecutionError) else str(error)
            return cast(R, state(message=told, data=error))
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
    """Say how a direct run ended; what was stopped for its time limit has failed."""
    if not timed_out or plan.timeout is None:
        return outcome_of_exit(end)
    told = f"The job timed out after {format_duration(plan.timeout)}, its time limit; {end.describe()}."
    return Outcome(state=ItemState.FAILED, message=told, cause=Cause.TIMEOUT)


async def show_failure(
    session: Session, flow_run_id: UUID, plan: RunPlan, end: ExitStatus, outcome: Outcome, image: str | None
) -> None:
    """Attach the failure report of a direct run that failed to its flow run."""
    item = await session.server.read_item(flow_run_id)
    if item is not None:
        facts = Facts(plan=plan, end=end, image=image, last_lines=await read_last_lines(plan.log_path, plan.mask))
        await publish_report(session.server, item, build_report(item, outcome, facts))


def failure_of(plan: RunPlan, end: ExitStatus, outcome: Outcome, lines: list[str]) -> ExecutionError:
    """Make the error of a direct run that failed: with its exit code, and the last lines of its log."""
    tail = "\n".join(f"  {line}" for line in lines)
    told = f"Run {plan.run_id}: {plan.mask.text(outcome.message)} Its whole log is {plan.log_path}.\n{tail}"
    return ExecutionError(
        printable(told).rstrip(),  # Mostly read in a terminal.
        exit_code=end.exit_code,
        last_lines=lines,
        cause=outcome.cause and outcome.cause.value,
    )
