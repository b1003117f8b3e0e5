"""Commands `prefect-launch item exec` and `item shell`: a command inside the run of an item, in this terminal.

The command takes the place of this process, so its signals, its terminal and its exit code are the caller's own.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from prefect_launch.cli.item_view import find
from prefect_launch.cli.options import ItemId
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import state_of
from prefect_launch.core.names import name_and_id, short_id
from prefect_launch.core.states import StateType
from prefect_launch.errors import LaunchError, SpecError

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.runners.base import ExecPlan
    from prefect_launch.server.values import Item

_HAS_A_RUN: Final = frozenset({StateType.RUNNING, StateType.CANCELLING})
_SHELL: Final = ("sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")
#: What Python ignores, and programs expect to be as usual.
_IGNORED_HERE: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def exec_(
    item_id: ItemId,
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- CMD", help="After '--': a program and its arguments.", show_default=False),
    ] = None,
) -> None:
    """Run a command inside a running item, in its environment and folder; exit with the command's exit code."""
    if not args:
        raise SpecError(
            f"No command is given. Write it after '--': 'prefect-launch item exec {item_id} -- nvidia-smi'."
            f" 'prefect-launch item shell {item_id}' opens a shell."
        )
    _run_inside(item_id, args, typed=("exec", item_id, "--", *args))


def shell(item_id: ItemId) -> None:
    """Open a shell inside a running item: bash where there is one, else sh. In a pipe, it runs what it reads."""
    _run_inside(item_id, _SHELL, typed=("shell", item_id))


def _run_inside(given: str, command: Sequence[str], *, typed: Sequence[str]) -> NoReturn:
    api = connected()
    item = find(api, given).item
    _become(api.call(lambda session: _plan(session, item, command, typed)))


async def _plan(session: Session, item: Item, command: Sequence[str], typed: Sequence[str]) -> ExecPlan:
    from prefect_launch.agent.context import resource_of_item
    from prefect_launch.agent.item.ownership import holder_of
    from prefect_launch.policy.template import QueueConfig
    from prefect_launch.runners.registry import make_runner
    from prefect_launch.settings.agent_config import default_home

    handle = item.infrastructure_pid
    if item.state_type not in _HAS_A_RUN or not handle:
        raise SpecError(_why_no_run(item))
    holder = holder_of(await session.server.read_states(item.id))
    queue = item.work_pool_name
    if queue is None or holder is None:
        raise SpecError(f"Item {name_and_id(item)} is run by no agent, so where it runs is not known. Log in there.")
    config = QueueConfig.from_template(queue, (await session.pool(queue)).base_job_template)
    runner = make_runner(resource_of_item(item, config), default_home())
    try:
        here = socket.gethostname()
        if runner.uses_this_machine and holder.host != here:
            raise LaunchError(
                f"Item {name_and_id(item)} runs on {holder.host}, under the agent {holder.agent}, and this is {here}."
                f" Log in there (ssh {holder.host}), and type: prefect-launch item {shlex.join(typed)}"
            )
        has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        return await runner.exec_plan(handle, command, has_terminal=has_terminal)
    finally:
        await runner.aclose()


def _why_no_run(item: Item) -> str:
    what = f"Item {name_and_id(item)} is {state_of(item)}: no command can be run inside it"
    program = f"'prefect-launch item show {short_id(item.id)}'"
    if item.state_type in _HAS_A_RUN:
        return f"{what}: what it runs in is not on record yet. Try again; if it stays so, its agent's log says why."
    if item.is_terminal:
        return f"{what} any more. {program} shows how it ended; 'item logs' and 'item download' what it has left."
    return f"{what} before it runs. {program} says what it waits for."


def _become(plan: ExecPlan) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    for number in _IGNORED_HERE:
        signal.signal(number, signal.SIG_DFL)
    program = plan.argv[0]
    try:
        if plan.cwd is not None:
            os.chdir(plan.cwd)
        os.execvpe(program, plan.argv, os.environ if plan.env is None else plan.env)
    except OSError as error:
        where = f" in {str(plan.cwd)!r}" if plan.cwd is not None else ""
        raise SpecError(
            f"The program {program!r} cannot be run{where}: {error.strerror}. Give one that the run's PATH has."
        ) from None
