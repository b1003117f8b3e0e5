"""Ending an item that the agent does not run, or fails over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING
from uuid import UUID

import anyio

from prefect_launch.agent.item.failure_report import Facts, certify, show_certificate, without_home
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.tracker import JobTracker
from prefect_launch.agent.item.transitions import log, move, until_server_is_back
from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import Phase
from prefect_launch.server.protocol import Server

if TYPE_CHECKING:
    from prefect_launch.agent.item.context import Workshop
    from prefect_launch.queues.session import Session


async def fail_item(
    session: Session,
    item_id: UUID,
    message: str,
    phase: Phase,
    files: Sequence[str | Path] | None = None,
    facts: Facts | None = None,
) -> None:
    """End an item as failed; one that is asked to stop becomes cancelled, one that has ended stays as it is.

    Args:
        session: an open connection.
        item_id: the item.
        message: why.
        phase: where it was.
        files: files that are kept with the item's outputs.
        facts: what is known about it, for its certificate.
    """
    item = await session.server.read_item(item_id)
    if item is None or item.state_type is None or item.state_type in TERMINAL:
        return
    if files:
        extra = {Path(file).name: Path(file) for file in files}
        attempt = item.run_count + (item.state_type is StateType.PENDING)
        await session.jobs.put_outputs(str(item_id), attempt, Path(files[0]).parent / "outputs", extra=extra)
    end = ItemState.CANCELLED if item.state_type is StateType.CANCELLING else ItemState.FAILED
    outcome = Outcome(state=end, message=f"[{phase.value}] {message}")
    await show_certificate(session.server, item, certify(item, outcome, facts or Facts(error=LaunchError(message))))
    await move(session.server, item_id, item.state_type, end, outcome.message)


async def fail_over(shop: Workshop, item_id: str, tracker: JobTracker | None, exception: BaseException) -> None:
    """Tell in the log, in the item's `error.log` and in its state that the agent itself failed over it.

    None of them shows a secret of the item's attempt.
    """
    masked = tracker.masked if tracker is not None else str
    text = masked(f"{type(exception).__name__}: {exception}")
    log.error("%s agent-failed %s\n%s", item_id, text, masked("".join(format_exception(exception)).rstrip()))
    files = []
    if tracker is not None and tracker.file_saver is not None:
        files = [tracker.file_saver / "error.log"]
        await anyio.Path(files[0]).write_text(f"{text}\n")
    facts = (
        Facts(error=exception) if tracker is None else Facts(queue=tracker.queue, plan=tracker.plan, error=exception)
    )
    told = f"The agent failed over it: {without_home(text, shop.config.home)}"
    try:
        await until_server_is_back(
            f"end {item_id}",
            lambda: fail_item(shop.session, UUID(item_id), told, Phase.AGENT, files, facts),
        )
    except Exception:  # noqa: BLE001 - it must not keep the item's slot for ever
        # The item stays in work; when this agent starts anew, or is lost, it is settled.
        log.exception("%s not-ended", item_id)


async def check_sweep(server: Server, sweep: object) -> None:
    """Refuse an item whose sweep has ended.

    Args:
        server: the door.
        sweep: the item's sweep id. A sweep is a flow run; an id that is none is only a label, and refuses nothing.

    Raises:
        LaunchError: when the sweep is in a terminal state.
    """
    try:
        sweep_id = UUID(str(sweep))
    except ValueError:
        return
    run = await server.read_item(sweep_id)
    if run is not None and run.is_terminal:
        raise LaunchError(f"The sweep {sweep_id} of this item has ended already ({run.state_name}); it is not run.")
