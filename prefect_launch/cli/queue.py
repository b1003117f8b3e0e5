"""Commands `prefect-launch queue`: create, show, pause and delete queues."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prefect_launch.cli.options import EntityOption, JsonOption, examples, flattened, group, read_mapping
from prefect_launch.cli.output import Column, print_details, print_json, print_table
from prefect_launch.cli.process import connected

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.run_queue import RunQueue
    from prefect_launch.queues.agent_status import QueueActivity
    from prefect_launch.queues.options import QueueOptions

app = group("Create, show, edit, pause and delete queues.")

QueueName = Annotated[str, typer.Argument(metavar="NAME", help="The queue's name.")]
#: Takes a limit away.
_NONE: Final = "none"
#: Options that are whole numbers.
_COUNTS: Final = ("concurrency", "per_author", "per_author_waiting")
#: What a queue's config holds beside the options of its resource.
_BESIDE: Final = ("docker", "limits", "outputs")
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


def _declared(*flags: str, metavar: str = "", text: str, kind: Any = str) -> Any:
    return Annotated[kind | None, typer.Option(*flags, metavar=metavar, help=text)]


#: Options of `queue create` and `queue edit`, in the order of the help.
_OPTIONS: Final[dict[str, Any]] = {
    "resource": _declared(
        "-r", "--resource", metavar="RESOURCE", text="Resource of its items: local-process, local-container, …"
    ),
    "config": _declared(
        "-c", "--config", metavar="CONFIG", text="The resource's options for every item: JSON, YAML, or a file."
    ),
    "variables": _declared(
        "--variables", metavar="VARIABLES", text="Template variables, {{name}} in the config: JSON, YAML, or a file."
    ),
    "concurrency": _declared(
        "--concurrency", metavar="N", text="Items that may run at a time; none: no limit, as by default."
    ),
    "per_author": _declared(
        "--per-author",
        metavar="N",
        text="Jobs of one author that may run at a time; authors take turns. none: no limit, as by default.",
    ),
    "per_author_waiting": _declared(
        "--per-author-waiting",
        metavar="N",
        text="Jobs of one author that may wait: more are refused. none: any number, as by default.",
    ),
    "preempt": _declared(
        "--preempt/--no-preempt",
        text="A critical item that waits for a place sends a low one back that is --resumable. Default: no.",
        kind=bool,
    ),
    "allow": _declared(
        "--allow",
        metavar="OPTION",
        text="An option that submitters may also set, even one that the config sets (env.NAME: one variable)."
        " Repeat for more; none: only those given here.",
        kind=list[str],
    ),
    "limit": _declared(
        "--limit",
        metavar="OPTION=MAX",
        text="The most that an item may ask for: memory=16g, gpus=2, timeout=12h, … Repeat for more.",
        kind=list[str],
    ),
    "allow_secret": _declared(
        "--allow-secret",
        metavar="NAME",
        text="A Secret block that submitters may name in env, and so read. The queue's config may name any."
        " none: only those given here.",
        kind=list[str],
    ),
    "priorities": _declared(
        "--priorities/--no-priorities", text="Four priorities, as by default, or first come, first served.", kind=bool
    ),
    "pin": _declared(
        "--pin/--no-pin",
        text="Pin an image to the digest that its tag has when the item is added, or use the tag when it starts."
        " Default: pin it if the registry answers.",
        kind=bool,
    ),
    "fail_impossible_after": _declared(
        "--fail-impossible-after",
        metavar="TIME",
        text="After this time (1h), fail an item that asks for more than any online agent's machine has."
        " none: it waits, as by default.",
    ),
    "entity": EntityOption,
}


class _Changes:
    """What the options ask for, as changes of a `QueueOptions`."""

    def over(self, before: QueueOptions) -> QueueOptions:
        """Return the options of a queue with these changes."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        plain: dict[str, Any] = {
            "type": given.get("resource"),
            "entity": given.get("entity"),
            **{name: _whole_number(name, given[name]) for name in _COUNTS if name in given},
            "submitter_options": _added(before.submitter_options, given.get("allow")),
            "submitter_secrets": _added(before.submitter_secrets, given.get("allow_secret")),
            "fail_impossible_after": given.get("fail_impossible_after"),
            "preempt": given.get("preempt"),
            "template_variables": read_mapping(given["variables"], "--variables") if "variables" in given else None,
            "prioritization_mode": ("V0" if given["priorities"] else "DISABLED") if "priorities" in given else None,
            "config": _config(before.config or {}, given) if given.keys() & {"config", "limit", "pin"} else None,
        }
        changes: Any = {name: None if value == _NONE else value for name, value in plain.items() if value is not None}
        return replace(before, **changes)


