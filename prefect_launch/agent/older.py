"""What older claims have left at work on this machine, when an item is attempted again.

The agent of an older attempt may have been killed and called lost while its run goes on. When that run can be reached
from here (one Docker Engine, or one home on one machine), it is stopped and removed before the next attempt is made:
never two at work. What has ended is left to the housekeeping; what is on another machine, to its own agent.
"""

from __future__ import annotations

from prefect_launch.agent.belonging import identity_of, is_ours, plan_of
from prefect_launch.agent.moves import log, until_server_is_back
from prefect_launch.agent.workshop import Workshop
from prefect_launch.runners.base import Found, Labels, Runner, RunPlan, RunState
from prefect_launch.runners.run_folder import TAKEOVER_SECONDS


async def stop_older_attempts(workshop: Workshop, runner: Runner, plan: RunPlan) -> None:
    """Stop and remove what earlier attempts at an item have at work here.

    Args:
        workshop: the agent's.
        runner: of the item's resource.
        plan: of the attempt that is to be made; a first one costs nothing.

    Raises:
        LaunchError: when one cannot be stopped: then the next must not be made.
    """
    if plan.attempt == 1:
        return
    for found in await runner.find({Labels.ITEM: plan.item_id}):
        if found.state is not RunState.EXITED and await _is_older(workshop, found, plan):
            log.warning("%s stopping %s: an older attempt is still at work", plan.item_id, found.handle)
            await runner.stop(found.handle, TAKEOVER_SECONDS)
            await runner.remove(found.handle)


async def _is_older(workshop: Workshop, found: Found, plan: RunPlan) -> bool:
    """Whether it is certainly ours, and of an attempt before this one."""
    identity = identity_of(found)
    if identity is None or identity.attempt >= plan.attempt:
        return False
    server = workshop.session.server
    history = await until_server_is_back(
        f"show the states of {plan.item_id}", lambda: server.read_states(identity.item_id)
    )
    return is_ours(identity, plan_of(workshop.config.site, identity), history)
