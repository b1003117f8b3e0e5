"""Main program of the command line: its groups of commands, imported on first use, and its error messages."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
import typer.core

from prefect_launch.cli.options import CONTEXT, examples
from prefect_launch.core.terminal import guarded_terminal
from prefect_launch.errors import ExecutionError, LaunchError, clause

PROGRAM: Final = "prefect-launch"
_DEBUG_VARIABLE: Final = "LAUNCH_DEBUG"
_INTERRUPTED: Final = 130
#: Exit code for a run that was cancelled.
CANCELLED: Final = 3
#: Exit code for what did not end in time, as `timeout` of the coreutils has it.
TIMED_OUT: Final = 124


#: Groups and commands in the order in which a new user needs them: the import path and the one-line help of each.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "queue": ("prefect_launch.cli.queue:app", "Create, show, edit, pause and delete queues."),
    "job": ("prefect_launch.cli.job:app", "Create, show, deploy and delete jobs."),
    "add": ("prefect_launch.cli.add:add_app", "Put a job on a queue: exactly one of --job, --docker-image and --uri."),
    "run": (
        "prefect_launch.cli.add:run_app",
        "Run a job here and now, without a queue; exit with 1 when it fails.",
    ),
    "item": (
        "prefect_launch.cli.item:app",
        "Show, change, cancel and rerun items, read their logs, fetch their files, open a shell in them.",
    ),
    "sweep": (
        "prefect_launch.cli.sweep:app",
        "Create, run, show, pause and stop sweeps; check sweep files.",
    ),
    "launch-sweep": (
        "prefect_launch.cli.launch_sweep:app",
        "Put a sweep on a queue, for an agent to run: 'sweep create' under the names of W&B's command.",
    ),
    "agent": ("prefect_launch.cli.agent:app", "Run an agent, serve it as a deployment, check, show and drain agents."),
    "top": (
        "prefect_launch.cli.top:app",
        "Show queues, agents, devices and active runs on one live screen, until Ctrl-C; in a pipe, print them once.",
    ),
    "notify": (
        "prefect_launch.cli.notify:app",
        "Send a message when items fail, crash, or wait for too long: makes an automation of Prefect.",
    ),
    "demo": (
        "prefect_launch.cli.demo:app",
        "Run a demo: an embedded server, a real training job, three runs on a queue or a sweep, one agent.",
    ),
}


class _LazyGroup(typer.core.TyperGroup):
    """A group whose commands are imported when they are called, as Click's documentation recommends."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {name: typer.core.TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = load_command(args[0])
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """Import a group or command of the program."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    command.name = name
    return command


app = typer.Typer(
    name=PROGRAM,
    cls=_LazyGroup,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog=examples(
        "prefect-launch queue create gpu --resource local-process",
        'prefect-launch job create code ./digits -E "python train.py"',
        "prefect-launch add -j digits -q gpu --set epochs=3",
        "prefect-launch agent start -q gpu",
    ),
)


def _version(is_asked: bool) -> None:
    if is_asked:
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

    Prefect's settings name the server: set PREFECT_API_URL, or choose a profile with 'prefect profile use'.
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
        The exit code: 0; 1 for a refusal or a failure; 3 when a run was cancelled; 124 when the time of `item wait` was
        up; 130 after Ctrl-C; 143 when SIGTERM ended an agent.
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
        # The reader closed the pipe (`… | head`); without this, Python reports the error again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the one place where every error arrives
        if isinstance(error.__cause__, KeyboardInterrupt):  # pydantic wraps one that comes while it writes a value
            return _INTERRUPTED
        if os.environ.get(_DEBUG_VARIABLE, "").lower() in ("1", "true", "yes"):
            traceback.print_exception(error)
        _print_error(message_of(error))
        return CANCELLED if isinstance(error, ExecutionError) and error.cancelled else 1


def message_of(error: Exception) -> str:
    """Return the message of an error for a user, in one line."""
    if isinstance(error, typer.Abort):
        return "Stopped; nothing was changed."
    # Typer uses click or a copy of its own, depending on its version: recognise a usage error by its methods.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help'." if context is not None else ""
        return _one_line(f"{clause(_with_value(format_message(), error.__cause__))}.{hint}")
    if isinstance(error, LaunchError):
        return _one_line(str(error))
    where = f" Run it again with {_DEBUG_VARIABLE}=1 to see where."
    return _one_line(f"Unexpected {type(error).__name__}: {clause(error)}.{where}")


def _with_value(message: str, cause: BaseException | None) -> str:
    """Return a usage error's message with the value seen, where it has pydantic's words, which leave the value out."""
    errors = getattr(cause, "errors", None)
    return message if errors is None else message.replace("Input should", f"{errors()[0]['input']!r} should", 1)


def _one_line(text: str) -> str:
    """Return the first paragraph as one line; an `ExecutionError` has the last lines of the run's log below it."""
    first, *rest = text.strip().splitlines() or [""]
    return first if not rest or rest[0].startswith("  ") else " ".join([first, *(line.strip() for line in rest)])


def _print_error(message: str) -> None:
    typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(message, err=True)
