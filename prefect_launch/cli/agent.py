"""Commands `prefect-launch agent`: run an agent, serve it as a deployment, check, list and drain agents."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from prefect_launch.cli.options import JsonOption, examples, group
from prefect_launch.cli.output import Column, ago, print_details, print_json, print_table
from prefect_launch.cli.process import loading
from prefect_launch.core.early_signals import SIGNALLED, early_signals

if TYPE_CHECKING:
    from prefect_launch.agent import AgentConfig
    from prefect_launch.agent.entry.start import Signals
    from prefect_launch.agent.housekeeping.housekeeper import Report
    from prefect_launch.queues.agent_status import AgentInfo


app = group("Run an agent, serve it as a deployment, check, show and drain agents.")

QueuesOption = Annotated[
    list[str] | None,
    typer.Option("-q", "--queue", metavar="QUEUE", help="A queue to take items from. Repeat for more."),
]
MaxJobsOption = Annotated[
    str | None,
    typer.Option("-j", "--max-jobs", metavar="N", help="Jobs at a time; -1 for no limit. Default: 1."),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="CONFIG",
        help="Config file. Default: ~/.config/prefect-launch/agent.yaml, if it exists.",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the agent. Default: the machine's.")
]
AgentEntityOption = Annotated[
    str | None,
    typer.Option("-e", "--entity", metavar="ENTITY", help="Owner of jobs that items name without one."),
]
LogFileOption = Annotated[
    Path | None,
    typer.Option("-l", "--log-file", metavar="FILE", help="Append the agent's lines to a file. Default: to stderr."),
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", metavar="", help="Verbose output.")]

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
    entity: AgentEntityOption = None,
    log_file: LogFileOption = None,
    until_empty: Annotated[
        bool,
        typer.Option("--until-empty", metavar="", help="Exit with 0 when the queues are empty and the items are done."),
    ] = False,
    stop_jobs: Annotated[
        bool, typer.Option("--stop-jobs", metavar="", help="The second signal stops the jobs. Default: they continue.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Run an agent in the foreground, until Ctrl-C (exit code 130) or SIGTERM (143).

    The first signal drains the agent: it takes no more items, and exits when its jobs are done. The second signal ends
    it at once: its jobs continue, and the next agent of its name on this machine adopts them. Each change prints one
    line: time, item, what happened.
    """
    import asyncio

    with early_signals(_notify) as early:
        with loading():
            settings = _settings(queue, max_jobs, config, name, verbose, entity=entity, log_file=log_file)
            from prefect_launch.agent import LaunchAgent
            from prefect_launch.agent.entry.start import Signals
            from prefect_launch.client.api import default_api

            agent = LaunchAgent(default_api(), settings)
            signals = Signals(agent, stop_jobs=stop_jobs, notify=_notify, early=early)
        raise typer.Exit(asyncio.run(_work(signals, until_empty)))


def _notify(text: str) -> None:
    typer.echo(text, err=True)


async def _work(signals: Signals, until_empty: bool) -> int:
    """Run the agent's loop: the first signal drains it, the second ends it at once."""
    signal_number = await signals.run(until_empty=until_empty)
    return 0 if signal_number is None else SIGNALLED + signal_number


