"""Scheduler program of a sweep that is an item of a queue: `python -m prefect_launch.sweeps ID`.

An agent runs it. It writes no end of the sweep to the server, since the agent that holds the item does that: how the
sweep ended stands in a file among its outputs. SIGTERM, SIGINT and SIGHUP mean "leave": the trials continue, and the
next scheduler continues the sweep. Only when somebody has cancelled the sweep, its trials are stopped first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.core.early_signals import ENDING_SIGNALS
from prefect_launch.core.racing import racing
from prefect_launch.core.states import StateType
from prefect_launch.core.terminal import printable
from prefect_launch.errors import AgentConfigError, LaunchError, ServerFailedError, ServerUnavailableError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.server.values import Item
from prefect_launch.sweeps.runner import SweepRunner
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.sweep_run import config_of, read_sweep

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session

#: Exit code of a scheduler whose sweep another one continues (EX_TEMPFAIL).
LEFT: Final = 75
_END_FILE: Final = "sweep-end.json"
_RECONNECT_SECONDS: Final = 5.0
#: Labels of a sweep: whose trials are those that name no entity and project of their own.
ENTITY_LABEL: Final = "prefect-launch.entity"
PROJECT_LABEL: Final = "prefect-launch.project"


class SchedulerEnd(BaseModel):
    """How a scheduler has ended.

    Attributes:
        outcome: of its sweep; `None`: the sweep has not ended, and this scheduler cannot continue it here.
        message: why, for people.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Outcome | None
    message: str


def write_end(folder: Path, end: SchedulerEnd) -> None:
    """Write how a scheduler has ended, whole or not at all.

    Args:
        folder: of its outputs.
        end: how.
    """
    part = folder / f".{_END_FILE}.part"
    part.write_text(end.model_dump_json(), encoding="utf-8")
    part.replace(folder / _END_FILE)


def read_end(folder: Path) -> SchedulerEnd | None:
    """Read how a scheduler has ended; `None` when it was killed, or has left.

    Args:
        folder: of its outputs.
    """
    try:
        return SchedulerEnd.model_validate_json((folder / _END_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


async def run_scheduler(
    api: Api, sweep_id: UUID, leaving: asyncio.Event, report: Callable[[str], None]
) -> SchedulerEnd | None:
    """Run a sweep's scheduler until the sweep has ended, or this scheduler is to leave.

    Args:
        api: the Prefect server.
        sweep_id: of the sweep.
        leaving: is set when it is to leave; a sweep that was cancelled is brought to its end first.
        report: is called with each line about what happens.

    Returns:
        How it ended; `None` when it has left.
    """
    while True:
        try:
            async with api.open() as session:
                sweep = await read_sweep(session, sweep_id)
                return await _run(_api_of(api, sweep), session, sweep, leaving, report)
        except (ServerUnavailableError, ServerFailedError) as error:
            if leaving.is_set():
                return None
            report(f"The sweep waits for the Prefect server: {error}")
            with anyio.move_on_after(_RECONNECT_SECONDS):
                await leaving.wait()
        except AgentConfigError as error:  # Another agent's machine may have what is missing here.
            return SchedulerEnd(outcome=None, message=str(error))
        except LaunchError as error:
            return SchedulerEnd(outcome=Outcome.FAILED, message=str(error))


def _api_of(api: Api, sweep: Item) -> Api:
    """Return the server for one who asks as the one who has queued the sweep."""
    named = {"entity": sweep.labels.get(ENTITY_LABEL), "project": sweep.labels.get(PROJECT_LABEL)}
    return api.model_copy(update={name: str(value) for name, value in named.items() if value})


async def _run(
    api: Api, session: Session, sweep: Item, leaving: asyncio.Event, report: Callable[[str], None]
) -> SchedulerEnd | None:
    runner = SweepRunner(api, session, sweep.id, config_of(sweep), report=report)
    async with racing(runner.run(), leaving) as work:
        if not work.done():
            if not await _is_cancelled(session, sweep.id):
                report("This scheduler leaves; the trials continue.")
                return None
            report("The sweep was cancelled: its trials are stopped.")
            runner.stop()
        end = await work
        # A sweep that is paused goes back into its queue when it is resumed.
        return None if end.outcome is Outcome.PAUSED else _end_of(end)


async def _is_cancelled(session: Session, sweep_id: UUID) -> bool:
    sweep = await session.server.read_item(sweep_id)
    return sweep is not None and sweep.state_type in (StateType.CANCELLING, StateType.CANCELLED)


def _end_of(end: EndSweep) -> SchedulerEnd:
    return SchedulerEnd(outcome=end.outcome, message=end.message)


def main(arguments: Sequence[str], early: Collection[signal.Signals] = ()) -> int:
    """Run the scheduler of the sweep that the command line names.

    Args:
        arguments: of the command line.
        early: signals that came while the program was loaded; it is to see one that comes later, too.

    Returns:
        The process's exit code.
    """
    from prefect_launch.client.api import default_api

    try:
        (sweep_id,) = (UUID(one) for one in arguments)
    except ValueError:
        sys.stderr.write(
            f"Give the id of one sweep, not {list(arguments)!r}. An agent does; people use 'sweep create'.\n"
        )
        return 2
    end = asyncio.run(_until_left(default_api(), sweep_id, early))
    if end is None:
        return LEFT
    folder = os.environ.get(OUTPUT_DIR_VARIABLE)
    if folder:
        write_end(Path(folder), end)
    _print(end.message)
    return LEFT if end.outcome is None else 0


async def _until_left(api: Api, sweep_id: UUID, early: Collection[signal.Signals]) -> SchedulerEnd | None:
    loop, leaving = asyncio.get_running_loop(), asyncio.Event()
    for number in ENDING_SIGNALS:
        loop.add_signal_handler(number, leaving.set)
    if early:
        leaving.set()
    return await run_scheduler(api, sweep_id, leaving, _print)


def _print(line: str) -> None:
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()
