"""The program: its groups of commands, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
import typer.core

from prefect_launch.cli import add, agent, demo, item, job, queue
from prefect_launch.cli.style import CONTEXT, examples
from prefect_launch.core.terminal import guarded_terminal
from prefect_launch.errors import LaunchError

PROGRAM: Final = "prefect-launch"
_DEBUG_VARIABLE: Final = "LAUNCH_DEBUG"
_INTERRUPTED: Final = 130


class _InOrder(typer.core.TyperGroup):
    """The groups and commands in the order in which a new user needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return ["queue", "job", "add", "run", "item", "agent", "demo"]


app = typer.Typer(
    name=PROGRAM,
    cls=_InOrder,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=examples(
        "prefect-launch queue create gpu --resource local-process",
        'prefect-launch job create code ./digits -E "python train.py"',
        "prefect-launch add -j digits -q gpu --set epochs=3",
        "prefect-launch agent start -q gpu",
    ),
)
app.add_typer(queue.app, name="queue")
app.add_typer(job.app, name="job")
app.command("add", epilog=add.ADD_EXAMPLES)(add.add)
app.command("run", epilog=add.RUN_EXAMPLES)(add.run)
app.add_typer(item.app, name="item")
app.add_typer(agent.app, name="agent")
app.command("demo")(demo.demo)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", metavar="", envvar=_DEBUG_VARIABLE, help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Queue any job (a git commit, a folder of code, a container image) on a Prefect server; agents run it.

    The server is the one of Prefect's settings: set PREFECT_API_URL, or choose a profile with 'prefect profile use'.
    """
    if debug:
        os.environ[_DEBUG_VARIABLE] = "1"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and end the process.

    Args:
        arguments: of the command line, without the program's name; by default this process's.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the program.

    Returns:
        Its exit code: 0, 1 for whatever was refused or failed, 130 after Ctrl-C, 143 when SIGTERM ended an agent.
    """
    with guarded_terminal():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Who reads has seen enough (`… | head`); Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the one place that every error comes to
        if os.environ.get(_DEBUG_VARIABLE, "").lower() in ("1", "true", "yes"):
            traceback.print_exception(error)
        _complain(message_of(error))
        return 1


def message_of(error: Exception) -> str:
    """Return what a user is told of an error, in one line."""
    if isinstance(error, typer.Abort):
        return "Stopped; nothing was changed."
    # Typer uses click, or a copy of its own, as its version has it: a wrong use is known by its form.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help'." if context is not None else ""
        return _one_line(f"{format_message()}{hint}")
    if isinstance(error, LaunchError):
        return _one_line(str(error))
    where = f" Run it again with {_DEBUG_VARIABLE}=1 to see where."
    return _one_line(f"Unexpected {type(error).__name__}: {error}.{where}")


def _one_line(text: str) -> str:
    """Return the first paragraph's line: the last lines of a run's log stand below it in an `ExecutionError`."""
    first, *rest = text.strip().splitlines() or [""]
    return first if not rest or rest[0].startswith("  ") else " ".join([first, *(line.strip() for line in rest)])


def _complain(message: str) -> None:
    typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(message, err=True)