@app.command(epilog=examples("prefect-launch agent serve -q gpu -j 2 --name box-1"))
def serve(
    queue: QueuesOption = None,
    max_jobs: MaxJobsOption = None,
    config: ConfigFileOption = None,
    name: NameOption = None,
    interval: Annotated[
        float | None,
        typer.Option("--interval", metavar="SECONDS", help="Time between two shifts, 60 or more. Default: 600."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve an agent as a deployment on a schedule: its page in the UI shows the jobs of each shift.

    Signals act as for 'agent start': the first drains the agent, the second ends it at once.
    """
    with early_signals(_notify) as early:
        settings = _settings(queue, max_jobs, config, name, verbose)
        import asyncio

        from prefect_launch.agent.entry.serve import DEFAULT_INTERVAL_SECONDS
        from prefect_launch.agent.entry.serve import serve as serve_agent
        from prefect_launch.client.api import default_api

        seconds = DEFAULT_INTERVAL_SECONDS if interval is None else interval
        signal_number = asyncio.run(serve_agent(default_api(), settings, interval_seconds=seconds, early=early))
    raise typer.Exit(0 if signal_number is None else SIGNALLED + signal_number)


#: The columns of a list of agents.
COLUMNS: Final = (
    Column("AGENT", gives_way=True),
    Column("STATE"),
    Column("HOST", gives_way=True),
    Column("SLOTS", right=True),
    Column("RUNS", gives_way=True),
    Column("LAST SEEN"),
    Column("QUEUES", gives_way=True),
)


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the agents of all queues."""
    from prefect_launch.cli.process import connected

    agents = connected().agents()
    if json:
        print_json([agent.model_dump(mode="json") for agent in agents])
        return
    print_table(
        COLUMNS,
        [row_of(agent) for agent in agents],
        empty="There is no agent. Start one with: prefect-launch agent start -q QUEUE",
    )
    for agent in agents:
        for resource, why in agent.problems.items():
            typer.echo(f"{agent.name} takes no items of {resource}: {why}")
        if len(agent.hosts) > 1:
            are = f"{len(agent.hosts)} agents are called {agent.name}, on {', '.join(agent.hosts)}"
            typer.echo(f"{are}: give each a name of its own (--name).")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the agent, on any machine.")],
    json: JsonOption = False,
) -> None:
    """Show an agent: where it runs, what it takes and holds, and what keeps items from it."""
    from prefect_launch.cli.process import connected
    from prefect_launch.core.names import short_id
    from prefect_launch.errors import unknown_name

    agents = {agent.name: agent for agent in connected().agents()}
    if name not in agents:
        raise unknown_name("agent", name, agents)
    agent = agents[name]
    if json:
        print_json(agent.model_dump(mode="json"))
        return
    _, state, host, slots, _, seen, queues = row_of(agent)
    schedulers = f"{agent.schedulers} of {'any number' if agent.max_schedulers is None else agent.max_schedulers}"
    print_details(
        [
            ("name", agent.name),
            ("state", state),
            ("host", ", ".join(agent.hosts) or host),
            ("queues", queues),
            ("slots", slots),
            ("sweeps", schedulers if agent.schedulers else None),
            ("runs", "\n".join(f"{item.shown} ({short_id(item.id)})" for item in agent.running)),
            ("devices", agent.devices),
            ("items wait", "\n".join(f"{short_id(item)}: {why}" for item, why in agent.waits.items())),
            ("takes none", "\n".join(f"{resource}: {why}" for resource, why in agent.problems.items())),
            ("secure mode", "on" if agent.secure_mode else None),
            ("last seen", seen),
        ]
    )


def row_of(agent: AgentInfo) -> tuple[object, ...]:
    """Return an agent as a row of a list."""
    has_status = agent.host is not None
    slots = f"{agent.in_work}/{'-' if agent.slots is None else agent.slots}" if has_status else ""
    more = agent.in_work + agent.schedulers - len(agent.running)
    runs = ", ".join([*(item.shown for item in agent.running), *([f"{more} more"] if more > 0 else [])])
    return agent.name, agent.state, agent.host, slots, runs, ago(agent.last_heartbeat), ", ".join(agent.queues)


@app.command(epilog=examples("prefect-launch agent check -q gpu", "prefect-launch agent check --json"))
def check(
    queue: QueuesOption = None, config: ConfigFileOption = None, name: NameOption = None, json: JsonOption = False
) -> None:
    """Check what an agent needs here, before its first job fails; exit code 1 when something is missing.

    It checks the server and its clock, the home folder, the registry of built images, the queues, and what the resource
    of each queue needs: an engine that answers, rights in a cluster, tools. It starts nothing.
    """
    import asyncio

    from prefect_launch.agent import resolve_agent_config
    from prefect_launch.agent.check import check_agent
    from prefect_launch.cli.process import connected

    settings = resolve_agent_config(config, queues=queue or None, name=name)
    checks = asyncio.run(check_agent(connected(), settings))
    missing = [one for one in checks if not one.finding.is_ok]
    if json:
        print_json([{"where": one.where, **one.finding.model_dump(mode="json")} for one in checks])
    else:
        columns = (Column("WHERE"), Column("WHAT"), Column("STATE"), Column("DETAIL", wraps=True))
        rows = [(one.where, one.finding.name, _STATES[one.finding.is_ok], one.finding.detail) for one in checks]
        print_table(columns, rows, empty="")
        things = f"{len(missing)} things are missing" if len(missing) > 1 else "1 thing is missing"
        typer.echo(f"{things}: see the details above." if missing else "Nothing is missing.")
    raise typer.Exit(1 if missing else 0)


_STATES: Final = {True: "ok", False: "missing"}


@app.command(epilog=examples("prefect-launch agent drain box-1", "prefect-launch agent drain box-1 --undo"))
def drain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the agent, on any machine.")],
    undo: Annotated[bool, typer.Option("--undo", metavar="", help="Let the agent take items again.")] = False,
) -> None:
    """Drain an agent: it takes no more items, and exits when its jobs are done."""
    from prefect_launch.cli.process import connected

    agent = connected().drain_agent(name, undo=undo)
    if undo:
        typer.echo(f"The agent {name} takes items again.")
        return
    runs = ", ".join(item.name for item in agent.running if not item.is_scheduler)
    sweeps = ", ".join(item.name for item in agent.running if item.is_scheduler)
    then = f", and exits when these runs end: {runs}." if runs else ", and exits."
    over = f" It leaves these sweeps to another agent: {sweeps}." if sweeps else ""
    typer.echo(f"The agent {name} drains: it takes no more items{then}{over}")


@app.command(epilog=examples("prefect-launch agent clean --dry-run", "prefect-launch agent clean --keep-runs 1g"))
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only list what would be removed.")] = False,
    keep_runs: Annotated[
        str | None, typer.Option("--keep-runs", metavar="SIZE", help="Disk limit for past runs, such as 10g, or none.")
    ] = None,
    keep_environments: Annotated[
        str | None, typer.Option("--keep-environments", metavar="SIZE", help="Disk limit for environments.")
    ] = None,
    keep_images: Annotated[
        str | None, typer.Option("--keep-images", metavar="SIZE", help="Disk limit for images built from code.")
    ] = None,
    keep_git: Annotated[
        str | None, typer.Option("--keep-git", metavar="SIZE", help="Disk limit for copies of git remotes.")
    ] = None,
    config: ConfigFileOption = None,
    json: JsonOption = False,
) -> None:
    """Free disk space on this machine: remove finished runs, and cached files over their limit.

    Agents do this themselves, at their start and every 5 minutes. Files of running or waiting items stay.
    """
    import asyncio

    from prefect_launch.agent import resolve_agent_config
    from prefect_launch.agent.housekeeping.housekeeper import clean as clean_home
    from prefect_launch.client.api import default_api

    kept = {"keep_runs": keep_runs, "keep_environments": keep_environments}
    settings = resolve_agent_config(config, **kept, keep_images=keep_images, keep_git=keep_git)
    report = asyncio.run(clean_home(default_api(), settings, dry_run=dry_run))
    print_report(report, home=settings.home, dry_run=dry_run, as_json=json)


