"""Commands `prefect-launch add` and `prefect-launch run`: the same options, on a queue or here and now."""

from __future__ import annotations

import asyncio
import hashlib
import json as json_module
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prefect_launch.cli.item_logs import LogTail, print_until_end, write_record
from prefect_launch.cli.item_view import start_in_words
from prefect_launch.cli.launch_options import LaunchOptions, WaitOption, parameter_of
from prefect_launch.cli.options import JsonOption, PassesArgs, examples, flattened, read_mappings, single
from prefect_launch.cli.output import Column, lasted, print_details, print_json, print_table
from prefect_launch.cli.process import connected, ending_in_order
from prefect_launch.client.item_fields import duration_of, fields_of, state_of
from prefect_launch.core.names import name_and_id, short_id

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.explain import Explanation
    from prefect_launch.client.queued_run import QueuedRun


add_app = single()
run_app = single()

_ADD_EXAMPLES = examples(
    "prefect-launch add -j digits -q gpu --set epochs=3 --set learning_rate=0.01 -P high",
    "prefect-launch add -d team/train:1.2 -q box -v memory=4g --wait",
    'prefect-launch add -u https://github.com/team/train -g v1.2 -E "python train.py" -q gpu -- --lr 0.5',
    "prefect-launch add -j digits -q gpu --build --repository registry.example:5000/team/digits",
    "prefect-launch add -q gpu -c launch-config.yaml",
    "prefect-launch add -j digits -q gpu --explain",
    "prefect-launch add -j digits -q gpu --many runs.jsonl",
)
_RUN_EXAMPLES = examples(
    "prefect-launch run -j digits --set epochs=3",
    'prefect-launch run -d alpine -E \'echo hello\' -R \'{"local-container": {"memory": "1g"}}\'',
)


