"""Commands `prefect-launch job`: create, show and deploy jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_launch.cli.job import input_rows, job_fields, retries_of, source, summary_fields, work_tree
from prefect_launch.cli.options import (
    EntityOption,
    JsonOption,
    ProjectOption,
    RetriesOption,
    examples,
    flattened,
    group,
    read_retries,
)
from prefect_launch.cli.output import Column, ago, at, print_details, print_json, print_table
from prefect_launch.cli.process import connected

if TYPE_CHECKING:
    from prefect_launch.client.create_job import JobRequest


NameOption = Annotated[
    str | None, typer.Option("-n", "--name", metavar="NAME", help="The job's name. Default: job-… from its source.")
]
EntryPointOption = Annotated[
    str | None, typer.Option("-E", "--entry-point", metavar="COMMAND", help='The command, such as "python train.py".')
]
RefOption = Annotated[
    str | None,
    typer.Option("-g", "--git-ref", metavar="REF", help="Branch, tag or commit. Default: the main branch."),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option(
        "-a", "--alias", metavar="ALIAS", help="Another name for this version besides 'latest'. Repeat for more."
    ),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="SCHEMA",
        help="Schema of the inputs: a JSON schema file, or module:Class in the code.",
    ),
]
DescriptionOption = Annotated[
    str | None, typer.Option("-d", "--description", metavar="TEXT", help="Description of the job.")
]
RuntimeOption = Annotated[
    str | None, typer.Option("-r", "--runtime", metavar="PYTHON", help='Python version, such as "3.11".')
]
BaseImageOption = Annotated[
    str | None,
    typer.Option("-B", "--base-image", metavar="IMAGE", help="Image to run the code in; no image is built then."),
]
DockerfileOption = Annotated[
    str | None,
    typer.Option("-D", "--dockerfile", metavar="PATH", help="The job's own Dockerfile, in the build context."),
]
BuildContextOption = Annotated[
    str | None,
    typer.Option("-b", "--build-context", metavar="DIR", help="Folder of the code that is the build context."),
]


@dataclass(frozen=True)
class JobOptions:
    """Options of `job create`, in the order of the help."""

    name: NameOption = None
    entry_point: EntryPointOption = None
    git_hash: RefOption = None
    aliases: AliasOption = None
    input_schema: SchemaOption = None
    description: DescriptionOption = None
    retries: RetriesOption = None
    runtime: RuntimeOption = None
    base_image: BaseImageOption = None
    dockerfile: DockerfileOption = None
    build_context: BuildContextOption = None
    entity: EntityOption = None
    project: ProjectOption = None

    def request(self, path: str, kind: str) -> JobRequest:
        """Return the request that the options describe.

        Args:
            path: of the job: an image, a folder, or a repository.
            kind: `image`, `code` or `git`.

        Raises:
            SpecError: when a value cannot be read.
        """
        from prefect_launch.client.create_job import JobRequest
        from prefect_launch.jobs.code_checks import parse_entry_point
        from prefect_launch.spec.scheduling import parse_retries

        given: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        given["entrypoint"] = parse_entry_point(given.pop("entry_point", None))
        if self.retries is not None:
            given["retries"] = parse_retries(read_retries(self.retries))
        return JobRequest(path=path, job_type=kind, **given)


app = group("Create, show and deploy jobs.")
create_app = group("Create a job from an image, a folder of code, or a git repository.")
app.add_typer(create_app, name="create")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="entity/project/name:alias, or a shorter form.")]
_COLUMNS = (
    Column("JOB", gives_way=True),
    Column("KIND"),
    Column("VERSION", right=True),
    Column("ALIASES", gives_way=True),
    Column("CHANGED", right=True),
    Column("DESCRIPTION", gives_way=True),
)


@create_app.command("image", epilog=examples("prefect-launch job create image team/train:1.2 -n train"))
@flattened("git_hash", "runtime", "base_image", "dockerfile", "build_context")
def create_image(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image, such as team/train:1.2.")],
    options: JobOptions,
    json: JsonOption = False,
) -> None:
    """Create a job from a container image."""
    _create(options.request(image, "image"), json)


@create_app.command(
    "code", epilog=examples('prefect-launch job create code examples/digits -n digits -E "python train.py"')
)
@flattened("git_hash")
def create_code(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of code.")],
    options: JobOptions,
    json: JsonOption = False,
) -> None:
    """Create a job from a folder of code; .launchignore and .gitignore exclude files."""
    _create(options.request(folder, "code"), json)


@create_app.command(
    "git",
    epilog=examples('prefect-launch job create git https://github.com/team/train.git -g v1.2 -E "python train.py"'),
)
@flattened()
def create_git(
    url: Annotated[str, typer.Argument(metavar="URL", help="The repository: https, ssh, or git@host:path.")],
    options: JobOptions,
    json: JsonOption = False,
) -> None:
    """Create a job from a commit of a git repository."""
    _create(options.request(url, "git"), json)


def _create(request: JobRequest, as_json: bool) -> None:
    api = connected()
    from prefect_launch.client.create_job import create_in

    result = api.call(lambda session: create_in(session.jobs, request))
    if as_json:
        print_json({"outcome": result.outcome.name.lower(), **job_fields(result.job, result.job.aliases)})
        return
    typer.echo(f"{result.outcome.value} job: {result.job.reference}, with aliases: {', '.join(result.job.aliases)}")


@app.command("list")
def list_(entity: EntityOption = None, project: ProjectOption = None, json: JsonOption = False) -> None:
    """List the jobs, all or of one entity or project."""
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
    print_table(_COLUMNS, rows, empty="There is no job yet. Create one with: prefect-launch job create code DIR")


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
            ("work tree", work_tree(found)),
            ("built from", found.metadata.get("built_from")),
            ("entry point", " ".join(found.entry_point)),
            ("Python", found.runtime),
            ("description", found.description),
            ("retries", retries_of(found)),
            ("created", at(found.created_at)),
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


@app.command(epilog=examples("prefect-launch job deploy digits -q gpu"))
def deploy(
    job: JobName,
    queue: Annotated[str, typer.Option("-q", "--queue", metavar="QUEUE", help="The queue for the job's runs.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The deployment's name. Default: the job's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a job a deployment: start it from the UI, by a schedule, or with 'prefect deployment run'."""
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
