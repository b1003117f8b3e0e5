"""Commands `prefect-launch sweep`: run, show, pause and stop sweeps, and check a sweep file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_launch.cli.options import JsonOption, examples, group
from prefect_launch.cli.output import Column, ago, print_details, print_json, print_table
from prefect_launch.cli.process import connected
from prefect_launch.client.item_fields import state_of
from prefect_launch.core.names import name_and_id, short_id, short_ids
from prefect_launch.core.terminal import printable

if TYPE_CHECKING:
    from uuid import UUID

    from prefect_launch.client.api import Api
    from prefect_launch.server.values import Item
    from prefect_launch.sweeps.config import SweepConfig
    from prefect_launch.sweeps.control import ResumedBy
    from prefect_launch.sweeps.preview import Preview

app = group("Create, run, show, pause and stop sweeps; check sweep files.")

_INFINITE = "infinite"
#: Exit code of a sweep that was stopped.
_INTERRUPTED = 130


SweepFile = Annotated[str, typer.Argument(metavar="FILE", help="A sweep file: YAML or JSON, as W&B's sweeps have it.")]
TrialQueue = Annotated[str | None, typer.Option("-q", "--queue", metavar="QUEUE", help="The queue of its trials.")]
TrialJob = Annotated[str | None, typer.Option("-j", "--job", metavar="JOB", help="The job that its trials run.")]
TrialImage = Annotated[
    str | None,
    typer.Option("-d", "--docker-image", metavar="IMAGE", help="The image that its trials run, in place of a job."),
]
NumWorkers = Annotated[int | None, typer.Option("--num-workers", metavar="N", min=1, help="How many trials at a time.")]
RunCap = Annotated[int | None, typer.Option("--run-cap", metavar="N", min=1, help="How many trials at most.")]


TrialProject = Annotated[
    str | None, typer.Option("-p", "--project", metavar="PROJECT", help="The project of its trials.")
]
TrialEntity = Annotated[str | None, typer.Option("-e", "--entity", metavar="ENTITY", help="The entity of its trials.")]


@app.callback()
def _group() -> None:
    """Create, run, show, pause and stop sweeps; check sweep files."""


@app.command(epilog=examples("prefect-launch sweep check sweep.yaml"))
def check(
    file: SweepFile,
    json: JsonOption = False,
) -> None:
    """Check a sweep file, and show how many points it has and the first five; nothing is written."""
    from prefect_launch.sweeps.config import parse_sweep
    from prefect_launch.sweeps.preview import preview_sweep
    from prefect_launch.sweeps.sweep_file import read_sweep_file
    from prefect_launch.sweeps.trial_table import flat_params

    config = parse_sweep(read_sweep_file(file))
    preview = preview_sweep(config)
    if json:
        print_json(_as_json(config, preview))
        return
    metric = config.objective
    print_details(
        [
            ("method", config.sampler or config.method),
            ("metric", f"{metric.goal} {metric.name}" if metric else None),
            ("points", _INFINITE if preview.points is None else f"{preview.points:,}"),
            ("trials", "no limit" if preview.trials is None else f"at most {preview.trials:,}"),
            ("workers", config.scheduler.num_workers),
            ("job", None if config.names_job else "none yet: give -j JOB or -d IMAGE, or the key job"),
            ("command", _command(config, preview)),
        ]
    )
    typer.echo()
    flat = [flat_params(sample) for sample in preview.samples]
    names = list(dict.fromkeys(name for sample in flat for name in sample))
    rows = [[str(number), *(sample.get(name, "") for name in names)] for number, sample in enumerate(flat)]
    print_table([Column("TRIAL", right=True), *(Column(name, gives_way=True) for name in names)], rows, empty="")
    for warning in preview.warnings:
        typer.secho(f"Warning: {warning}", fg=typer.colors.YELLOW, err=True)


PriorRuns = Annotated[
    list[str] | None,
    typer.Option(
        "--prior-run",
        metavar="ID",
        help="An earlier sweep, or an item, that the sampler learns from; it is no trial of this sweep. Repeatable.",
    ),
]
SweepId = Annotated[
    str,
    typer.Argument(metavar="SWEEP", help="The sweep's id, its first or last characters (6 or more), or its name."),
]


@app.command(
    epilog=examples("prefect-launch sweep create sweep.yaml -q gpu -j digits --num-workers 4 --run-cap 20"),
)
def create(
    file: SweepFile,
    queue: TrialQueue = None,
    job: TrialJob = None,
    docker_image: TrialImage = None,
    num_workers: NumWorkers = None,
    run_cap: RunCap = None,
    project: TrialProject = None,
    entity: TrialEntity = None,
    prior_run: PriorRuns = None,
    json: JsonOption = False,
) -> None:
    """Put a sweep on the queue of its trials: an agent of the queue runs its scheduler until the sweep ends.

    The sweep is an item of the queue, and takes none of its agents' slots for jobs.
    """
    api = connected()
    source = {"queue": queue, "job": job, "docker_image": docker_image, "project": project, "entity": entity}
    given = parameters_of(api, prior_run, **source, num_workers=num_workers, run_cap=run_cap)
    create_sweep(api, file, given, as_json=json)


def create_sweep(api: Api, file: str, given: dict[str, Any], *, as_json: bool) -> None:
    """Put a sweep on the queue of its trials, and print its id and page.

    Args:
        api: the Prefect server.
        file: the sweep file.
        given: parameters of `sweep_config` that win over the file.
        as_json: print JSON.
    """
    import asyncio

    from prefect_launch.sweeps.queued import queue_sweep
    from prefect_launch.sweeps.sweep_file import read_sweep_file

    sweep_id = asyncio.run(queue_sweep(api, {"config": read_sweep_file(file), **given}))
    page = f"{api.ui_url}/runs/flow-run/{sweep_id}"
    if as_json:
        print_json({"id": str(sweep_id), "url": page})
        return
    typer.echo(f"sweep: {sweep_id}")
    typer.echo(f"page:  {page}")


@app.command(
    "run",
    epilog=examples(
        "prefect-launch sweep run sweep.yaml -q gpu -j digits --num-workers 4 --run-cap 20",
        "prefect-launch sweep run --resume 1f2e3d4c --run-cap 40",
    ),
)
def run_(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A sweep file: YAML or JSON, as W&B's sweeps have it.")
    ] = None,
    queue: TrialQueue = None,
    job: TrialJob = None,
    docker_image: TrialImage = None,
    num_workers: NumWorkers = None,
    run_cap: RunCap = None,
    project: TrialProject = None,
    entity: TrialEntity = None,
    prior_run: PriorRuns = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="SWEEP",
            help="Continue this sweep, as 'sweep resume' does; options win over its own.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a sweep from here: queue its trials until it ends; exit with 1 when it fails.

    Agents run the trials. Ctrl-C stops the sweep with its trials; the second one ends this process at once.
    """
    import asyncio

    from prefect_launch.errors import SpecError

    if (file is None) == (resume is None):
        raise SpecError("Give a sweep file, or --resume with the sweep to continue; one of the two.")
    api = connected()
    source = {"queue": queue, "job": job, "docker_image": docker_image, "project": project, "entity": entity}
    given = parameters_of(api, prior_run, **source, num_workers=num_workers, run_cap=run_cap)
    code = asyncio.run(_run(api, file, resume, given, as_json=json))
    if code:
        raise typer.Exit(code)


