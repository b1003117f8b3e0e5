"""Recovery at the start of an agent: finds what the last life of the agent left, and adopts the runs of lost agents.

The labels of a run are the truth, once it is proven ours. The agent adopts a run whose item still belongs to it. It
stops and removes a run whose item has ended, or has a newer attempt or claim, and a container that was not filled yet.
It leaves alone a run that only looks like ours. An item that this agent had claimed may have no run: it returns to its
queue if it was not started, crashed if it ran, and is cancelled if it was asked to stop. If a resource cannot be
reached, the items of its queues are left alone.

The run of a lost agent in the same home, on the same machine or engine, still runs, but no agent reports on it. Another
agent of the home adopts it under its own claim: its log, end and outputs arrive, and nothing runs twice. A run that was
not started yet is not adopted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

import anyio

from prefect_launch.agent.context import AgentContext, resource_of_item
from prefect_launch.agent.item.failure_report import Facts
from prefect_launch.agent.item.finish import end_item
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import (
    Identity,
    created_by_us,
    holder_of,
    identity_of,
    is_current_attempt,
    items_in_work,
    plan_of,
    run_lock_holder,
)
from prefect_launch.core.states import ACTIVE, ItemState, StateType
from prefect_launch.errors import ItemGoneError, LaunchError
from prefect_launch.queues.claim import undo_claim
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.transitions import transition
from prefect_launch.runners.base import Found, Labels, Phase, Runner, RunPlan, RunState
from prefect_launch.server.values import PAGE, Item, State
from prefect_launch.spec.scheduling import Cause

log = logging.getLogger(__name__)

#: So many items are read at a time.
_READS: Final = 8


@dataclass(frozen=True)
class AdoptedRun:
    """A run that this agent continues.

    Attributes:
        item: as it is on the server.
        queue: the queue that it came from.
    """

    item: Item
    queue: str
    runner: Runner
    plan: RunPlan
    handle: str


@dataclass(frozen=True)
class FoundRuns:
    """What an agent finds at its start.

    Attributes:
        runs: those that continue.
        stale: runs of ended items, older attempts or older claims; they are to be removed.
        unreachable: the resources that could not be searched, and why.
    """

    runs: list[AdoptedRun] = field(default_factory=list)
    stale: list[tuple[Runner, Found]] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)


async def find_own_runs(context: AgentContext, holder: Holder, resources: Collection[str] | None = None) -> FoundRuns:
    """Find the runs of this agent's name on this machine: those that continue, and those that are stale.

    Args:
        context: the agent's.
        holder: this life of the agent.
        resources: where to look; by default wherever this home can have runs.

    Raises:
        LaunchError: when a queue cannot be read.
    """
    found_runs = FoundRuns()
    for resource in await context.resources() if resources is None else resources:
        try:
            runner = context.runner(resource)
            found = await runner.find({Labels.AGENT: context.config.name})
        except LaunchError as error:
            log.debug("cannot search %s for runs: %s", resource, error)
            found_runs.unreachable[resource] = str(error)
            continue
        for one in await _read_items(context, found):
            _adopt(context, holder, runner, one, found_runs)
    return found_runs


class _ItemOfRun(NamedTuple):
    """A run, and its item as the server shows it."""

    found: Found
    identity: Identity
    plan: RunPlan | None
    item: Item | None
    history: list[State]


async def _read_items(context: AgentContext, found: Sequence[Found]) -> list[_ItemOfRun]:
    """Read the items of runs, a page of them at once, and the states of each; skip runs that are not this agent's."""
    server = context.session.server
    runs: dict[int, tuple[Found, Identity]] = {}
    for number, one in enumerate(found):
        identity = identity_of(one)
        if identity is not None:
            runs[number] = one, identity
        else:
            log.warning("ignoring %s: its name does not fit its labels, so no agent has created it", one.handle)
    ids = list({identity.item_id for _, identity in runs.values()})
    items: dict[UUID, Item] = {}
    for start in range(0, len(ids), PAGE):
        with suppress(LaunchError):  # What cannot be listed is read by itself.
            items |= {item.id: item for item in await server.list_items(ids=ids[start : start + PAGE])}
    turns = asyncio.Semaphore(_READS)

    async def read(one: Found, identity: Identity) -> _ItemOfRun:
        async with turns:
            item = items.get(identity.item_id) or await server.read_item(identity.item_id)
            plan = await anyio.to_thread.run_sync(plan_of, context.config.machine, identity)
            return _ItemOfRun(one, identity, plan, item, await server.read_states(identity.item_id))

    return list(await asyncio.gather(*(read(*run) for run in runs.values())))


async def remove_stale_runs(context: AgentContext, stale: Collection[tuple[Runner, Found]]) -> None:
    """Stop and remove stale runs, all at once: each may take its whole grace period."""
    async with anyio.create_task_group() as group:
        for runner, found in stale:
            group.start_soon(_clear, context, runner, found.handle)