@add_app.command("add", cls=PassesArgs, epilog=_ADD_EXAMPLES)
@flattened()
def add(
    options: LaunchOptions,
    wait: WaitOption = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", metavar="", help="Dry run: queue nothing; show what would run, where and when."),
    ] = False,
    many: Annotated[
        Path | None,
        typer.Option(
            "--many",
            metavar="FILE",
            help="Add an item for each launch config of a file, a list or JSON lines (.jsonl), over the other options."
            " The same command again adds what is missing, and nothing twice.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put a job on a queue: exactly one of --job, --docker-image and --uri."""
    if many is not None:
        refused = [flag for flag, given in _NOT_OF_MANY.items() if given(options, wait, explain)]
        if refused:
            from prefect_launch.errors import SpecError

            raise SpecError(f"--many adds a list of items, and {refused[0]} is for one. Leave one of them out.")
        add_many_to_queue(connected(), options, many, as_json=json)
        return
    if explain:
        explain_add(connected(), options, as_json=json)
        return
    add_to_queue(connected(), options, wait=wait, as_json=json)


@run_app.command("run", cls=PassesArgs, epilog=_RUN_EXAMPLES)
@flattened("queue", "build", "after", *map(parameter_of, ("priority", "docker.pin", "resumable")))
def run(
    options: LaunchOptions,
    returns_at_once: Annotated[
        bool,
        typer.Option("--async", metavar="", help="Return at once: put it on the queue 'default', for an agent to run."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", metavar="", help="Print Prefect's own log lines too.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a job here and now, without a queue; exit with 1 when it fails."""
    if returns_at_once:
        add_to_queue(connected(verbose=verbose), options, wait=False, as_json=json)
        typer.echo("An agent runs it, such as one from: prefect-launch agent start -q default", err=True)
        return
    run_here(connected(verbose=verbose), options, as_json=json)


_CHECK_SECONDS: Final = 0.5
#: Options of one item alone.
_NOT_OF_MANY: Final[dict[str, Callable[[LaunchOptions, bool, bool], bool]]] = {
    "--wait": lambda options, wait, explain: wait,
    "--explain": lambda options, wait, explain: explain,
    "--build": lambda options, wait, explain: options.build,
}


def add_to_queue(api: Api, options: LaunchOptions, *, wait: bool, as_json: bool) -> None:
    """Queue an item, and print its id and page.

    Raises:
        ExecutionError: when `wait` is set and the run failed.
        LaunchError: as `launch_add` does.
    """
    from prefect_launch.client.launch_add import launch_add

    arguments = _arguments(api, options)
    with build_log(options.build):
        run = launch_add(**arguments)
    if not as_json:
        typer.echo(f"Added {run.name} to the queue {run.queue_name}, with priority {run.priority.name.lower()}.")
        typer.echo(f"id:   {short_id(run.id)}")
        typer.echo(f"page: {run.url}")
    if wait:
        print_until_end(run, log_to_error=as_json)
    if as_json:
        print_json(fields_of(run, run.item))


def add_many_to_queue(api: Api, options: LaunchOptions, path: Path, *, as_json: bool) -> None:
    """Queue an item for each launch config of a file, and say how many.

    Their run ids begin with `--run-id`, or with the digest of all that is asked for: the same command completes
    what was broken off.

    Raises:
        LaunchError: as `launch_add_many` does.
    """
    from prefect_launch.client.launch_add import launch_add_many
    from prefect_launch.core.units import counted
    from prefect_launch.inputs.config_files import deep_merge
    from prefect_launch.queues.pool import DEFAULT_QUEUE

    arguments = _arguments(api, options)
    base, queue = dict(arguments["config"]), options.queue or DEFAULT_QUEUE
    name = base.pop("run_id", None)
    if arguments["template_variables"]:
        base = deep_merge(base, {"template_variables": arguments["template_variables"]})
    specs = [deep_merge(base, config) for config in read_mappings(path, "--many")]
    if name is None:
        name = "many-" + hashlib.sha256(json_module.dumps([queue, specs], default=str).encode()).hexdigest()[:8]
    there: list[int] = []
    try:
        with progress_bar() as tell:

            def note(made: int, of: int) -> None:
                there.append(made)
                tell(made, of)

            runs = launch_add_many(specs, queue, run_id=name, progress=note, api=api)
    except KeyboardInterrupt:
        made, of = there[-1] if there else 0, counted(len(specs), "item")
        many = f"At least {made:,} of {of} are" if made else f"Some of the {of} may be"
        typer.echo(f"Stopped. {many} on the queue {queue}. The same command adds the rest.", err=True)
        raise
    before = there[0] if there else 0
    if as_json:
        print_json({"added": len(runs) - before, "there": before, "run_id": name, "ids": [run.id for run in runs]})
        return
    if not specs:
        typer.echo(f"Nothing to add: the list in {path} is empty.")
        return
    typer.echo(f"Added {counted(len(runs) - before, 'item')} to the queue {queue}, with run ids {name}-1, {name}-2, ….")
    if before:
        typer.echo(f"{before} were there already. To add them once more, give another --run-id.")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Give what shows in a terminal, on standard error, how much of a work is done."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def explain_add(api: Api, options: LaunchOptions, *, as_json: bool) -> None:
    """Print what adding the item would do; queue nothing.

    Raises:
        LaunchError: as `launch_add` does.
    """
    from prefect_launch.client.explain import explain_launch

    explanation = explain_launch(**_arguments(api, options))
    if as_json:
        print_json(explanation.model_dump(mode="json"))
    else:
        print_explanation(explanation)


def _arguments(api: Api, options: LaunchOptions) -> dict[str, Any]:
    """Return the options as arguments of `launch_add`."""
    from prefect_launch.queues.pool import DEFAULT_QUEUE
    from prefect_launch.spec.launch_spec import misplaced_option

    config = options.launch_config(api)
    if misplaced_option(config.get("resource_args")) is not None:  # The refusal shows where it belongs.
        config = {"resource": api.run_queue(options.queue or DEFAULT_QUEUE).type, **config}
    return {
        "config": config,
        "queue_name": options.queue,
        "template_variables": options.template_variables(api, options.queue or DEFAULT_QUEUE),
        "build": options.build,
    }


def run_here(api: Api, options: LaunchOptions, *, as_json: bool) -> None:
    """Run a job in this process, and print its log as it comes.

    Raises:
        ExecutionError: when it failed.
        LaunchError: as `launch` does.
    """
    from prefect_launch.errors import SpecError
    from prefect_launch.spec.launch_spec import construct_spec

    if options.variables:
        raise SpecError(
            f"The template variable {options.variables[0]!r} is one of a queue, and this runs the job here and now."
            " Leave it out, or use 'prefect-launch add -q QUEUE'; --async uses the queue 'default'."
        )
    config = options.launch_config(api)
    construct_spec(config)  # A refused spec makes no flow run.
    run = asyncio.run(_launch(api, config, log_to_error=as_json))
    item = run.item
    if as_json:
        print_json(fields_of(run, item))
        return
    typer.echo(f"{name_and_id(run)} {state_of(item)} after {lasted(duration_of(item))}.", err=True)
    typer.echo(f"page: {run.url}", err=True)


async def _launch(api: Api, config: dict[str, Any], *, log_to_error: bool) -> QueuedRun:
    """Launch the job and print its log meanwhile; a hook of the flow gives the id of its run."""
    from prefect_launch.direct.launch import launch_flow_named

    begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def set_run_id(flow: Any, flow_run: Any, state: Any) -> None:
        if not begun.done():
            begun.set_result(str(flow_run.id))

    flow: Any = launch_flow_named(config.get("name")).with_options(on_running=[set_run_id])
    work: asyncio.Task[Any] = asyncio.ensure_future(flow(api, config=config))
    await asyncio.wait({work, begun}, return_when=asyncio.FIRST_COMPLETED)
    if not begun.done():
        work.result()  # raises the error that kept the flow from starting
    run = await asyncio.to_thread(api.queued_run, await begun)
    tail = LogTail(run, partial(write_record, err=log_to_error), job_only=True)
    try:
        while not work.done():
            await asyncio.to_thread(tail.write_new)
            await asyncio.wait({work}, timeout=_CHECK_SECONDS)
        await asyncio.to_thread(tail.write_new)
        work.result()
    except asyncio.CancelledError:
        work.cancel()
        await asyncio.wait({work})
        raise
    return run


# Build log on standard error: a build takes minutes, and silence looks like a fault.

_LOGGER: Final = "prefect.launch.build"


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)


@contextmanager
def build_log(is_wanted: bool) -> Iterator[None]:
    """Print the log of builds inside the block, if there is one."""
    if not is_wanted:
        yield
        return
    logger, handler = logging.getLogger(_LOGGER), _Echo()
    was = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with ending_in_order():
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = was


# Output of `add --explain`.

_COLUMNS = (
    Column("WHAT"),
    Column("ASKED FOR", gives_way=True),
    Column("BECOMES", gives_way=True),
    Column("BY", wraps=True),
)


def print_explanation(explanation: Explanation) -> None:
    """Print what would be queued, what the queue changes, and what an agent would create."""
    waiting = explanation.waiting
    typer.echo("A dry run: nothing is queued.")
    print_details(
        [
            ("name", explanation.name),
            ("there", explanation.there and f"{explanation.there}: same run id and spec; adding it returns that item"),
            ("queue", f"{explanation.queue} ({explanation.resource})"),
            ("priority", {"default": "medium"}.get(explanation.priority, explanation.priority)),
            ("place", waiting.position if waiting else "1st: the queue is created on first use"),
            ("why", waiting and waiting.reason),
            ("starts", start_in_words(waiting)),
            (
                "built here",
                explanation.built_of and f"the code of {explanation.built_of}, pushed to {explanation.pushed_to}",
            ),
            ("job", explanation.job),
            ("image", "built at the start, from the job's code" if explanation.builds else explanation.image),
            (
                "digest",
                explanation.digest
                or ("the one of the push" if explanation.built_of else explanation.image and "resolved at start"),
            ),
            ("options", explanation.options),
            ("limits", ", ".join(f"{name} {most}" for name, most in explanation.limits.items())),
            ("fixed", ", ".join(explanation.fixed)),
            ("note", explanation.note),
        ]
    )
    rows = [(change.what, _text(change.asked), _text(change.becomes), change.by) for change in explanation.changes]
    if rows:
        typer.echo("\nDifferent from what you asked for:")
        print_table(_COLUMNS, rows, empty="")
    typer.echo("\nWhat the agent creates (of variables, the names):")
    print_details([(name, _shown(name, value)) for name, value in explanation.creates.items()])


def _shown(name: str, value: object) -> object:
    """Return a command as shell text, and the names of variables in one line."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        return value
    return ", ".join(value) if name.lower() == "env" else shlex.join(value)


def _text(value: object) -> str:
    return "" if value is None else str(value)
