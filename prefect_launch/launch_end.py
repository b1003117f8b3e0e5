"""A direct run that failed, as its caller and its page in the UI are told."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from prefect_launch.agent.certificate import Facts, certify, read_last_lines, show_certificate
from prefect_launch.agent.outcome import Outcome, outcome_of_exit
from prefect_launch.duration import in_words
from prefect_launch.errors import ExecutionError
from prefect_launch.retry import Cause
from prefect_launch.runners.base import Exit, RunPlan
from prefect_launch.states import ItemState

if TYPE_CHECKING:
    from prefect_launch.session import Session


async def show_failure(session: Session, flow_run_id: UUID, plan: RunPlan, end: Exit, image: str | None) -> None:
    """Attach the certificate of a direct run that failed to its flow run."""
    item = await session.server.read_item(flow_run_id)
    if item is not None:
        facts = Facts(plan=plan, end=end, image=image, last_lines=await read_last_lines(plan.log_path))
        await show_certificate(session.server, item, certify(item, _outcome(plan, end), facts))


def _outcome(plan: RunPlan, end: Exit) -> Outcome:
    """Say how it ended; what was stopped for its time limit has failed."""
    if not (end.stopped and plan.timeout is not None):
        return outcome_of_exit(end)
    told = f"The job timed out after {in_words(plan.timeout)}, its time limit; {end.describe()}."
    return Outcome(state=ItemState.FAILED, message=told, cause=Cause.TIMEOUT)


def failure_of(plan: RunPlan, end: Exit, lines: list[str]) -> ExecutionError:
    """Make the error of a direct run that failed: with its exit code, and the last lines of its log."""
    tail = "\n".join(f"  {line}" for line in lines)
    outcome = _outcome(plan, end)
    return ExecutionError(
        f"Run {plan.run_id}: {outcome.message} Its whole log is {plan.log_path}.\n{tail}".rstrip(),
        exit_code=end.exit_code,
        last_lines=lines,
        cause=outcome.cause and outcome.cause.value,
    )
