"""Command `prefect-launch notify`: a message when items fail, or wait for too long."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_launch.cli.options import JsonOption, examples, single
from prefect_launch.cli.output import print_json
from prefect_launch.cli.process import connected

app = single()


@app.command(
    epilog=examples(
        "prefect-launch notify --on failed,crashed,stuck --block slack-webhook/ops",
        "prefect-launch notify --on stuck --stuck-after 4h --block email/me -q gpu",
    )
)
def notify(
    on: Annotated[
        list[str],
        typer.Option("--on", metavar="CAUSES", help="By commas: failed, crashed, cancelled, completed, stuck."),
    ],
    block: Annotated[str, typer.Option("--block", metavar="TYPE/NAME", help="The notification block that sends it.")],
    queue: Annotated[
        str | None, typer.Option("-q", "--queue", metavar="QUEUE", help="Only for its items. Default: all queues.")
    ] = None,
    stuck_after: Annotated[
        str, typer.Option("--stuck-after", metavar="TIME", help="How long an item waits before it is stuck.")
    ] = "1h",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the automation. One of that name is updated.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Send a message when items fail, crash, or wait for too long: makes an automation of Prefect."""
    from prefect_launch.client.notify import DEFAULT_WAIT_SECONDS, Notification, write_notification
    from prefect_launch.core.units import parse_duration

    wanted = Notification(
        causes=tuple(dict.fromkeys(word.strip().lower() for text in on for word in text.split(",") if word.strip())),
        block=block,
        queue=queue,
        wait_seconds=parse_duration(stuck_after) or DEFAULT_WAIT_SECONDS,
        name=name,
    )
    api = connected()
    automation_id = api.call(lambda session: write_notification(session, wanted))
    url = f"{api.ui_url}/automations/automation/{automation_id}"
    if json:
        print_json({"id": automation_id, "name": wanted.title, "url": url})
        return
    typer.echo(f"The server sends a message by {block} when {wanted.in_words()}: {url}")
