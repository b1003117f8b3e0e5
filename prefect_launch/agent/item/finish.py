"""End of an attempt: the item goes back into its queue, or gets its final state.

When the retry rule of an item covers the cause, one write puts the item back into its queue, due after a pause. So an
agent that dies around it leaves no ended item that should be retried. Run id and priority stay, since it is the same
flow run in the same work queue. Any other item gets its final state. Each attempt that did not
complete gets a failure report first. Items that the agent refuses, or on which the agent itself fails, end here too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio
from pydantic import BaseModel, ConfigDict

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.item.failure_report import Facts, build_report, publish_report, without_home
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.core.states import LAST_LINE, TERMINAL, ItemState, StateType
from prefect_launch.core.units import utc_time
from prefect_launch.core.validation import clean_json, json_fault
from prefect_launch.errors import LaunchError
from prefect_launch.queues.claim import RAN_LATER
from prefect_launch.queues.transitions import retry_until_available, transition
from prefect_launch.runners.base import Labels, Phase
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item, State
from prefect_launch.spec.item_parameters import check_labels, is_scheduler, spec_of
from prefect_launch.spec.scheduling import DEFAULT_RETRIES, Cause, Retries

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

#: A scheduler can be started again anywhere and at any time, and its trials continue meanwhile: for 7 hours, first
#: after 10 s, at last every 20 min.
SCHEDULER_RETRIES: Final = Retries(max=100, on=tuple(Cause), delay=10, backoff=1.05)


class Retry(BaseModel):
    """The next attempt at an item.

    Attributes:
        number: which retry it is, from 1.
        most: how many there may be.
        due: when it may run.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    most: int
    due: datetime

    def describe(self) -> str:
        """Say it in words."""
        return f"It comes back by itself at {utc_time(self.due)} (retry {self.number} of {self.most})."


async def end_item(
    session: Session,
    item: Item,
    outcome: Outcome,
    current: StateType,
    facts: Facts,
    *,
    transition_id: UUID | None = None,
) -> Outcome:
    """End an attempt at an item: put the item back when its retry rule says so, else set its final state.

    Args:
        session: an open connection.
        item: as it was claimed.
        outcome: how the attempt ended.
        current: the type of the state that the item is in.
        facts: what is known about the end, for the failure report.
        transition_id: of an end that several agents may report; the server takes it once.

    Returns:
        What the item has become.

    Raises:
        ItemGoneError: when the item was deleted.
    """
    retry = await next_try(session, item, outcome)
    if outcome.state not in (ItemState.COMPLETED, ItemState.QUEUED) and not outcome.is_explained:
        report = build_report(item, outcome, facts, comes_back=retry.describe() if retry else None)
        await publish_report(session.server, item, report, once=_claim(item, facts))
    if retry is None:
        if outcome.cause is Cause.FAILED and facts.last_lines:
            # Exit codes are few: who groups failed items, as a sweep does, tells two errors apart by this.
            data = {**(outcome.data or {}), LAST_LINE: facts.last_lines[-1]}
            outcome = outcome.model_copy(update={"data": data})
        ended = await _set_end(session, item, outcome, current, transition_id)
        await repair_item(session.server, item)
        return ended
    return await _put_back(session, item, outcome, current, retry, transition_id)


def _claim(item: Item, facts: Facts) -> str | None:
    """Return the claim that an attempt was made under, or else the state that it ends."""
    kept = facts.plan.labels.get(Labels.CLAIM) if facts.plan else None
    return kept or (item.state.transition_id if item.state else None)


async def next_try(session: Session, item: Item, outcome: Outcome) -> Retry | None:
    """Return the next attempt that an item's retry rule gives it after this end; `None` when there is none."""
    if outcome.cause is None or outcome.state not in (ItemState.FAILED, ItemState.CRASHED):
        return None
    rule = await retries_of(session, item)
    if rule.max == 0 or not rule.covers(outcome.cause):
        return None
    states = await retry_until_available(f"show the states of {item.id}", lambda: session.server.read_states(item.id))
    done = count_retries(states)
    if done >= rule.max:
        return None
    due = datetime.now(timezone.utc) + timedelta(seconds=rule.delay_seconds(done))
    return Retry(number=done + 1, most=rule.max, due=due)


