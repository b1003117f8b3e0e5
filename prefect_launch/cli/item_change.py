"""Commands `prefect-launch item` that run an item again, or change one that waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_launch.cli.item_list import text_of
from prefect_launch.cli.item_logs import print_until_end
from prefect_launch.cli.item_view import find
from prefect_launch.cli.launch_options import SetOption, VariablesOption, WaitOption, typed_inputs, typed_variables
from prefect_launch.cli.options import ArgsArgument, ItemId, JsonOption
from prefect_launch.cli.output import print_json
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import fields_of
from prefect_launch.core.names import name_and_id, short_id
from prefect_launch.core.nested import flat
from prefect_launch.errors import SpecError

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun

PriorityOption = Annotated[
    str | None,
    typer.Option("-P", "--priority", metavar="PRIORITY", help="critical, high, medium or low. Default: the item's."),
]


def rerun(
    item_id: ItemId,
    inputs: SetOption = None,
    variables: VariablesOption = None,
    queue: Annotated[
        str | None, typer.Option("-q", "--queue", metavar="QUEUE", help="Another queue. Default: the item's.")
    ] = None,
    priority: PriorityOption = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Display name of the new run.")] = None,
    wait: WaitOption = False,
    args: ArgsArgument = None,
    json: JsonOption = False,
) -> None:
    """Run an item again as a new item, of the same job version, image digest and variables, with changes."""
    api = connected()
    run = find(api, item_id)
    from prefect_launch.client.rerun import spec_again

    job = spec_again(run.item).job if inputs else None
    again = run.rerun(
        typed_inputs(api, job, inputs or ()),
        args=args or None,
        template_variables=typed_variables(api, queue or run.queue_name, variables) if variables else None,
        queue_name=queue,
        priority=priority,
        name=name,
    )
    if not json:
        typer.echo(f"Added {again.name} to the queue {again.queue_name}: a rerun of {name_and_id(run)}.")
        typer.echo(f"id:   {short_id(again.id)}")
        typer.echo(f"page: {again.url}")
    if wait:
        print_until_end(again, log_to_error=json)
    if json:
        print_json({**fields_of(again, again.item), "rerun_of": run.id})


def save_job(
    item_id: ItemId,
    name: Annotated[
        str | None, typer.Option("-n", "--name", metavar="NAME", help="The job's name. Default: that of its own job.")
    ] = None,
    aliases: Annotated[
        list[str] | None,
        typer.Option("-a", "--alias", metavar="ALIAS", help="Another name for this version. Repeat for more."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a job of an ended item: its code or image, its command, and its inputs as the defaults."""
    api = connected()
    run = find(api, item_id)
    job = run.save_job(name, aliases=aliases or ())
    if json:
        from prefect_launch.cli.job import job_fields

        print_json(job_fields(job, job.aliases))
        return
    typer.echo(f"The job {job.reference} is what {name_and_id(run)} ran; its aliases: {', '.join(job.aliases)}.")


def edit(item_id: ItemId, inputs: SetOption = None, json: JsonOption = False) -> None:
    """Change inputs of an item while it waits; it keeps its place in the queue."""
    from prefect_launch.client.item_fields import request_of
    from prefect_launch.spec.item_parameters import JOB_LABEL

    if not inputs:
        raise SpecError("Nothing to change: give --set INPUT=VALUE.")
    api = connected()
    run = find(api, item_id)
    job = run.item.labels.get(JOB_LABEL)
    run.edit(typed_inputs(api, job, inputs))
    item = run.item
    if json:
        print_json({**fields_of(run, item), "inputs": request_of(item)["inputs"]})
        return
    shown = ", ".join(f"{name}={text_of(value)}" for name, value in flat(request_of(item)["inputs"]).items())
    typer.echo(f"The inputs of {name_and_id(run)} are now: {shown}")


def set_priority(
    item_id: ItemId,
    priority: Annotated[str, typer.Argument(metavar="PRIORITY", help="critical, high, medium or low; or 1 to 4.")],
    json: JsonOption = False,
) -> None:
    """Give an item another priority while it waits."""
    run = find(connected(), item_id)
    _moved(run, lambda: run.set_priority(priority), json)


def move(
    item_id: ItemId,
    queue: Annotated[str, typer.Option("-q", "--queue", metavar="QUEUE", help="The other queue.")],
    priority: PriorityOption = None,
    json: JsonOption = False,
) -> None:
    """Put an item on another queue while it waits."""
    run = find(connected(), item_id)
    _moved(run, lambda: run.move(queue, priority=priority), json)


def _moved(run: QueuedRun, move: Callable[[], None], as_json: bool) -> None:
    before = run.id
    move()
    if as_json:
        print_json({**fields_of(run, run.item), "moved_from": before})
        return
    where = f"on the queue {run.queue_name} with priority {run.priority.name.lower()}"
    typer.echo(f"The item {run.name} waits {where}. Its new id is {short_id(run.id)}; the old one leads to it.")
    typer.echo(f"page: {run.url}")
