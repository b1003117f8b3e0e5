"""Previous attempts: runs that older claims of an item have left on this machine.

The agent of an older attempt may have been killed and reported lost while its run continues. If this
agent can reach that run (one Docker Engine, or one machine), it stops the run before it makes the next attempt, so that
two never run at once. It also removes a run in this home, or on this engine; a run of another home stays with its log,
for its own agent. Ended runs are left to the housekeeping, and runs on another machine to their own agent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from uuid import UUID

import anyio

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.item.ownership import claims_of, created_by_us, identity_of, plan_of, token_of_claim
from prefect_launch.core.states import StateType
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import TAKEOVER_SECONDS, Found, Labels, Runner, RunPlan, RunState
from prefect_launch.server.values import Item, State

log = logging.getLogger(__name__)


async def stop_previous_attempts(context: AgentContext, runner: Runner, plan: RunPlan) -> None:
    """Stop what earlier attempts at an item, or earlier claims of it, have running here.

    Args:
        context: the agent's.
        runner: of the item's resource.
        plan: of the attempt that is to be made; a first one costs a look into a folder.

    Raises:
        LaunchError: when one cannot be stopped: then the next must not be made.
    """
    if plan.attempt > 1:
        await runner.seek(plan)
        for found in await runner.find({Labels.ITEM: plan.item_id}):
            if found.state is not RunState.EXITED and await _is_older(context, found, plan):
                await _stop(runner, found, plan)
                await runner.remove(found.handle)
    beside = [one for one in await runner.find_beside(plan.item_id) if _claim(one.labels) != _claim(plan.labels)]
    if beside:
        earlier = _claims_before(await _history(context, plan.item_id), _claim(plan.labels))
        for found in beside:
            if _claim(found.labels) in earlier:
                await _stop(runner, found, plan)


async def stop_all_attempts(context: AgentContext, queue: str, item: Item) -> bool:
    """Stop what an item has running here, whichever claims have made it; it is left there with its log.

    Args:
        context: the agent's.
        queue: the item's.
        item: that is to be stopped, and whose agent is gone.

    Returns:
        Whether anything was, and is seen to be gone.

    Raises:
        LaunchError: when something cannot be stopped, or looked for.
    """
    runner = await context.runner_of(queue, item)
    history = await context.session.server.read_states(item.id)
    if not history or history[-1].type is not StateType.CANCELLING:
        return False  # It has come to its end meanwhile, and may be somebody's again.
    tokens = [token_of_claim(claim) for claim in claims_of(history)]
    here = [one for one in await runner.find({Labels.ITEM: str(item.id)}) if one.state is not RunState.EXITED]
    found = {one.handle: one for one in here if (whose := identity_of(one)) is not None and whose.claim in tokens}
    found |= {one.handle: one for one in await runner.find_beside(str(item.id)) if _claim(one.labels) in tokens}
    for handle in found:
        log.warning("%s stopping %s: it was asked to, and its agent is gone", item.id, handle)
        await runner.stop(handle, context.config.stopped_run_timeout)
    return bool(found)


async def _stop(runner: Runner, found: Found, plan: RunPlan) -> None:
    log.warning("%s stopping %s: an older attempt still runs", plan.item_id, found.handle)
    await runner.stop(found.handle, TAKEOVER_SECONDS)


async def _is_older(context: AgentContext, found: Found, plan: RunPlan) -> bool:
    """Whether it is certainly ours, and of an attempt before this one."""
    identity = identity_of(found)
    if identity is None or identity.attempt >= plan.attempt:
        return False
    history = await _history(context, plan.item_id)
    known = await anyio.to_thread.run_sync(plan_of, context.config.machine, identity)
    return created_by_us(identity, known, history)


def _claims_before(history: Sequence[State], token: str) -> list[str]:
    """Return the tokens of the claims before this one; none when the item knows nothing of it."""
    tokens = [token_of_claim(claim) for claim in claims_of(history)]
    return tokens[: tokens.index(token)] if token in tokens else []


def _claim(labels: Mapping[str, str]) -> str:
    return labels.get(Labels.CLAIM, "")


async def _history(context: AgentContext, item_id: str) -> list[State]:
    server = context.session.server
    return await retry_until_available(f"show the states of {item_id}", lambda: server.read_states(UUID(item_id)))
