"""What an agent does first: find what its last life left, on this machine and on the server.

The labels of what exists are the truth. A run that the item still belongs to is taken up again; what belongs to an item
that has ended, or that has a newer attempt, is stopped and removed. An item that this agent had claimed, of which
nothing exists, goes back into its queue.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from prefect_launch.agent.claim import give_back
from prefect_launch.agent.execution import Workshop
from prefect_launch.errors import LaunchError
from prefect_launch.planning import load_plan
from prefect_launch.runners.base import Found, Labels, Runner, RunPlan
from prefect_launch.runners.registry import runner_names
from prefect_launch.server.values import Item
from prefect_launch.states import ACTIVE, StateType

log = logging.getLogger("prefect_launch.agent")


@dataclass(frozen=True)
class Adopted:
    """A run that goes on under this agent.

    Attributes:
        item: as it is on the server.
        queue: the queue that it came from.
    """

    item: Item
    queue: str
    runner: Runner
    plan: RunPlan
    handle: str


async def find_own_runs(workshop: Workshop) -> list[Adopted]:
    """Find the runs of this agent's name on this machine, and clear away those that belong to nothing any more."""
    adopted = []
    for resource in runner_names():
        runner = workshop.runner(resource)
        try:
            found = await runner.find({Labels.AGENT: workshop.config.name})
        except LaunchError as error:
            log.debug("cannot look for runs on %s: %s", resource, error)
            continue
        for one in found:
            run = await _adopt(workshop, runner, one)
            if run is not None:
                adopted.append(run)
    return adopted


async def _adopt(workshop: Workshop, runner: Runner, found: Found) -> Adopted | None:
    item_id, attempt = _identity(found)
    if item_id is None:
        log.warning("ignoring %s: its labels are not ones that this agent gives", found.handle)
        return None
    item = await workshop.session.server.read_item(item_id)
    plan = load_plan(found.run_dir or workshop.config.site.run_dir(str(item_id), attempt))
    if item is None or plan is None or not _belongs(item, found, attempt):
        log.info("%s clearing %s: its item is %s", item_id, found.handle, item.state_name if item else "gone")
        await runner.stop(found.handle, workshop.config.stopped_run_timeout)
        await runner.remove(found.handle)
        return None
    log.info("%s found-again %s", item_id, found.handle)
    return Adopted(item=item, queue=found.labels[Labels.QUEUE], runner=runner, plan=plan, handle=found.handle)


def _identity(found: Found) -> tuple[UUID | None, int]:
    try:
        return UUID(found.labels[Labels.ITEM]), int(found.labels[Labels.ATTEMPT])
    except (KeyError, ValueError):
        return None, 0


def _belongs(item: Item, found: Found, attempt: int) -> bool:
    """Whether a run is the item's present attempt: `run_count` grows when the item becomes Running."""
    if item.state_type not in ACTIVE:
        return False
    if item.state_type is StateType.PENDING:
        return item.run_count + 1 == attempt and _claim_of(item) in ("", found.labels.get(Labels.CLAIM, ""))
    return item.run_count == attempt


def _claim_of(item: Item) -> str:
    """Return the claim that a `Pending` item is under; a later state of the way (Pulling, …) no longer says."""
    if item.state is None or item.state_name != "Pending":
        return ""
    return str(item.state.state_details.get("transition_id") or "")


async def give_back_orphans(workshop: Workshop, queues: Collection[str], holder: str, held: Collection[UUID]) -> None:
    """Put back the items that this agent claimed in its last life and of which it had created nothing."""
    server = workshop.session.server
    for queue in queues:
        for item in await server.list_items(pool=queue, state_types=[StateType.PENDING]):
            if item.id not in held and await _was_claimed_by(workshop, item, holder):
                await give_back(server, item, f"{holder} was ended before it had started this.")


async def _was_claimed_by(workshop: Workshop, item: Item, holder: str) -> bool:
    states = await workshop.session.server.read_states(item.id)
    claims = [state for state in states if state.type is StateType.PENDING and state.name == "Pending"]
    return bool(claims) and claims[-1].message == f"Claimed by {holder}."
