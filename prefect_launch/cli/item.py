"""Commands `prefect-launch item`: show, change, cancel and rerun items, read their logs and files, enter their runs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING
from uuid import UUID

import typer

from prefect_launch.cli import item_change, item_files, item_logs, item_top, item_wait
from prefect_launch.cli.item_compare import compare
from prefect_launch.cli.item_exec import exec_, shell
from prefect_launch.cli.item_list import list_
from prefect_launch.cli.item_view import (
    find,
    find_all,
    metrics_in_words,
    outputs_of,
    start_in_words,
    usage_in_words,
    waiting_fields,
)
from prefect_launch.cli.options import ItemId, ItemIds, JsonOption, PassesArgs, examples, group
from prefect_launch.cli.output import Column, at, lasted, print_details, print_json, print_table, terminal_columns
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import duration_of, fields_of, request_of, started_at, state_of
from prefect_launch.core.names import name_and_id, short_id
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.terminal import printable
from prefect_launch.errors import LaunchError

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.server.values import State

app = group("Show, change, cancel and rerun items, read their logs, fetch their files, open a shell in them.")

_UNSUCCESSFUL = frozenset({StateType.FAILED, StateType.CRASHED, StateType.CANCELLED})
app.command(
    "list",
    epilog=examples(
        "prefect-launch item list -q gpu --state running --state queued",
        "prefect-launch item list -j train --since 7d --where 'outputs.accuracy > 0.9' --sort -outputs.accuracy"
        " -C name,inputs,outputs,took",
    ),
)(list_)
app.command(
    epilog=examples(
        "prefect-launch item compare baseline 1a2b3c4d", "prefect-launch item compare a b c --html runs.html"
    )
)(compare)


@app.command()
def show(item_id: ItemId, json: JsonOption = False) -> None:
    """Show an item: state and reason, request, times, and past states; for one that did not complete, the log's end."""
    api = connected()
    run = find(api, item_id)
    item = run.item
    waiting, states, outputs = run.why_waiting(), _states(api, run), outputs_of(run, item)
    request = request_of(item)
    metrics, from_limits, usage = run.metrics(), run.from_limits(), run.usage() if item.run_count else {}
    lines = run.last_lines() if item.state_type in _UNSUCCESSFUL else []
    if json:
        history = [{"name": s.name, "type": s.type, "message": s.message, "timestamp": s.timestamp} for s in states]
        print_json(
            {
                **request,
                **fields_of(run, item),
                "outputs": outputs,
                "metrics": metrics.fields(),
                "usage": usage,
                "usage_history": run.usage_history().fields(),
                "from_limits": from_limits,
                **waiting_fields(waiting),
                "states": history,
                "last_lines": lines,
            }
        )
        return
    print_details(
        [
            ("id", short_id(run.id)),
            ("name", run.name),
            ("rerun of", (earlier := request.get("rerun_of")) and short_id(earlier)),
            ("resumable", "yes" if request.get("resumable") else ""),
            ("after", ", ".join(short_id(one) for one in request.get("after") or ())),
            ("state", state_of(item)),
            ("message", "" if waiting and item.state_name == ItemState.QUEUED.label else item.message),
            ("why", waiting and waiting.reason),
            ("place", waiting and waiting.position),
            ("starts", start_in_words(waiting)),
            ("queue", run.queue_name),
            ("priority", run.priority.name.lower()),
            ("job", request["job"]),
            ("image", request.get("image")),
            ("digest", request.get("digest")),
            ("uri", request.get("uri")),
            ("inputs", request["inputs"]),
            ("sweep", request.get("sweep")),
            ("outputs", outputs),
            ("metrics", metrics_in_words(metrics, _room_for_values())),
            ("used" if item.is_terminal else "uses", usage_in_words(usage, item)),
            ("arguments", shlex.join(request.get("args") or ())),
            ("entry point", shlex.join(request.get("entry_point") or ())),
            ("variables", request.get("template_variables")),
            ("options", request.get("resource_args")),
            ("at most", ", ".join(f"{name} {most} (the queue's limit)" for name, most in from_limits.items())),
            ("run id", run.run_id),
            ("project", f"{run.entity}/{run.project}"),
            ("author", request.get("author")),
            ("attempts", item.run_count),
            ("created", at(item.created)),
            ("started", at(started_at(item))),
            ("ended", at(item.end_time)),
            ("took", lasted(duration_of(item))),
            ("page", run.url),
        ]
    )
    typer.echo()
    rows = [(at(state.timestamp), state.name.lower(), state.message) for state in states]
    print_table((Column("TIME"), Column("STATE"), Column("MESSAGE", wraps=True)), rows, empty="")
    if lines:
        typer.echo(f"\nThe last lines of the log ('prefect-launch item logs {short_id(run.id)}' shows all):")
        typer.echo("\n".join(f"  {printable(line)}" for line in lines))


