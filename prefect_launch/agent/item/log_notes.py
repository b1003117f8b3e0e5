"""Lines of the agent's own in an item's log, beside those of its job."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.agent.item.transitions import log
from prefect_launch.planning.image_pinning import digest_in
from prefect_launch.server.values import LogRecord

if TYPE_CHECKING:
    from prefect_launch.runners.base import RunPlan
    from prefect_launch.server.protocol import Server


#: The name under which they are shown.
LOGGER: Final = "prefect_launch.agent"


def log_note(
    message: str, *, level: int = logging.WARNING, at: datetime | None = None, logger: str = LOGGER
) -> LogRecord:
    """Make a line of the agent's own.

    Args:
        message: its text.
        level: as of `logging`.
        at: its time; by default now.
        logger: the name that it is shown under.
    """
    return LogRecord(name=logger, level=level, message=message, timestamp=at or datetime.now(timezone.utc))


async def write_log_note(server: Server, item_id: UUID, message: str, *, at: datetime | None = None) -> None:
    """Write a line of the agent's own to an item's log, as a warning.

    Raises:
        LaunchError: when the server does not take it.
    """
    await server.write_logs(item_id, [log_note(message, at=at)])


def is_other_image(plan: RunPlan, image: str | None) -> bool:
    """Whether a run is of another image than its tag meant at the enqueue.

    Args:
        plan: of the run.
        image: that it runs, by its digest; None when that is not known.
    """
    wanted = plan.resolved_image
    return wanted is not None and image is not None and digest_in(image) != digest_in(wanted)


async def warn_of_other_image(server: Server, item_id: UUID, plan: RunPlan, image: str | None) -> None:
    """Say in an item's log which image its tag meant at the enqueue, and which one runs; nothing when it is that one.

    The item is Running by then, and nothing depends on the line: whatever keeps it from being written is no fault.
    """
    if not is_other_image(plan, image):
        return
    message = (
        f"{plan.image} meant {digest_in(str(plan.resolved_image))} when this was queued, which could not be had here:"
        f" what runs is the image of that name, {image}."
    )
    log.warning("%s other-image %s", item_id, message)
    try:
        await write_log_note(server, item_id, message)
    except Exception as error:  # noqa: BLE001 - the run goes on
        log.debug("%s not told of its image: %s", item_id, error)
