"""Going on with the run of a lost agent that is within reach: in this agent's home, and on this machine or engine.

Such a run is not lost, only nobody reports on it: so another agent of the home does, under the claim that it was
started under. Its log, its end and its outputs are what they would have been, and nothing runs twice. What was not
started yet is not gone on with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from prefect_launch.agent.item.context import Workshop
from prefect_launch.agent.item.transitions import log
from prefect_launch.agent.recovery.restart import Adopted
from prefect_launch.agent.recovery.run_identity import identity_of, is_present, plan_of
from prefect_launch.agent.recovery.run_lock import keeper_of
from prefect_launch.runners.base import Labels, RunState
from prefect_launch.server.values import Item


async def go_on(
    workshop: Workshop, resume: Callable[[Adopted], None], queue: str, item: Item, lost: Collection[str]
) -> bool:
    """Go on with the present run of an item whose agent is lost, if it is within reach.

    Args:
        workshop: of the agent that goes on.
        resume: takes the run up.
        queue: the item's.
        item: in work.
        lost: names of the agents that are lost. One of them that still holds on to the run, and does not beat, is
            stuck: its run is left to be told of.

    Returns:
        Whether somebody goes on with it: this agent, or another one of the home that was faster.

    Raises:
        LaunchError: when it cannot be looked for.
    """
    runner = workshop.runner((await workshop.session.queue(queue)).config.resource)
    history = await workshop.session.server.read_states(item.id)
    for found in await runner.find({Labels.ITEM: str(item.id)}):
        identity = identity_of(found)
        plan = plan_of(workshop.config.site, identity) if identity is not None else None
        is_at_work = found.state is not RunState.CREATED and found.is_complete
        if identity is None or plan is None or not is_at_work or not is_present(identity, item, history):
            continue
        keeper = keeper_of(plan.run_dir)
        if keeper is not None:
            return keeper not in lost
        log.warning("%s going-on with %s: its agent %s is lost", item.id, found.handle, found.labels[Labels.AGENT])
        if found.state is RunState.RUNNING:
            workshop.devices.restore(item.id, found.labels)
        resume(Adopted(item=item, queue=queue, runner=runner, plan=plan, handle=found.handle))
        return True
    return False