def parameters_of(api: Api, prior_runs: list[str] | None, **options: Any) -> dict[str, Any]:
    """Return what the options of a command give to `sweep_config`.

    Args:
        api: the Prefect server.
        prior_runs: sweeps and items, named as in other commands.
        options: the other parameters; `None` leaves one out.
    """
    given = {**options, "prior_runs": _prior_run_ids(api, prior_runs)}
    return {name: value for name, value in given.items() if value is not None}


def _prior_run_ids(api: Api, prior_runs: list[str] | None) -> list[str] | None:
    from prefect_launch.cli.item_view import find
    from prefect_launch.errors import NotFoundError
    from prefect_launch.sweeps.sweep_run import find_sweep

    found = []
    for given in prior_runs or ():
        try:
            found.append(str(api.call(partial(find_sweep, given=given)).id))
        except NotFoundError as no_sweep:
            try:
                found.append(find(api, given).id)
            except NotFoundError:
                raise NotFoundError(f"{no_sweep} Nor is there an item of that id or name.") from None
    return found or None


async def _run(api: Api, file: str | None, resume: str | None, given: dict[str, Any], *, as_json: bool) -> int:
    from prefect_launch.sweeps.flow import begin_sweep
    from prefect_launch.sweeps.sweep_file import read_sweep_file

    if file is None:
        return await resume_and_run(api, resume or "", given, as_json=as_json)
    sweep_id = await begin_sweep(api, {"config": read_sweep_file(file), **given})
    return await run_to_end(api, sweep_id, as_json=as_json)


