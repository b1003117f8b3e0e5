"""`prefect-launch demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_launch.cli.options import single

app = single()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay until Ctrl-C, to look around in the UI.")] = False,
) -> None:
    """See it work: an embedded server, a real training job, three runs on a queue, one agent."""
    from prefect_launch.demo.run import run_demo

    run_demo(keep=keep)