def _added(before: Iterable[str], given: Sequence[str] | None) -> list[str] | None:
    """Return the names that were allowed and those that are given; with `none` among them, only those."""
    if given is None:
        return None
    return list(dict.fromkeys(name for name in (*(() if _NONE in given else before), *given) if name != _NONE))


def _config(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a queue's config: what stands beside the resource's options stays unless it is given."""
    config = dict(before)
    if "config" in given:
        beside = {name: value for name, value in before.items() if name in _BESIDE}
        config = {**beside, **read_mapping(given["config"], "--config")}
    if "limit" in given:
        limits = {**(config.get("limits") or {}), **_limits(given["limit"])}
        config["limits"] = {name: most for name, most in limits.items() if most != _NONE}
    return config if "pin" not in given else {**config, "docker": {"pin": given["pin"]}}


def _whole_number(name: str, text: str) -> int | str:
    from prefect_launch.errors import QueueError

    if text == _NONE:
        return text
    try:
        return int(text)
    except ValueError:
        flag = f"--{name.replace('_', '-')}"
        raise QueueError(f"Invalid {flag} {text!r}: give a whole number of at least 1, or 'none'.") from None


if TYPE_CHECKING:

    class QueueSettings(_Changes):
        """Options of `queue create` and `queue edit`."""

        resource: str | None
        concurrency: str | None
else:
    QueueSettings = make_dataclass(
        "QueueSettings", [(name, kind, field(default=None)) for name, kind in _OPTIONS.items()], bases=(_Changes,)
    )


@app.command(
    epilog=examples(
        "prefect-launch queue create gpu --resource local-process --concurrency 2",
        'prefect-launch queue create box -r local-container --config \'{"shm-size": "{{shm}}"}\''
        ' --variables \'{"shm": {"type": "string", "default": "2g"}}\'',
    )
)
@flattened()
def create(
    name: QueueName,
    options: QueueSettings,
    replace: Annotated[
        bool, typer.Option("--replace", metavar="", help="Make the queue of that name anew if it exists.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Create a queue."""
    from prefect_launch.queues.options import QueueOptions

    wanted = options.over(QueueOptions(name, options.resource or "local-process"))
    api = connected()
    queue = api.write_run_queue(wanted, replace=replace)
    if json:
        print_json(_summary(queue, _activity(api, queue)))
        return
    typer.echo(f"The queue {name} is ready, for {queue.type}: {queue.url}")
    if queue.pin is not None:
        typer.echo(f"Its items run the image that their tag means when they {'are added' if queue.pin else 'start'}.")
    typer.echo(f"Run its items on this machine with: prefect-launch agent start -q {name}")


@app.command(
    epilog=examples(
        "prefect-launch queue edit gpu --concurrency 4 --limit memory=32g",
        "prefect-launch queue edit gpu --concurrency none --limit memory=none",
    )
)
@flattened()
def edit(name: QueueName, options: QueueSettings, json: JsonOption = False) -> None:
    """Change a queue: only what is given; one --limit leaves the other limits as they are."""
    from prefect_launch.errors import QueueError

    api = connected()
    before = api.run_queue(name)
    if all(value is None for value in vars(options).values()):
        raise QueueError("Nothing to change: give an option, such as --concurrency 4. 'queue edit --help' lists them.")
    queue = api.edit_run_queue(options.over(before.options))
    if json:
        print_json(_summary(queue, _activity(api, queue)))
        return
    typer.echo(f"The queue {name} is changed; its agents follow within seconds. 'queue show {name}' shows it.")


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
            ("per author", _shares(queue)),
            ("preemption", "critical items send resumable low ones back" if queue.preempt else None),
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
            ("too large items", _impossible(queue.fail_impossible_after)),
            ("page", queue.url),
        ]
    )


@app.command()
def pause(name: QueueName) -> None:
    """Pause a queue: running items continue; no further item starts from a few seconds later on."""
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

    return "wait" if seconds is None else f"fail after {format_duration(seconds)}"


def _shares(queue: RunQueue) -> str:
    """Return what one author may have on the queue; an empty text when that is not limited."""
    shares = {"in work": queue.per_author, "waiting": queue.per_author_waiting}
    return ", ".join(f"at most {most} {what}" for what, most in shares.items() if most is not None)


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
        "per_author": queue.per_author,
        "per_author_waiting": queue.per_author_waiting,
        "preempt": queue.preempt,
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
