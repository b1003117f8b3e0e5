"""`prefect-launch agent`: run an agent, serve it as a deployment, see which are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from prefect_launch.cli.output import Column, ago, print_json, print_table
from prefect_launch.cli.style import JsonOption, examples, group

if TYPE_CHECKING:
    from prefect_launch.agent import AgentConfig, LaunchAgent

app = group("Run an agent, serve it as a deployment, see which are there.")

QueuesOption = Annotated[
    list[str] | None,
    typer.Option("-q", "--queue", metavar="QUEUE", help="A queue that it takes items of. Repeat for more."),
]
MaxJobsOption = Annotated[
    str | None,
    typer.Option("-j", "--max-jobs", metavar="N", help="How many jobs at a time; -1 for no limit. Default: 1."),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="CONFIG",
        help="Its config file. Default: ~/.config/prefect-launch/agent.yaml, if it is there.",
    ),
]
NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its name. Default: this machine's.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", metavar="", help="Tell more.")]

_INTERRUPTED: Final = 130
#: As a shell tells the end by SIGTERM: the queues were not worked off.
_TERMINATED: Final = 143
_LINE: Final = "%(asctime)s %(message)s"


@app.command(
    epilog=examples(
        "prefect-launch agent start -q gpu -j 2",
        "prefect-launch agent start -q gpu -q cpu --until-empty",
    )
)
def start(
    queue: QueuesOption = None,
    max_jobs: MaxJobsOption = None,
    config: ConfigFileOption = None,
    name: NameOption = None,
    until_empty: Annotated[
        bool,
        typer.Option("--until-empty", metavar="", help="End with 0 when its queues are empty and its items are done."),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run an agent in the foreground, until Ctrl-C (exit code 130) or SIGTERM (143); its jobs go on then.

    It prints a line a change: time, item, what happened. The next agent of its name on this machine takes up what
    still runs.
    """
    settings = _settings(queue, max_jobs, config, name, verbose)
    import asyncio

    from prefect_launch.agent import LaunchAgent
    from prefect_launch.api import default_api

    agent = LaunchAgent(default_api(), settings)
    raise typer.Exit(asyncio.run(_work(agent, until_empty)))


async def _work(agent: LaunchAgent, until_empty: bool) -> int:
    """Run the agent's loop; the first signal ends it in order, a second Ctrl-C at once."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def stop(code: int) -> None:
        asked.append(code)
        left = agent.thread_ids
        told = f"{len(left)} go on: {', '.join(left)}" if left else "nothing is in work"
        typer.echo(f"Leaving; {told}.", err=True)
        agent.stop()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop, _INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, stop, _TERMINATED)
    await agent.loop(until_empty=until_empty)
    return asked[0] if asked else 0


@app.command(epilog=examples("prefect-launch agent serve -q gpu -j 2 --name box-1"))
def serve(
    queue: QueuesOption = None,
    max_jobs: MaxJobsOption = None,
    config: ConfigFileOption = None,
    name: NameOption = None,
    interval: Annotated[
        float | None,
        typer.Option("--interval", metavar="SECONDS", help="From one shift to the next, 60 or more. Default: 600."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve an agent as a deployment on a schedule: its page in the UI shows each shift's jobs."""
    settings = _settings(queue, max_jobs, config, name, verbose)
    import asyncio

    from prefect_launch.agent.serve import DEFAULT_INTERVAL_SECONDS
    from prefect_launch.agent.serve import serve as serve_agent
    from prefect_launch.api import default_api

    seconds = DEFAULT_INTERVAL_SECONDS if interval is None else interval
    asyncio.run(serve_agent(default_api(), settings, interval_seconds=seconds))


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the agents of all queues."""
    from prefect_launch.cli.connect import connected

    agents = connected().agents()
    if json:
        print_json([agent.model_dump(mode="json") for agent in agents])
        return
    columns = (Column("AGENT", gives_way=True), Column("STATE"), Column("HEARD OF"), Column("QUEUES", gives_way=True))
    rows = [
        (agent.name, "online" if agent.online else "offline", ago(agent.last_heartbeat), ", ".join(agent.queues))
        for agent in agents
    ]
    print_table(columns, rows, empty="No agent is there. Start one with: prefect-launch agent start -q QUEUE")


def _settings(
    queues: list[str] | None, max_jobs: str | None, config: Path | None, name: str | None, verbose: bool
) -> AgentConfig:
    import logging

    from prefect_launch.agent import resolve_agent_config
    from prefect_launch.cli.logs import set_up

    set_up(logging.DEBUG if verbose else logging.INFO, form=_LINE, verbose=verbose)
    return resolve_agent_config(
        config, queues=queues or None, max_jobs=max_jobs, name=name, verbosity=1 if verbose else None
    )
