"""Commands `prefect-launch queue`: create, show, pause and delete queues."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_launch.cli.options import EntityOption, JsonOption, examples, group, read_mapping
from prefect_launch.cli.output import Column, print_details, print_json, print_table
from prefect_launch.cli.process import connected

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.run_queue import RunQueue
    from prefect_launch.queues.agent_status import QueueActivity

app = group("Create, show, pause and delete queues.")

QueueName = Annotated[str, typer.Argument(metavar="NAME", help="The queue's name.")]
#: A queue's `pin` in words.
_PINS = {
    None: None,
    True: "pinned: what their tag means when an item is added",
    False: "what their tag means at the start",
}
#: The columns of a list of queues.
COLUMNS = (
    Column("QUEUE", gives_way=True),
    Column("RESOURCE", gives_way=True),
    Column("STATE"),
    Column("WAITING", right=True),
    Column("ACTIVE", right=True),
    Column("LIMIT", right=True),
    Column("AGENTS", right=True),
)


@app.command(
    epilog=examples(
        "prefect-launch queue create gpu --resource local-process --concurrency 2",
        'prefect-launch queue create box -r local-container --config \'{"shm-size": "{{shm}}"}\''
        ' --variables \'{"shm": {"type": "string", "default": "2g"}}\'',
    )
)
def create(
    name: QueueName,
    resource: Annotated[
        str,
        typer.Option(
            "-r", "--resource", metavar="RESOURCE", help="Resource of its items: local-process, local-container, …"
        ),
    ] = "local-process",
    config: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--config",
            metavar="CONFIG",
            help="The resource's options for every item: JSON, YAML, or a file.",
        ),
    ] = None,
    variables: Annotated[
        str | None,
        typer.Option(
            "--variables",
            metavar="VARIABLES",
            help="Template variables, {{name}} in the config: JSON, YAML, or a file.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", metavar="N", help="Items that may run at a time. Default: no limit."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="OPTION",
            help="An option that submitters may also set, even one that the config sets (env.NAME: one variable)."
            " Repeat for more.",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="OPTION=MAX",
            help="The most that an item may ask for: memory=16g, gpus=2, timeout=12h, …",
        ),
    ] = None,
    allow_secret: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-secret",
            metavar="NAME",
            help="A Secret block that submitters may name in env, and so read. The queue's config may name any.",
        ),
    ] = None,
    priorities: Annotated[
        bool,
        typer.Option("--priorities/--no-priorities", metavar="", help="Four priorities, or first come, first served."),
    ] = True,
    pin: Annotated[
        bool | None,
        typer.Option(
            "--pin/--no-pin",
            metavar="",
            help="Pin an image to the digest that its tag has when the item is added, or use the tag when it starts."
            " Default: pin it if the registry answers.",
        ),
    ] = None,
    fail_impossible_after: Annotated[
        str | None,
        typer.Option(
            "--fail-impossible-after",
            metavar="TIME",
            help="After this time (1h), fail an item that asks for more than any online agent's machine has."
            " Default: it waits.",
        ),
    ] = None,
    entity: EntityOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", metavar="", help="Update the queue of that name if it exists.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Create a queue."""
    from prefect_launch.queues.options import QueueOptions

    given = None if config is None else read_mapping(config, "--config")
    if limit:
        given = {**(given or {}), "limits": {**((given or {}).get("limits") or {}), **_limits(limit)}}
    options = QueueOptions(
        name,
        resource,
        entity=entity,
        prioritization_mode="V0" if priorities else "DISABLED",
        config=given if pin is None else {**(given or {}), "docker": {"pin": pin}},
        template_variables=None if variables is None else read_mapping(variables, "--variables"),
        concurrency=concurrency,
        submitter_options=allow or (),
        submitter_secrets=allow_secret or (),
        fail_impossible_after=fail_impossible_after,
    )
    api = connected()
    queue = api.write_run_queue(options, replace=replace)
    if json:
        print_json(_summary(queue, _activity(api, queue)))
        return
    typer.echo(f"The queue {name} is ready, for {resource}: {queue.url}")
    if queue.pin is not None:
        typer.echo(f"Its items run the image that their tag means when they {'are added' if queue.pin else 'start'}.")
    typer.echo(f"Run its items on this machine with: prefect-launch agent start -q {name}")


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the queues, with their waiting and active items."""
    api = connected()
    queues = api.run_queues()
    activities = api.queue_activity(queue.name for queue in queues)
    pairs = list(zip(queues, activities, strict=True))
    if json:
        print_json([_summary(queue, activity) for queue, activity in pairs])
        return
    rows = [row_of(queue, activity) for queue, activity in pairs]
    print_table(COLUMNS, rows, empty="There is no queue yet. Create one with: prefect-launch queue create NAME")


def row_of(queue: RunQueue, activity: QueueActivity) -> tuple[object, ...]:
    """Return a queue as a row of a list."""
    return (
        queue.name,
        queue.type,
        "paused" if queue.is_paused else "open",
        activity.waiting,
        activity.active,
        queue.concurrency_limit or "-",
        len(activity.agents),
    )


@app.command()
def show(name: QueueName, json: JsonOption = False) -> None:
    """Show a queue: configuration, template variables, activity."""
    api = connected()
    queue = api.run_queue(name)
    activity = _activity(api, queue)
    if json:
        print_json(_summary(queue, activity))
        return
    print_details(
        [
            ("name", queue.name),
            ("resource", queue.type),
            ("entity", queue.entity),
            ("state", "paused" if queue.is_paused else "open"),
            ("priorities", "critical, high, medium, low" if queue.prioritization_mode == "V0" else "none"),
            ("limit", queue.concurrency_limit or "none"),
            ("waiting", activity.waiting),
            ("active", _active(queue, activity)),
            ("agents", ", ".join(activity.agents) or "none online"),
            ("config", queue.default_resource_config["resource_args"][queue.type]),
            ("images", _PINS[queue.pin]),
            ("outputs", queue.outputs.describe() and f"at most {queue.outputs.describe()} of a run are kept"),
            ("variables", queue.template_variables),
            ("allowed", ", ".join(queue.submitter_options)),
            ("limits", ", ".join(f"{name} {most}" for name, most in queue.limits.items())),
            ("allowed secrets", ", ".join(queue.submitter_secrets)),
            ("impossible", _impossible(queue.fail_impossible_after)),
            ("page", queue.url),
        ]
    )


@app.command()
def pause(name: QueueName) -> None:
    """Pause a queue: no further item starts; running items continue."""
    connected().run_queue(name).pause()
    typer.echo(f"The queue {name} is paused. Resume it with: prefect-launch queue resume {name}")


@app.command()
def resume(name: QueueName) -> None:
    """Let items of a paused queue start again."""
    connected().run_queue(name).resume()
    typer.echo(f"The queue {name} is open again.")


@app.command()
def delete(
    name: QueueName,
    yes: Annotated[
        bool, typer.Option("-y", "--yes", metavar="", help="Delete the waiting items without asking.")
    ] = False,
) -> None:
    """Delete a queue with its waiting items and deployments; running items continue."""
    from prefect_launch.core.units import counted
    from prefect_launch.errors import QueueError

    api = connected()
    queue = api.run_queue(name)
    waiting = _activity(api, queue).waiting
    if waiting and not yes:
        if not sys.stdin.isatty():
            raise QueueError(
                f"The queue {name!r} has {counted(waiting, 'item')} waiting, to be deleted with it. Confirm with --yes."
            )
        typer.confirm(f"Delete the queue {name} with {counted(waiting, 'item')} waiting?", abort=True)
    deleted = queue.delete()
    typer.echo(f"The queue {name} is deleted, with {counted(deleted, 'item')} that waited.")


def _impossible(seconds: float | None) -> str:
    """Return what happens to an item that no agent of the queue can ever run."""
    from prefect_launch.core.units import format_duration

    return "items wait" if seconds is None else f"items fail after {format_duration(seconds)}"


def _active(queue: RunQueue, activity: QueueActivity) -> str:
    waits = f", of which {activity.submitted} wait in {queue.type} to be started" if activity.submitted else ""
    return f"{activity.active}{waits}"


def _limits(given: list[str]) -> dict[str, str]:
    from prefect_launch.errors import QueueError

    pairs = [text.partition("=") for text in given]
    for name, equals, most in pairs:
        if not equals or not name or not most:
            raise QueueError(f"Invalid --limit {name + equals + most!r}: write OPTION=MAX, such as memory=16g.")
    return {name: most for name, _, most in pairs}


def _activity(api: Api, queue: RunQueue) -> QueueActivity:
    return api.queue_activity([queue.name])[0]


def _summary(queue: RunQueue, activity: QueueActivity) -> dict[str, Any]:
    return {
        "name": queue.name,
        "id": queue.id,
        "entity": queue.entity,
        "resource": queue.type,
        "is_paused": queue.is_paused,
        "prioritization_mode": queue.prioritization_mode,
        "concurrency_limit": queue.concurrency_limit,
        "waiting": activity.waiting,
        "in_work": activity.active,
        "submitted": activity.submitted,
        "agents_online": list(activity.agents),
        "config": queue.default_resource_config,
        "template_variables": queue.template_variables,
        "submitter_options": list(queue.submitter_options),
        "limits": queue.limits,
        "submitter_secrets": list(queue.submitter_secrets),
        "pin": queue.pin,
        "fail_impossible_after": queue.fail_impossible_after,
        "url": queue.url,
    }
