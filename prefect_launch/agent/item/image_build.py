"""Image build of an item whose job has code and no image: found by its tag, or built while the item shows it.

The build's log streams into the item's log under the logger `build`; the whole of it is kept next to the run's own log.
"""

from __future__ import annotations

import logging
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.agent.item.attempt import Attempt
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.builds.builder import BuildLog
from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError
from prefect_launch.planning.plan import save_plan
from prefect_launch.runners.base import Phase, RunPlan
from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

#: The logger of a build's records in the item's log.
BUILD_LOGGER: Final = "build"
#: In a folder of its own, with the position up to which it was sent.
BUILD_LOG: Final = "build/build.log"


async def ensure_image(attempt: Attempt) -> RunPlan:
    """Return the plan of a run with its image.

    Args:
        attempt: whose plan has code and no image.

    Raises:
        AgentConfigError: when the image would stay on this machine's engine, and the run is elsewhere.
        LaunchError: as `ImageBuilder.ensure_image` does.
    """
    context, plan = attempt.context, attempt.plan
    attempt.running.phase = Phase.BUILD
    if not attempt.runner.uses_this_machine:
        context.config.builder.check_reaches(context.resource_of(attempt.runner))
    found = await context.images.find(plan)
    if found is None:
        await attempt.transition(ItemState.BUILDING, f"On {context.config.name}.")
        found = await build_with_log(context.session.server, attempt.item.id, context.images, plan)
    attempt.running.phase = Phase.AGENT
    await anyio.to_thread.run_sync(save_plan, found)
    return found


async def build_with_log(server: Server, item_id: UUID, images: ImageBuilder, plan: RunPlan) -> RunPlan:
    """Build the image of a plan, with the build's log in the item's.

    Raises:
        LaunchError: as `ImageBuilder.ensure_image` does.
    """
    async with images.explaining_full_disks():
        return await _logged(server, item_id, images, plan)


async def _logged(server: Server, item_id: UUID, images: ImageBuilder, plan: RunPlan) -> RunPlan:
    path = plan.run_dir / BUILD_LOG
    await anyio.to_thread.run_sync(lambda: path.parent.mkdir(exist_ok=True))
    shipper = LogShipper(server, item_id, path, name=BUILD_LOGGER, mask=plan.mask)
    shipper.follow()
    written = BuildLog(path)
    try:
        return await images.ensure_image(plan, written.write)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(written.close)
            await _finish(shipper, item_id)


async def _finish(shipper: LogShipper, item_id: UUID) -> None:
    """Send what is left of the build's log; a fault of that is no fault of the build."""
    try:
        await shipper.finish()
    except LaunchError as error:
        log.warning("%s build-log not sent whole: %s", item_id, error)
    finally:
        await shipper.let_go()
