"""Finished runs that nobody has removed: of an agent that was killed at the end of an item, or that never came back.

A run is taken for ours by its labels and by its plan, which lies in this home under the same claim. Its log is copied
to the end before it goes. What runs, and what belongs to an item that has not ended, is left to its agent; runs of a
direct `launch`, which have no agent, are left to their caller.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.item.ownership import identity_of, plan_of
from prefect_launch.agent.item.transitions import log
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import Found, Labels, Runner, RunPlan, RunState
from prefect_launch.runners.registry import used_resources

if TYPE_CHECKING:
    from prefect_launch.agent.context import AgentContext

#: Its own agent removes it within seconds of its item's end.
SETTLED_SECONDS: Final = 60.0
#: A log that is not whole by then is left for the next time.
_LOG_SECONDS: Final = 120.0
_PAGE: Final = 200


@dataclass(frozen=True)
class _Leftover:
    item: UUID
    runner: Runner
    found: Found
    plan: RunPlan


@dataclass(frozen=True)
class Survey:
    """What exists on this machine.

    Attributes:
        items: ids of the items of which something exists, after the clean-up.
        removed: what was removed, or would be: the names of the runs.
        unseen: resources that could not be looked at.
    """

    items: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)


async def remove_finished(
    context: AgentContext, held: Collection[UUID], *, dry_run: bool = False, settled_seconds: float = SETTLED_SECONDS
) -> Survey:
    """Remove the finished runs of items that have ended.

    Args:
        context: the agent's.
        held: items that the agent has in work.
        dry_run: only tell what would go.
        settled_seconds: how long ago an item must have ended.

    Raises:
        LaunchError: when the server does not answer.
    """
    survey = Survey()
    leftovers: list[_Leftover] = []
    used = await anyio.to_thread.run_sync(used_resources, context.config.home)
    for resource in sorted(used.union(context.runners)):
        try:
            runner = context.runner(resource)
            found = await runner.find({})
        except LaunchError as error:
            log.debug("cannot look for finished runs on %s: %s", resource, error)
            survey.unseen.add(resource)
            continue
        survey.items.update(one.labels[Labels.ITEM] for one in found if Labels.ITEM in one.labels)
        ours = [await anyio.to_thread.run_sync(_leftover, context, runner, one) for one in found]
        leftovers += [one for one in ours if one is not None and one.item not in held]
    ended = await _ended(context, {one.item for one in leftovers}, settled_seconds)
    for one in leftovers:
        if one.item in ended and (dry_run or await _remove(one)):
            survey.removed.append(one.plan.name)
            survey.items.discard(str(one.item))
    return survey


def _leftover(context: AgentContext, runner: Runner, found: Found) -> _Leftover | None:
    """Return a run that has ended, when it is certainly one that an agent of this home made."""
    if found.state in (RunState.SUBMITTED, RunState.RUNNING) or Labels.AGENT not in found.labels:
        return None
    identity = identity_of(found)
    plan = plan_of(context.config.machine, identity) if identity is not None else None
    return None if identity is None or plan is None else _Leftover(identity.item_id, runner, found, plan)


async def _ended(context: AgentContext, ids: Collection[UUID], settled_seconds: float) -> set[UUID]:
    """Return which of these items have ended, and not just now."""
    ended = set()
    wanted = sorted(ids)
    for start in range(0, len(wanted), _PAGE):
        for item in await context.session.server.list_items(ids=wanted[start : start + _PAGE]):
            at = item.state.timestamp if item.state is not None else None
            if item.is_terminal and (at is None or time.time() - at.timestamp() >= settled_seconds):
                ended.add(item.id)
    return ended


async def _remove(one: _Leftover) -> bool:
    """Copy the rest of its log, then remove it."""
    try:
        if one.found.state is RunState.EXITED:
            with anyio.fail_after(_LOG_SECONDS):
                end = await one.runner.watch(one.found.handle, one.plan)
            if not end.log_complete:
                log.warning("%s not-removed %s: %s", one.item, one.found.handle, " ".join(end.warnings))
                return False
        await one.runner.remove(one.found.handle)
    except (LaunchError, OSError, TimeoutError) as error:
        log.warning("%s not-removed %s: %s", one.item, one.found.handle, error)
        return False
    return True
