"""Wait of a run in a cluster that has accepted it: the item shows it, and takes none of the agent's slots."""

from __future__ import annotations

from functools import partial

from prefect_launch.agent.item.attempt import Attempt
from prefect_launch.agent.item.log_notes import write_log_note
from prefect_launch.agent.item.transitions import retry_until_available
from prefect_launch.core.states import ItemState


async def until_running(attempt: Attempt) -> None:
    """Wait until the run runs.

    Raises:
        CancelledBeforeStartError: when the item was asked to stop.
        NotNowError: when the agent stops its jobs.
    """
    try:
        waiting = attempt.runner.wait_running(attempt.handle, partial(_note_wait, attempt))
        await attempt.unless_stopped(waiting, or_preempted=True)
    finally:
        attempt.running.waits_in = None


async def _note_wait(attempt: Attempt, reason: str) -> None:
    """Show that the run waits in a cluster, and why; the server takes one state of that name, so later reasons go to
    the item's log."""
    name, reason = attempt.context.resource_of(attempt.runner), attempt.running.masked(reason)
    message = f"Waits in {name}: {reason}" if reason else f"Accepted by {name}; waits there to be started."
    is_first = attempt.running.waits_in is None
    if is_first:
        attempt.running.waits_in = attempt.runner
        attempt.context.slot_freed(attempt.running.thread_id)
    if is_first and attempt.item.state_name != ItemState.SUBMITTED.label:
        await attempt.transition(ItemState.SUBMITTED, message)
    elif message != attempt.item.message:
        note = partial(write_log_note, attempt.server, attempt.item.id, message)
        await retry_until_available(f"take the log of {attempt.item.id}", note)
