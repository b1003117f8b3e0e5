"""Commands `prefect-launch item` that run an item again, or change one that waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prefect_launch.cli.item_view import find
from prefect_launch.cli.launch_options import SetOption, VariablesOption, typed_inputs, typed_variables
from prefect_launch.cli.options import ArgsArgument, ItemId, JsonOption
from prefect_launch.cli.output import print_json
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import fields_of
from prefect_launch.core.names import short_id

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
    if json:
        print_json({**fields_of(again, again.item), "rerun_of": run.id})
        return
    typer.echo(f"Added {again.name} to the queue {again.queue_name}: a rerun of {_named(run)}.")
    typer.echo(f"id:   {short_id(again.id)}")
    typer.echo(f"page: {again.url}")


def _named(run: QueuedRun) -> str:
    return f"{run.name} ({short_id(run.id)})"