async def retries_of(session: Session, item: Item) -> Retries:
    """Return an item's retry rule: that of schedulers, its own, its job's, or the default."""
    if is_scheduler(item):
        return SCHEDULER_RETRIES
    try:
        spec = spec_of(item)
        if spec.retries is not None:
            return spec.retries
        job = await session.jobs.resolve(spec.job) if spec.job else None
    except LaunchError as error:
        log.debug("%s retries by default: %s", item.id, error)
        return DEFAULT_RETRIES
    return (job.document.retries if job else None) or DEFAULT_RETRIES


def count_retries(states: Sequence[State]) -> int:
    """Count how often an item has come back by itself; one that somebody has put back by hand starts anew."""
    count = 0
    ended = False
    for state in states:
        if state.name == ItemState.AWAITING_RETRY.label:
            count += 1
        elif ended and state.type is StateType.SCHEDULED:
            count = 0
        ended = state.type in TERMINAL
    return count


async def _put_back(
    session: Session, item: Item, outcome: Outcome, current: StateType, retry: Retry, transition_id: UUID | None
) -> Outcome:
    server = session.server
    await _forget_run(server, item)
    target = ItemState.AWAITING_RETRY
    why = outcome.message if outcome.message.endswith((".", "!", "?")) else f"{outcome.message}."
    message = f"{outcome.state.label}: {why} {retry.describe()}"
    state = await transition(
        server, item.id, current, target, message, data=outcome.data, due=retry.due, transition_id=transition_id
    )
    if state.type is StateType.CANCELLING:
        return await _set_end(session, item, outcome.cancelled(), state.type, None)
    return outcome.model_copy(update={"state": target, "message": message})


#: Tries to take a run off the record, of a server that is there.
_FORGET_TRIES: Final = 3


async def _forget_run(server: Server, item: Item) -> None:
    """Take the run of an item off its record: with it, the server would let an agent end an item that is cancelled.

    A record that stays costs such an item a wait. So a server that is away is waited for, and one that is there and
    does not do it is not asked for ever.
    """
    for tries_left in reversed(range(_FORGET_TRIES)):
        try:
            await server.record_infrastructure(item.id, None)
            return
        except LaunchError as error:
            log.warning("%s not-forgotten %s", item.id, error)
        if tries_left:
            await retry_until_available(f"show {item.id}", lambda: server.read_item(item.id))


async def _set_end(
    session: Session, item: Item, outcome: Outcome, current: StateType, transition_id: UUID | None
) -> Outcome:
    server = session.server
    due: datetime | None = None
    if current is StateType.RUNNING and outcome.state is ItemState.QUEUED:
        await _forget_run(server, item)
        due = item.expected_start_time and item.expected_start_time + RAN_LATER  # It keeps its place in line.
    state = await transition(
        server,
        item.id,
        current,
        outcome.state,
        outcome.message,
        data=outcome.data,
        due=due,
        transition_id=transition_id,
    )
    if state.type is StateType.CANCELLING:
        outcome = outcome.cancelled()
        await transition(server, item.id, state.type, outcome.state, outcome.message, data=outcome.data)
    return outcome


async def fail_item(
    session: Session,
    item_id: UUID,
    message: str,
    phase: Phase,
    files: Sequence[str | Path] | None = None,
    facts: Facts | None = None,
) -> None:
    """End an item as failed; one that is asked to stop becomes cancelled, one that has ended stays as it is.

    Args:
        session: an open connection.
        item_id: the item.
        message: why.
        phase: where it was.
        files: files that are kept with the item's outputs.
        facts: what is known about it, for its failure report.
    """
    item = await session.server.read_item(item_id)
    if item is None or item.state_type is None or item.state_type in TERMINAL:
        return
    if files:
        extra = {Path(file).name: Path(file) for file in files}
        attempt = item.run_count + (item.state_type is StateType.PENDING)
        await session.jobs.put_outputs(str(item_id), attempt, Path(files[0]).parent / "outputs", extra=extra)
    end = ItemState.CANCELLED if item.state_type is StateType.CANCELLING else ItemState.FAILED
    outcome = Outcome(state=end, message=f"[{phase.value}] {message}")
    await publish_report(session.server, item, build_report(item, outcome, facts or Facts(error=LaunchError(message))))
    await transition(session.server, item_id, item.state_type, end, outcome.message)
    await repair_item(session.server, item)


