"""What an attempt left behind, kept in the job store: its outputs and its whole log. Its log tells what is left out."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.agent.item.log_notes import LOGGER, write_log_note
from prefect_launch.agent.item.mask_outputs import hide_in_outputs, kept_log
from prefect_launch.agent.item.transitions import log, until_server_is_back
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import LOG_FILE

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.runners.base import ExitStatus, RunPlan
    from prefect_launch.server.protocol import Server

#: The agent's own, stored beside the outputs.
WHOLE_LOG: Final = LOG_FILE
#: Records of an item's log that are looked through for one.
_LOOKED_AT: Final = 200


async def keep_outputs(session: Session, flow_run_id: UUID, plan: RunPlan, end: ExitStatus) -> list[str]:
    """Keep an attempt's outputs, within its limits, and its log; tell in the log what is left out.

    Doing it again, after an agent that died in the middle of it, changes nothing.

    Args:
        session: an open connection.
        flow_run_id: of the item.
        plan: of the attempt.
        end: how it ended.

    Returns:
        What there is to say of it where the run's end is told.

    Raises:
        InfrastructureError: when the job store fails.
    """
    put = session.jobs.put_outputs
    await hide_in_outputs(plan)
    async with kept_log(plan) as path:
        extra = {} if path is None else {WHOLE_LOG: path}
        kept = await put(plan.item_id, plan.attempt, plan.output_dir, extra=extra, limits=plan.output_limits)
    left_out = end.left_out + kept.left_out
    if not left_out:
        return []
    told = plan.mask.text(left_out.describe(plan.output_limits))
    await tell_left_out(session.server, flow_run_id, told, since=end.ended_at)
    return [f"{left_out.summary()}; its log names {'it' if left_out.count == 1 else 'them'}."]


async def tell_left_out(server: Server, flow_run_id: UUID, message: str, *, since: datetime | None = None) -> None:
    """Tell in an item's log what is left out of its outputs; a log that cannot be written keeps no run from its end.

    Args:
        server: an open connection.
        flow_run_id: of the item.
        message: what to tell, its secrets masked.
        since: when an agent before this one can have told it; None: none has.
    """
    try:
        await until_server_is_back(
            f"take the log of {flow_run_id}", lambda: _tell_once(server, flow_run_id, message, since)
        )
    except LaunchError as error:
        log.warning("%s not told what is left out of its outputs: %s", flow_run_id, error)


async def _tell_once(server: Server, flow_run_id: UUID, message: str, since: datetime | None) -> None:
    """Write a line to an item's log, unless the agent before this one has."""
    found = await server.read_logs(flow_run_id, limit=_LOOKED_AT, since=since) if since is not None else []
    if not any(record.name == LOGGER and record.message == message for record in found):
        await write_log_note(server, flow_run_id, message)
