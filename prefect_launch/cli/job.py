"""`prefect-launch job`: make, look at and deploy jobs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prefect_launch.cli.connect import connected
from prefect_launch.cli.job_view import input_rows, job_fields, retries_of, source, summary_fields
from prefect_launch.cli.output import Column, ago, local_time, print_details, print_json, print_table
from prefect_launch.cli.style import EntityOption, JsonOption, ProjectOption, RetriesOption, examples, group
from prefect_launch.cli.values import read_retries

app = group("Make, look at and deploy jobs.")
create_app = group("Make a job of an image, a folder of code, or a git repository.")
app.add_typer(create_app, name="create")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="entity/project/name:alias, or a shorter form.")]
NameOption = Annotated[
    str | None, typer.Option("-n", "--name", metavar="NAME", help="The job's name. Default: job-… from its source.")
]
EntryPointOption = Annotated[
    str | None, typer.Option("-E", "--entry-point", metavar="COMMAND", help='Its command, such as "python train.py".')
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option("-a", "--alias", metavar="ALIAS", help="A name for this version, beside 'latest'. Repeat for more."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="SCHEMA",
        help="What its inputs must obey: a JSON schema's file, or module:Class in its code.",
    ),
]
DescriptionOption = Annotated[
    str | None, typer.Option("-d", "--description", metavar="TEXT", help="A text for people.")
]
RuntimeOption = Annotated[
    str | None, typer.Option("-r", "--runtime", metavar="PYTHON", help='The Python it wants, such as "3.11".')
]
BaseImageOption = Annotated[
    str | None,
    typer.Option("-B", "--base-image", metavar="IMAGE", help="An image that its code runs in; nothing is built then."),
]
DockerfileOption = Annotated[
    str | None,
    typer.Option("-D", "--dockerfile", metavar="PATH", help="Its own Dockerfile, in the build context."),
]
BuildContextOption = Annotated[
    str | None,
    typer.Option("-b", "--build-context", metavar="DIR", help="The folder of its code that the image is built in."),
]
_Given = dict[str, Any]
_COLUMNS = (
    Column("JOB", gives_way=True),
    Column("KIND"),
    Column("VERSION", right=True),
    Column("ALIASES", gives_way=True),
    Column("CHANGED", right=True),
    Column("DESCRIPTION", gives_way=True),
)


@create_app.command("image", epilog=examples("prefect-launch job create image team/train:1.2 -n train"))
def create_image(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image, such as team/train:1.2.")],
    name: NameOption = None,
    entry_point: EntryPointOption = None,
    alias: AliasOption = None,
    schema: SchemaOption = None,
    description: DescriptionOption = None,
    retries: RetriesOption = None,
    entity: EntityOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Make a job of a container image."""
    given: _Given = {"name": name, "aliases": alias, "description": description, "entity": entity, "project": project}
    _create(image, "image", json, entry_point=entry_point, input_schema=schema, retries=retries, **given)


