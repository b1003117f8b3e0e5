"""The program: its groups of commands, each imported when it is asked for, and what becomes of an error."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
import typer.core

from prefect_launch.cli.style import CONTEXT, examples
from prefect_launch.core.terminal import guarded_terminal
from prefect_launch.errors import LaunchError, clause

PROGRAM: Final = "prefect-launch"
_DEBUG_VARIABLE: Final = "LAUNCH_DEBUG"
_INTERRUPTED: Final = 130


#: The groups and commands, in the order in which a new user needs them, and where each is.
_COMMANDS: Final[Mapping[str, str]] = {
    "queue": "prefect_launch.cli.queue:app",
    "job": "prefect_launch.cli.job:app",
    "add": "prefect_launch.cli.add:add_app",
    "run": "prefect_launch.cli.add:run_app",
    "item": "prefect_launch.cli.item:app",
    "agent": "prefect_launch.cli.agent:app",
    "demo": "prefect_launch.cli.demo:app",
}


class _LazyGroup(typer.core.TyperGroup):
    """A group whose commands are imported by name when they are asked for, as Click's documentation recommends."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # For an unknown name all are loaded: Typer looks for the nearest one among them.
        for name in [cmd_name] if cmd_name in _COMMANDS else _COMMANDS:
            if name not in self.commands:
                self.add_command(_load(name), name)
        return super().get_command(ctx, cmd_name)


def _load(name: str) -> Any:
    module, _, attribute = _COMMANDS[name].partition(":")
    command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    command.name = name
    return command


app = typer.Typer(
    name=PROGRAM,
    cls=_LazyGroup,
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
    return _one_line(f"Unexpected {type(error).__name__}: {clause(error)}.{where}")


def _one_line(text: str) -> str:
    """Return the first paragraph's line: the last lines of a run's log stand below it in an `ExecutionError`."""
    first, *rest = text.strip().splitlines() or [""]
    return first if not rest or rest[0].startswith("  ") else " ".join([first, *(line.strip() for line in rest)])


def _complain(message: str) -> None:
    typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(message, err=True)