async def resume_and_run(api: Api, sweep: str, given: dict[str, Any], *, as_json: bool) -> int:
    """Resume a sweep, and run it from here when no other process does.

    Args:
        api: the Prefect server.
        sweep: its id, a part of it, or its name.
        given: parameters of `sweep_config` that win over its own.
        as_json: print JSON.

    Returns:
        The exit code.
    """
    from prefect_launch.sweeps.control import resume_sweep
    from prefect_launch.sweeps.sweep_run import find_sweep

    found = await api.acall(partial(find_sweep, given=sweep))
    return await _go_on(api, found, await resume_sweep(api, found.id, given), as_json=as_json)


async def _go_on(api: Api, sweep: Item, by: ResumedBy, *, as_json: bool, **more: Any) -> int:
    """Print which process continues a sweep, and run it from here when none does; return the exit code."""
    from prefect_launch.sweeps.control import ResumedBy

    if by is ResumedBy.CALLER:
        return await run_to_end(api, sweep.id, as_json=as_json)
    if as_json:
        print_json({"id": str(sweep.id), "resumed_by": by.value, **more})
    elif by is ResumedBy.PROCESS:
        typer.echo(f"The sweep {name_and_id(sweep)} continues in the process that runs it.")
    else:
        where = f"the queue {sweep.work_pool_name}" if sweep.work_pool_name else "its deployment"
        typer.echo(f"The sweep {name_and_id(sweep)} waits to continue, as a run of {where}.")
    return 0


async def run_to_end(api: Api, sweep_id: UUID, *, as_json: bool = False) -> int:
    """Run a sweep that was begun or resumed, and print how each of its trials ends, and the best one.

    Args:
        api: the Prefect server.
        sweep_id: the sweep's id.
        as_json: print JSON at the end, and the lines to the standard error.

    Returns:
        The exit code.

    Raises:
        ExecutionError: when the sweep failed.
    """
    from prefect_launch.cli.sweep_view import read_now
    from prefect_launch.errors import ExecutionError
    from prefect_launch.sweeps.flow import run_sweep
    from prefect_launch.sweeps.scheduler import Outcome
    from prefect_launch.sweeps.trial_log import describe_trial

    def report(line: str) -> None:
        typer.echo(printable(line), err=as_json)

    report(f"sweep: {sweep_id}")
    report(f"page:  {api.ui_url}/runs/flow-run/{sweep_id}")
    end = await run_sweep(api, sweep_id, report)
    async with api.open() as session:
        found, _ = await read_now(session, sweep_id)
    if as_json:
        print_json({**found.summary(), "state": end.outcome.value, "message": end.message})
    elif found.best is not None:
        report(f"best: {describe_trial(found.best, found.config)}")
    if end.outcome is Outcome.FAILED:
        raise ExecutionError(f"The sweep {sweep_id} failed: {end.message}")
    report(end.message)
    return _INTERRUPTED if end.outcome is Outcome.STOPPED else 0


@app.command("list", epilog=examples("prefect-launch sweep list"))
def list_(json: JsonOption = False) -> None:
    """List the newest sweeps."""
    from prefect_launch.sweeps.requests import message_of
    from prefect_launch.sweeps.sweep_run import list_sweeps

    sweeps = connected().call(list_sweeps)
    if json:
        print_json([{"id": str(sweep.id), "name": sweep.name, "state": state_of(sweep)} for sweep in sweeps])
        return
    short = short_ids([str(sweep.id) for sweep in sweeps])
    rows = [(short[str(one.id)], one.name, state_of(one), ago(one.created), message_of(one)) for one in sweeps]
    columns = (Column("ID"), Column("NAME", gives_way=True), Column("STATE"), Column("AGE", right=True))
    print_table((*columns, Column("MESSAGE", gives_way=True)), rows, empty="There is no sweep yet.")