def _adopt(context: AgentContext, holder: Holder, runner: Runner, one: _ItemOfRun, found_runs: FoundRuns) -> None:
    found, identity, plan, item, history = one
    if not created_by_us(identity, plan, history):
        log.warning("ignoring %s: it has our labels, but no agent of this home has created it", found.handle)
        return
    claimed_by = holder_of(history)
    is_anothers = claimed_by is not None and not claimed_by.is_earlier_life_of(holder)
    if item is not None and plan is None and is_anothers and is_current_attempt(identity, item, history):
        # Another agent of this name, with another home, uses this engine; if it is lost, it is found to be so.
        log.warning("%s leaving %s alone: it is of %s, which has another home", item.id, found.handle, claimed_by)
        return
    if item is None or plan is None or not is_current_attempt(identity, item, history):
        has_moved_on = item is not None and item.state_type in ACTIVE
        is_now = "was claimed again" if has_moved_on else f"is {item.state_name if item else 'gone'}"
        why = f"item {is_now}" if plan is not None else "plan is gone or broken"
        log.info("%s clearing %s: its %s", identity.item_id, found.handle, why)
        found_runs.stale.append((runner, found))
        return
    if not found.is_complete:
        log.info("%s clearing %s: it is incomplete", item.id, found.handle)
        found_runs.stale.append((runner, found))
        return
    log.info("%s adopted %s", item.id, found.handle)
    context.devices.restore(item.id, found.labels)
    found_runs.runs.append(
        AdoptedRun(item=item, queue=found.labels[Labels.QUEUE], runner=runner, plan=plan, handle=found.handle)
    )


async def _clear(context: AgentContext, runner: Runner, handle: str) -> None:
    try:
        await runner.stop(handle, context.config.stopped_run_timeout)
        await runner.remove(handle)
    except LaunchError as error:
        log.warning("not-cleared %s: %s", handle, error)


async def settle_orphans(
    context: AgentContext,
    queues: Collection[str],
    holder: Holder,
    held: Collection[UUID],
    unreachable: Collection[str] = (),
) -> None:
    """Settle the items that this agent had claimed in its last life and of which nothing exists.

    Args:
        context: the agent's.
        queues: names of its queues.
        holder: this life of the agent.
        held: ids of its active items.
        unreachable: resources that could not be searched; the items of their queues are left alone.
    """
    for name in queues:
        queue = await context.session.queue(name)
        if queue.config.resource in unreachable:
            log.warning("items of %s are not settled: cannot search %s for runs", name, queue.config.resource)
        orphans = [
            (item, await context.runner_of(name, item))
            for item in await items_in_work(context.session.server, name)
            if resource_of_item(item, queue.config) not in unreachable
            and item.id not in held
            and await _was_claimed_by(context, item, holder)
        ]
        await _stop_late_runs(context, orphans)
        for item, runner in orphans:
            try:
                await _settle(context, item, runner, holder)
            except ItemGoneError:
                log.debug("%s is gone", item.id)


async def _stop_late_runs(context: AgentContext, orphans: Collection[tuple[Item, Runner]]) -> None:
    """Stop what may come to run yet: an agent that died while it submitted a job has not seen it in the cluster."""
    async with anyio.create_task_group() as group:
        for item, runner in orphans:
            if item.infrastructure_pid and item.state_type is not StateType.RUNNING:
                group.start_soon(_clear, context, runner, item.infrastructure_pid)


async def _settle(context: AgentContext, item: Item, runner: Runner, holder: Holder) -> None:
    server = context.session.server
    if item.state_type is StateType.PENDING:
        await undo_claim(server, item, f"{holder} was ended before it had started this.")
    elif item.state_type is StateType.CANCELLING:
        await transition(server, item.id, StateType.CANCELLING, ItemState.CANCELLED, "Nothing of it runs any more.")
    else:
        gone = await runner.why_gone(item.infrastructure_pid or "")
        why = f"[{Phase.RUN.value}] What {holder} ran of it is gone: {gone}."
        outcome = Outcome(state=ItemState.CRASHED, message=why, cause=Cause.LOST)
        facts = Facts(agent=str(holder), attempt=item.run_count)
        await end_item(context.session, item, outcome, StateType.RUNNING, facts)


async def _was_claimed_by(context: AgentContext, item: Item, holder: Holder) -> bool:
    found = holder_of(await context.session.server.read_states(item.id))
    return found is not None and found.is_earlier_life_of(holder)


async def adopt_lost_run(
    context: AgentContext, resume: Callable[[AdoptedRun], None], queue: str, item: Item, lost: Collection[str]
) -> bool:
    """Adopt the current run of an item whose agent is lost, if it is within reach.

    Args:
        context: of the adopting agent.
        resume: continues the run.
        queue: the item's.
        item: an active one.
        lost: names of the lost agents. One that holds the run lock but sends no heartbeats is stuck: its run is
            reported as lost.

    Returns:
        Whether this agent, or another one of the same home, has adopted the run.

    Raises:
        LaunchError: when its resource cannot be searched.
    """
    runner = await context.runner_of(queue, item)
    history = await context.session.server.read_states(item.id)
    for found in await runner.find({Labels.ITEM: str(item.id)}):
        identity = identity_of(found)
        is_at_work = found.state is not RunState.CREATED and found.is_complete
        if identity is None or not is_at_work or not is_current_attempt(identity, item, history):
            continue
        plan = await anyio.to_thread.run_sync(plan_of, context.config.machine, identity)
        if plan is None:
            continue
        lock_holder = await anyio.to_thread.run_sync(run_lock_holder, plan.run_dir)
        if lock_holder is not None:
            return lock_holder not in lost
        log.warning("%s adopted %s: its agent %s is lost", item.id, found.handle, found.labels[Labels.AGENT])
        if found.state is RunState.RUNNING:
            context.devices.restore(item.id, found.labels)
        resume(AdoptedRun(item=item, queue=queue, runner=runner, plan=plan, handle=found.handle))
        return True
    return False