def _settings(
    queues: list[str] | None,
    max_jobs: str | None,
    config: Path | None,
    name: str | None,
    verbose: bool,
    *,
    entity: str | None = None,
    log_file: Path | None = None,
) -> AgentConfig:
    import logging

    from prefect_launch.agent import resolve_agent_config
    from prefect_launch.cli.process import set_up

    set_up(logging.DEBUG if verbose else logging.INFO, form=_LINE, verbose=verbose, file=log_file)
    given = {"queues": queues or None, "max_jobs": max_jobs, "name": name, "entity": entity}
    return resolve_agent_config(config, **given, verbosity=1 if verbose else None)


# Output of `prefect-launch agent clean`.


def print_report(report: Report | None, *, home: Path, dry_run: bool, as_json: bool) -> None:
    """Print what a clean-up has removed, or would remove."""
    from prefect_launch.core.units import format_size

    if report is None:
        typer.echo(f"Another agent is cleaning {home}. Try again in a moment.", err=True)
        raise typer.Exit(1)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    rows = [("finished run", name, "", "") for name in report.finished]
    for cache in report.caches:
        rows += [
            (cache.cache, entry.name, format_size(entry.size_bytes), ago(_time(entry.used_at)))
            for entry in cache.evicted
        ]
    if rows:
        columns = (Column("WHAT"), Column("NAME", gives_way=True), Column("SIZE", right=True), Column("LAST USED"))
        print_table(columns, rows, empty="")
    verb = "Would remove" if dry_run else "Removed"
    typer.echo(f"{verb} {report.describe()} of {home}.")
    for cache in report.caches:
        limit = "no limit" if cache.limit_bytes is None else f"limit {format_size(cache.limit_bytes)}"
        kept = (
            f"not seen ({limit}): {cache.unreachable}"
            if cache.unreachable
            else f"{format_size(cache.kept_bytes)} kept ({limit})"
        )
        typer.echo(f"{cache.cache}: {kept}")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