@app.command(epilog=examples("prefect-launch sweep show 1f2e3d4c --watch"))
def show(
    sweep: SweepId,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", metavar="", help="Show it live until it has ended; in a pipe, as lines.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show a sweep and its trials, the best one first."""
    from prefect_launch.cli.sweep_view import print_sweep, read_report, watch_sweep

    api = connected()
    report = watch_sweep(api, sweep, quiet=json) if watch else read_report(api, sweep)
    if json:
        print_json(report.summary())
    elif not watch:
        print_sweep(report)


@app.command(
    epilog=examples(
        "prefect-launch sweep report 1f2e3d4c -o report.html", "prefect-launch sweep report 1f2e3d4c --json"
    )
)
def report(
    sweep: SweepId,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file; '-' is standard output. Default: sweep-ID.html."
        ),
    ] = None,
    optuna: Annotated[
        str | None,
        typer.Option(
            "--optuna",
            metavar="FILE",
            help="Write the sweep as an Optuna study to a new SQLite file, for optuna-dashboard.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a report of a sweep: one HTML file with charts, the best trial, all trials, and failures by cause."""
    from prefect_launch.cli.sweep_view import read_report, write_report

    api = connected()
    found = read_report(api, sweep)
    if optuna is not None:
        from prefect_launch.sweeps.optuna_study import export_study

        export_study(found, Path(optuna))
        typer.echo(printable(f"The Optuna study {found.name!r} is in {optuna}."), err=json or output == "-")
    if json:
        print_json(found.fields())
    elif optuna is None or output is not None:
        write_report(found, api.ui_url, output)


@app.command(epilog=examples("prefect-launch sweep best 1f2e3d4c --config > best.yaml"))
def best(
    sweep: SweepId,
    config: Annotated[
        bool,
        typer.Option(
            "--config",
            metavar="",
            help="Print its job, inputs, arguments and command, as a launch config for 'add --config'.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show the finished trial with the best value of the metric."""
    import yaml

    from prefect_launch.cli.sweep_view import read_report
    from prefect_launch.sweeps.trial_items import best_trial
    from prefect_launch.sweeps.trial_log import describe_trial

    found = read_report(connected(), sweep)
    trial = best_trial(found.name, found.config, found.trials)
    item = found.trials.items[trial.number].item
    as_config = {**_source_of(item.parameters), "overrides": found.config.trial_overrides(trial.params)}
    if json:
        print_json(as_config if config else found.trial_fields(trial))
    elif config:
        typer.echo(yaml.safe_dump(as_config, sort_keys=False, allow_unicode=True).rstrip())
    else:
        typer.echo(printable(describe_trial(trial, found.config)))
        typer.echo(f"item: {short_id(item.id)}")


def _source_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial ran, for a launch config: its job, at its version, or its image."""
    if "job" in parameters:
        return {"job": parameters["job"]}
    return {"docker": {"docker_image": parameters["docker"]["docker_image"]}}


@app.command(
    epilog=examples("prefect-launch sweep pause 1f2e3d4c", "prefect-launch sweep pause 1f2e3d4c --now"),
)
def pause(
    sweep: SweepId,
    now: Annotated[
        bool, typer.Option("--now", metavar="", help="Stop its trials, too; they run again when it is resumed.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Pause a sweep: no new trial starts until 'sweep resume'; without --now, running trials finish.

    A trial that waits in the queue may still start within the next 10 s.
    """
    import asyncio

    from prefect_launch.sweeps.control import pause_sweep
    from prefect_launch.sweeps.sweep_run import find_sweep

    async def work(api: Api) -> Item:
        found = await api.acall(partial(find_sweep, given=sweep))
        await pause_sweep(api, found.id, now=now, report=lambda line: typer.echo(printable(line), err=json))
        return found

    found = asyncio.run(work(connected()))
    if json:
        print_json({"id": str(found.id), "state": "paused", "now": now})
    else:
        again = f"'prefect-launch sweep resume {short_id(found.id)}' continues it."
        typer.echo(f"The sweep {name_and_id(found)} is paused. {again}")


@app.command(
    epilog=examples("prefect-launch sweep resume 1f2e3d4c", "prefect-launch sweep resume 1f2e3d4c --run-cap 40"),
)
def resume(sweep: SweepId, num_workers: NumWorkers = None, run_cap: RunCap = None, json: JsonOption = False) -> None:
    """Continue a sweep that is paused, or has ended, or whose process has died; options win over its own.

    It continues in its process if that runs, or as an item of its queue. Otherwise it runs from here, as with
    'sweep run'.
    """
    import asyncio

    code = asyncio.run(
        resume_and_run(connected(), sweep, {"num_workers": num_workers, "run_cap": run_cap}, as_json=json)
    )
    if code:
        raise typer.Exit(code)


@app.command(
    epilog=examples("prefect-launch sweep retry 1f2e3d4c", "prefect-launch sweep retry 1f2e3d4c --trial 3 --trial 7"),
)
def retry(
    sweep: SweepId,
    failed: Annotated[bool, typer.Option("--failed", metavar="", help="All that failed. The default.")] = False,
    trial: Annotated[
        list[int] | None,
        typer.Option("--trial", metavar="K", min=0, help="This trial, which failed or was cancelled. Repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run failed trials of a sweep again, under the same numbers and with the same parameters.

    They do not count as new trials. Trials of a paused sweep run when it is resumed. A sweep that has ended continues,
    and so does one whose process has died.
    """
    import asyncio

    from prefect_launch.errors import SpecError
    from prefect_launch.sweeps.control import retry_trials
    from prefect_launch.sweeps.sweep_run import find_sweep

    if failed and trial:
        raise SpecError("Give --failed, or --trial for each trial to run again; one of the two.")

    async def work(api: Api) -> int:
        found = await api.acall(partial(find_sweep, given=sweep))
        retried = await retry_trials(api, found.id, trial or None)
        again = ", ".join(map(str, retried.numbers))
        many = len(retried.numbers) > 1
        typer.echo(f"Trial{'s' if many else ''} {again} run{'' if many else 's'} again.", err=json)
        if retried.resumed_by is not None:
            return await _go_on(api, found, retried.resumed_by, as_json=json, trials=list(retried.numbers))
        if json:
            print_json({"id": str(found.id), "resumed_by": None, "trials": list(retried.numbers)})
        return 0

    code = asyncio.run(work(connected()))
    if code:
        raise typer.Exit(code)


@app.command(epilog=examples("prefect-launch sweep stop 1f2e3d4c"))
def stop(sweep: SweepId) -> None:
    """Stop a sweep: cancel its trials, and wait until their agents have ended them."""
    import asyncio

    from prefect_launch.sweeps.control import stop_sweep
    from prefect_launch.sweeps.sweep_run import find_sweep

    async def work(api: Api) -> None:
        found = await api.acall(partial(find_sweep, given=sweep))
        await stop_sweep(api, found.id, lambda line: typer.echo(printable(line)))
        typer.echo(f"The sweep {name_and_id(found)} is stopped.")

    asyncio.run(work(connected()))


def _command(config: SweepConfig, preview: Preview) -> str | None:
    """Return the command, or the arguments, of the first trial; variables stay as they are written."""
    import shlex

    from prefect_launch.sweeps.command import variables_of

    variables = {name: f"${{envvar:{name}}}" for name in variables_of(config.command or ())}
    overrides = config.trial_overrides(preview.samples[0], variables)
    if "args" in overrides:
        return f"the job's own {shlex.join(overrides['args'])}"
    return shlex.join(overrides["entry_point"]) if "entry_point" in overrides else None


def _as_json(config: SweepConfig, preview: Preview) -> dict[str, Any]:
    return {
        "method": config.method,
        "sampler": config.sampler,
        "metric": config.objective.model_dump() if config.objective else None,
        "points": _INFINITE if preview.points is None else preview.points,
        "trials": preview.trials,
        "num_workers": config.scheduler.num_workers,
        "command": _command(config, preview),
        "samples": preview.samples,
        "warnings": preview.warnings,
    }
