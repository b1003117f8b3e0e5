"""Command `prefect-launch launch-sweep`: `sweep create` and `sweep resume` under the names of W&B's command."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_launch.cli.options import JsonOption, examples, single
from prefect_launch.cli.process import connected
from prefect_launch.cli.sweep import TrialEntity, TrialProject, TrialQueue, create_sweep, parameters_of, resume_and_run

if TYPE_CHECKING:
    from prefect_launch.client.api import Api

app = single()


@app.command(
    "launch-sweep",
    epilog=examples("prefect-launch launch-sweep sweep.yaml -q gpu", "prefect-launch launch-sweep -r 1f2e3d4c"),
)
def launch_sweep(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A sweep file: YAML or JSON, with its job and its launch and scheduler."),
    ] = None,
    queue: TrialQueue = None,
    project: TrialProject = None,
    entity: TrialEntity = None,
    resume_id: Annotated[
        str | None,
        typer.Option(
            *("-r", "--resume_id", "--resume-id"),
            metavar="SWEEP",
            help="Continue this sweep, as 'sweep resume' does. Options win, and so do launch.queue, job, image_uri,"
            " num_workers and run_cap of the file.",
        ),
    ] = None,
    prior_run: Annotated[
        list[str] | None,
        typer.Option(
            *("-R", "--prior_run", "--prior-run"),
            metavar="ID",
            help="An earlier sweep, or an item, that the sampler learns from. Repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put a sweep on a queue, for an agent to run: 'sweep create' under the names of W&B's command."""
    from prefect_launch.errors import SpecError

    api = connected()
    given = parameters_of(api, prior_run, queue=queue, project=project, entity=entity)
    if resume_id is not None:
        wanted = {**(_of_file(api, file, resume_id) if file is not None else {}), **given}
        raise typer.Exit(asyncio.run(resume_and_run(api, resume_id, wanted, as_json=json)))
    if file is None:
        raise SpecError("Give a sweep file, or --resume_id with the sweep to continue, or both.")
    create_sweep(api, file, given, as_json=json)


def _of_file(api: Api, file: str, sweep: str) -> dict[str, Any]:
    """Return what a file gives to a resumed sweep: where and how its trials run, not what they try.

    Raises:
        SpecError: when the file tries something else.
    """
    from prefect_launch.errors import SpecError
    from prefect_launch.sweeps.config import parse_sweep
    from prefect_launch.sweeps.sweep_file import read_sweep_file
    from prefect_launch.sweeps.sweep_run import config_of, find_sweep

    config = parse_sweep(read_sweep_file(file))
    own = config_of(api.call(lambda session: find_sweep(session, sweep)))
    for name in ("method", "parameters", "metric", "sampler", "seed"):
        if getattr(config, name) != getattr(own, name):
            raise SpecError(
                f"The sweep {sweep!r} continues with its own {name}, and the {name} of {file!r} differ from that. Begin"
                " a new sweep for them, or leave the file out."
            )
    workers = config.scheduler.num_workers if "num_workers" in config.scheduler.model_fields_set else None
    job = config.job or config.launch.config.get("job")
    where = {"queue": config.launch.queue, "docker_image": config.image_uri, "job": job, "run_cap": config.run_cap}
    return parameters_of(api, None, **where, num_workers=workers)