def unsendable_part(item: Item) -> str | None:
    """Return what in an item the server keeps and cannot send again, in words; `None` when there is nothing."""
    return json_fault(item.parameters, "parameters") or json_fault(item.labels, "labels")


async def repair_item(server: Server, item: Item) -> None:
    """Make an item that has ended one that the server can list: a text takes the place of what it cannot send.

    A schedule that made the item is deactivated, for it would make the next one.

    Args:
        server: the client of the server.
        item: as it was read; most have nothing to repair, and cost no request.
    """
    fault = unsendable_part(item)
    if fault is None:
        return
    maker = item.created_by
    if maker is not None and maker.type == "SCHEDULE" and maker.id is not None and item.deployment_id is not None:
        schedule, deployment = maker.id, item.deployment_id
        await retry_until_available(
            f"deactivate the schedule of {item.id}", lambda: server.deactivate_schedule(deployment, schedule)
        )
        log.warning(
            "%s schedule-deactivated %s of the deployment %s: %s. Correct its parameters, and activate it again.",
            item.id,
            schedule,
            deployment,
            fault,
        )
    parameters, labels = clean_json(item.parameters), clean_json(item.labels)
    await retry_until_available(
        f"repair the parameters of {item.id}", lambda: server.replace_parameters(item.id, parameters)
    )
    if labels != item.labels:
        await retry_until_available(f"repair the labels of {item.id}", lambda: server.label_item(item.id, labels))
    log.warning("%s repaired %s: it stands there as a text now, so that runs can be listed.", item.id, fault)


async def fail_with_agent_error(
    context: AgentContext, item_id: str, running_item: RunningItem | None, exception: BaseException
) -> None:
    """Report in the log, in the item's `error.log` and in its state that the agent itself failed on it.

    None of them shows a secret of the item's attempt.
    """
    masked = running_item.masked if running_item is not None else str
    text = masked(f"{type(exception).__name__}: {exception}")
    log.error("%s agent-failed %s\n%s", item_id, text, masked("".join(format_exception(exception)).rstrip()))
    files = []
    if running_item is not None and running_item.file_saver is not None:
        files = [running_item.file_saver / "error.log"]
        await anyio.Path(files[0]).write_text(f"{text}\n")
    facts = (
        Facts(error=exception)
        if running_item is None
        else Facts(queue=running_item.queue, plan=running_item.plan, home=context.config.home, error=exception)
    )
    message = f"The agent failed over it: {without_home(text, context.config.home)}"
    try:
        await retry_until_available(
            f"end {item_id}",
            lambda: fail_item(context.session, UUID(item_id), message, Phase.AGENT, files, facts),
        )
    except Exception:
        # The item stays active; it is settled when this agent starts anew, or is lost.
        log.exception("%s not-ended", item_id)


async def check_deployment(server: Server, item: Item, of_queue: UUID) -> None:
    """Refuse an item that is not of the job that its deployment starts; the queue's own deployment starts any.

    Args:
        server: the Prefect server.
        item: claimed.
        of_queue: id of the queue's own deployment.

    Raises:
        SpecError: when it is of another job.
    """
    made_from = item.deployment_id
    if made_from is None:
        return
    labels: Mapping[str, Any] = {}
    if made_from != of_queue:
        deployment = await retry_until_available("show the deployment", lambda: server.read_deployment(made_from))
        labels = item.labels if deployment is None else deployment.labels or {}
    check_labels(item, labels)