def _room_for_values() -> int | None:
    """Return how many characters a value beside its name may have in this terminal."""
    columns = terminal_columns()
    return None if columns is None else columns - len("entry point  ")


def _states(api: Api, run: QueuedRun) -> list[State]:
    return api.call(lambda session: session.server.read_states(UUID(run.id)))


app.command(
    epilog=examples("prefect-launch item logs 1a2b3c4d -f", "prefect-launch item logs 1a2b3c4d -t --since 10min")
)(item_logs.logs)
app.command(epilog=examples("prefect-launch item outputs 1a2b3c4d"))(item_files.outputs)
app.command(epilog=examples("prefect-launch item download 1a2b3c4d 'checkpoints/**' -o results"))(item_files.download)
app.command("open")(item_files.open_)
app.command(epilog=examples("prefect-launch item top 1a2b3c4d"))(item_top.top)

app.command(
    "exec",
    cls=PassesArgs,
    epilog=examples(
        "prefect-launch item exec 1a2b3c4d -- nvidia-smi", "prefect-launch item exec 1a2b3c4d -- sh -c 'ls -l | head'"
    ),
)(exec_)
app.command(epilog=examples("prefect-launch item shell 1a2b3c4d"))(shell)


@app.command(epilog=examples("prefect-launch item cancel 1a2b3c4d 5e6f7a8b"))
def cancel(item_ids: ItemIds, json: JsonOption = False) -> None:
    """Cancel items: a waiting item ends at once; the agent of a running item stops it."""
    stopped, ended = [], []
    for run in find_all(connected(), item_ids):
        if run.item.is_terminal:
            ended.append(run)
            continue
        state = run.cancel().lower()
        stopped.append({"id": run.id, "name": run.name, "state": state})
        if not json:
            outcome = "is cancelled" if state == "cancelled" else "is being stopped by its agent"
            typer.echo(f"The item {name_and_id(run)} {outcome}.")
    if json:
        print_json(stopped)
    if ended:
        names = ", ".join(f"{name_and_id(run)}: {state_of(run.item)}" for run in ended)
        raise LaunchError(f"Nothing to stop of what has ended already ({names}).")


@app.command()
def retry(item_id: ItemId, json: JsonOption = False) -> None:
    """Put an ended item back into its queue, unchanged."""
    run = find(connected(), item_id)
    run.retry()
    if json:
        print_json({"id": run.id, "name": run.name, "state": "queued"})
        return
    typer.echo(f"The item {name_and_id(run)} is back in the queue {run.queue_name}.")


app.command(
    cls=PassesArgs,
    epilog=examples(
        "prefect-launch item rerun 1a2b3c4d --set lr=0.5 -q a100",
        "prefect-launch item rerun 1a2b3c4d -- --lr 0.5",
    ),
)(item_change.rerun)
app.command(epilog=examples("prefect-launch item wait 1a2b3c4d 5e6f7a8b --timeout 2h && echo done"))(item_wait.wait)
app.command(epilog=examples("prefect-launch item save-job 1a2b3c4d -n train -a best"))(item_change.save_job)
app.command(epilog=examples("prefect-launch item edit 1a2b3c4d --set lr=0.5"))(item_change.edit)
app.command(epilog=examples("prefect-launch item set-priority 1a2b3c4d high"))(item_change.set_priority)
app.command(epilog=examples("prefect-launch item move 1a2b3c4d -q a100"))(item_change.move)
