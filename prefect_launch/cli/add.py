"""`prefect-launch add` and `prefect-launch run`: the same request, for a queue or for here and now."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_launch.cli.connect import connected
from prefect_launch.cli.request import Request
from prefect_launch.cli.style import ConfigOption, JsonOption, RetriesOption, examples

JobOption = Annotated[
    str | None,
    typer.Option("-j", "--job", metavar="JOB", help="The job: entity/project/name:alias, or a shorter form."),
]
ImageOption = Annotated[
    str | None, typer.Option("-d", "--docker-image", metavar="IMAGE", help="An image to run as it is.")
]
UriOption = Annotated[
    str | None, typer.Option("-u", "--uri", metavar="URI", help="A git repository: https, ssh, or git@host:path.")
]
RefOption = Annotated[
    str | None,
    typer.Option(
        "-g", "--git-ref", metavar="REF", help="The repository's branch, tag or commit. Default: its main branch."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="INPUT=VALUE", help="An input of the job; a.b=1 sets b in the group a. Repeat for more."
    ),
]
EntryPointOption = Annotated[
    str | None,
    typer.Option("-E", "--entry-point", metavar="COMMAND", help="The command that takes the place of the job's."),
]
NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="The run's display name.")]
RunIdOption = Annotated[
    str | None,
    typer.Option(
        "--run-id", metavar="ID", help="A name for the run, for good. Adding the same again gives the same item."
    ),
]
ResourceOption = Annotated[
    str | None, typer.Option("-r", "--resource", metavar="RESOURCE", help="What it runs on, such as local-container.")
]
ResourceArgsOption = Annotated[
    str | None,
    typer.Option("-R", "--resource-args", metavar="ARGS", help="The resource's options: JSON, YAML, or a file of it."),
]
TargetEntity = Annotated[
    str | None, typer.Option("-e", "--entity", metavar="ENTITY", help="The run's entity. Default: the job's.")
]
TargetProject = Annotated[
    str | None, typer.Option("-p", "--project", metavar="PROJECT", help="The run's project. Default: the job's.")
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="How long it may run: seconds, or 45min, 2h, 1h30m. Default: no limit."
    ),
]

ADD_EXAMPLES = examples(
    "prefect-launch add -j job-digits -q gpu --set epochs=3 --set optimizer.lr=0.01 -P high",
    "prefect-launch add -d team/train:1.2 -q box -v memory=4g --wait",
    'prefect-launch add -u https://github.com/team/train -g v1.2 -E "python train.py" -q gpu',
    "prefect-launch add -j job-digits -q gpu --build --repository registry.example:5000/team/digits",
    "prefect-launch add -q gpu -c launch-config.yaml",
    "prefect-launch add -j job-digits -q gpu --explain",
)
RUN_EXAMPLES = examples(
    "prefect-launch run -j job-digits --set epochs=3",
    'prefect-launch run -d alpine -E \'echo hello\' -R \'{"local-container": {"memory": "1g"}}\'',
)


def add(
    job: JobOption = None,
    docker_image: ImageOption = None,
    uri: UriOption = None,
    git_ref: RefOption = None,
    queue: Annotated[
        str | None,
        typer.Option("-q", "--queue", metavar="QUEUE", help="The queue. Default: 'default', made on first use."),
    ] = None,
    config: ConfigOption = None,
    inputs: SetOption = None,
    variables: Annotated[
        list[str] | None,
        typer.Option(
            "-v", "--template-variable", metavar="VAR=VALUE", help="A template variable of the queue. Repeat."
        ),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(
            "-P", "--priority", metavar="PRIORITY", help="critical, high, medium or low; or 1 to 4. Default: medium."
        ),
    ] = None,
    entry_point: EntryPointOption = None,
    name: NameOption = None,
    run_id: RunIdOption = None,
    resource: ResourceOption = None,
    resource_args: ResourceArgsOption = None,
    entity: TargetEntity = None,
    project: TargetProject = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = None,
    build: Annotated[
        bool,
        typer.Option(
            "-b", "--build", metavar="", help="Build the image of the job's code here, push it, and queue that."
        ),
    ] = False,
    repository: Annotated[
        str | None,
        typer.Option(
            "--repository", metavar="REPOSITORY", help="Where it is pushed: registry.example:5000/team/train."
        ),
    ] = None,
    pin: Annotated[
        bool | None,
        typer.Option(
            "--pin/--no-pin", metavar="", help="Run the image that its tag means now, whenever that is; or then."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", metavar="", help="Print its log until it ends; exit with 1 when it fails.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", metavar="", help="Queue nothing: tell what would run, where, and when.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put a job on a queue: exactly one of --job, --docker-image and --uri."""
    from prefect_launch.cli.launching import add_to_queue, explain_add
    from prefect_launch.queues import DEFAULT_QUEUE

    request = Request(
        job=job,
        docker_image=docker_image,
        uri=uri,
        git_ref=git_ref,
        config=config,
        inputs=tuple(inputs or ()),
        variables=tuple(variables or ()),
        entry_point=entry_point,
        name=name,
        run_id=run_id,
        resource=resource,
        resource_args=resource_args,
        entity=entity,
        project=project,
        timeout=timeout,
        retries=retries,
        build=build,
        pin=pin,
        repository=repository,
    )
    if explain:
        explain_add(connected(), request, queue or DEFAULT_QUEUE, priority=priority, as_json=json)
        return
    add_to_queue(connected(), request, queue, priority=priority, wait=wait, as_json=json)


def run(
    job: JobOption = None,
    docker_image: ImageOption = None,
    uri: UriOption = None,
    git_ref: RefOption = None,
    config: ConfigOption = None,
    inputs: SetOption = None,
    entry_point: EntryPointOption = None,
    name: NameOption = None,
    run_id: RunIdOption = None,
    resource: ResourceOption = None,
    resource_args: ResourceArgsOption = None,
    entity: TargetEntity = None,
    project: TargetProject = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", metavar="", help="Print Prefect's own log lines too.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a job here and now, without a queue; exit with 1 when it fails."""
    from prefect_launch.cli.launching import run_here

    request = Request(
        job=job,
        docker_image=docker_image,
        uri=uri,
        git_ref=git_ref,
        config=config,
        inputs=tuple(inputs or ()),
        entry_point=entry_point,
        name=name,
        run_id=run_id,
        resource=resource,
        resource_args=resource_args,
        entity=entity,
        project=project,
        timeout=timeout,
        retries=retries,
    )
    run_here(connected(verbose=verbose), request, as_json=json)