@create_app.command("code", epilog=examples('prefect-launch job create code ./digits -E "python train.py"'))
def create_code(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of its code.")],
    name: NameOption = None,
    entry_point: EntryPointOption = None,
    alias: AliasOption = None,
    schema: SchemaOption = None,
    description: DescriptionOption = None,
    retries: RetriesOption = None,
    runtime: RuntimeOption = None,
    base_image: BaseImageOption = None,
    dockerfile: DockerfileOption = None,
    build_context: BuildContextOption = None,
    entity: EntityOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Make a job of a folder of code; .launchignore and .gitignore keep files out."""
    given: _Given = {"name": name, "aliases": alias, "description": description, "entity": entity, "project": project}
    image: _Given = {
        "base_image": base_image,
        "dockerfile": dockerfile,
        "build_context": build_context,
        "runtime": runtime,
    }
    _create(folder, "code", json, entry_point=entry_point, input_schema=schema, retries=retries, **image, **given)


@create_app.command(
    "git",
    epilog=examples('prefect-launch job create git https://github.com/team/train.git -g v1.2 -E "python train.py"'),
)
def create_git(
    url: Annotated[str, typer.Argument(metavar="URL", help="The repository: https, ssh, or git@host:path.")],
    name: NameOption = None,
    entry_point: EntryPointOption = None,
    ref: Annotated[
        str | None,
        typer.Option("-g", "--git-ref", metavar="REF", help="Branch, tag or commit. Default: its main branch."),
    ] = None,
    alias: AliasOption = None,
    schema: SchemaOption = None,
    description: DescriptionOption = None,
    retries: RetriesOption = None,
    runtime: RuntimeOption = None,
    base_image: BaseImageOption = None,
    dockerfile: DockerfileOption = None,
    build_context: BuildContextOption = None,
    entity: EntityOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Make a job of a commit of a git repository."""
    given: _Given = {"name": name, "aliases": alias, "description": description, "entity": entity, "project": project}
    image: _Given = {
        "base_image": base_image,
        "dockerfile": dockerfile,
        "build_context": build_context,
        "runtime": runtime,
    }
    code: _Given = {"entry_point": entry_point, "git_hash": ref, **image}
    _create(url, "git", json, input_schema=schema, retries=retries, **code, **given)


def _create(path: str, kind: str, as_json: bool, *, entry_point: str | None, retries: str | None, **given: Any) -> None:
    rule = None if retries is None else read_retries(retries)
    api = connected()
    from prefect_launch.jobs.create import create_in
    from prefect_launch.jobs.drafts import JobRequest
    from prefect_launch.jobs.entrypoint import parse_entry_point
    from prefect_launch.retry import parse_retries

    request = JobRequest(
        path=path,
        job_type=kind,
        entrypoint=parse_entry_point(entry_point),
        retries=None if rule is None else parse_retries(rule),
        **{key: value for key, value in given.items() if value is not None},
    )
    result = api.call(lambda session: create_in(session.jobs, request))
    if as_json:
        print_json({"outcome": result.outcome.name.lower(), **job_fields(result.job, result.job.aliases)})
        return
    typer.echo(f"{result.outcome.value} job: {result.job.reference}, with aliases: {', '.join(result.job.aliases)}")


@app.command("list")
def list_(entity: EntityOption = None, project: ProjectOption = None, json: JsonOption = False) -> None:
    """List the jobs, of one entity or project if you say so."""
    jobs = connected().jobs(entity, project)
    if json:
        print_json([summary_fields(job) for job in jobs])
        return
    rows = [
        (
            job.path,
            job.kind.name.lower(),
            f"v{job.latest_version}",
            ", ".join(job.aliases),
            ago(job.updated_at),
            job.description,
        )
        for job in jobs
    ]
    print_table(_COLUMNS, rows, empty="No job yet. Make one with: prefect-launch job create code DIR")


@app.command()
def describe(job: JobName, json: JsonOption = False) -> None:
    """Show a job: what it runs, and its inputs."""
    api = connected()
    found = api.job(job)
    aliases = api.job_aliases(found)
    if json:
        print_json(job_fields(found, aliases))
        return
    print_details(
        [
            ("job", found.path),
            ("version", f"v{found.version}"),
            ("aliases", ", ".join(aliases)),
            ("kind", found.kind.name.lower()),
            ("source", source(found)),
            ("entry point", " ".join(found.entry_point)),
            ("Python", found.runtime),
            ("description", found.description),
            ("retries", retries_of(found)),
            ("created", local_time(found.created_at)),
            ("digest", found.digest),
        ]
    )
    rows = list(input_rows(found.schema or {}))
    if rows:
        typer.echo()
        print_table(
            (Column("INPUT"), Column("TYPE"), Column("DEFAULT", gives_way=True), Column("RULE", gives_way=True)),
            rows,
            empty="",
        )


@app.command(epilog=examples("prefect-launch job deploy job-digits -q gpu"))
def deploy(
    job: JobName,
    queue: Annotated[str, typer.Option("-q", "--queue", metavar="QUEUE", help="The queue that its runs go to.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The deployment's name. Default: the job's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Let people start a job from the UI, by a schedule, or with 'prefect deployment run'."""
    api = connected()
    found, deployment_id, made = api.deploy_job(job, queue, name=name)
    url = f"{api.ui_url}/deployments/deployment/{deployment_id}"
    command = f"prefect deployment run launch/{made}"
    if json:
        fields = {"id": deployment_id, "name": f"launch/{made}", "job": found.reference, "queue": queue}
        print_json({**fields, "url": url, "command": command})
        return
    typer.echo(f"The deployment launch/{made} starts {found.reference} on the queue {queue}: {url}")
    example = next((f" -p {key}=…" for key in (found.schema or {}).get("properties") or ()), "")
    typer.echo(f"Start it there, or with: {command}{example}")
