"""Commands `prefect-launch job`: create, show and deploy jobs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, field, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from prefect_launch.cli.options import (
    ArgsArgument,
    EntityOption,
    JsonOption,
    PassesArgs,
    ProjectOption,
    RetriesOption,
    examples,
    flattened,
    group,
    read_retries,
    split_assignment,
)
from prefect_launch.cli.output import Column, ago, at, print_details, print_json, print_table
from prefect_launch.cli.process import connected
from prefect_launch.errors import SpecError

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job, JobSummary


def _option(*flags: str, metavar: str, text: str) -> Any:
    return Annotated[str | None, typer.Option(*flags, metavar=metavar, help=text)]


#: Options of `job create`, in the order of the help, by the fields of a `JobRequest`.
_OPTIONS: Final[dict[str, Any]] = {
    "name": _option("-n", "--name", metavar="NAME", text="The job's name. Default: job-… from its source."),
    "entrypoint": _option("-E", "--entry-point", metavar="COMMAND", text='The command, such as "python train.py".'),
    "git_hash": _option("-g", "--git-ref", metavar="REF", text="Branch, tag or commit. Default: the main branch."),
    "aliases": Annotated[
        list[str] | None,
        typer.Option(
            "-a", "--alias", metavar="ALIAS", help="Another name for this version besides 'latest'. Repeat for more."
        ),
    ],
    "input_schema": _option(
        "--schema", metavar="SCHEMA", text="Schema of the inputs: a JSON schema file, or module:Class in the code."
    ),
    "inputs_as": _option(
        "--inputs-as",
        metavar="WAY",
        text="How the program gets its inputs besides $LAUNCH_CONFIG: args, jsonargparse, hydra, env. Default: json.",
    ),
    "inputs_from": _option(
        "--inputs-from",
        metavar="PARSER",
        text="Read the schema from the script, without running it: argparse. The inputs are then given as args.",
    ),
    "description": _option("-d", "--description", metavar="TEXT", text="Description of the job."),
    "retries": RetriesOption,
    "keep": Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="PATTERN",
            help="Files that a run writes beside its code and that are kept: 'checkpoints/**'. Repeat for more.",
        ),
    ],
    "runtime": _option("-r", "--runtime", metavar="PYTHON", text='Python version, such as "3.11".'),
    "base_image": _option(
        "-B", "--base-image", metavar="IMAGE", text="Image to run the code in; no image is built then."
    ),
    "install": Annotated[
        list[str] | None,
        typer.Option(
            "--install",
            metavar="REQUIREMENT",
            help="What to install in place of the code's requirements: a line of a requirements file, such as"
            " '-r requirements/train.txt'. Repeat for more.",
        ),
    ],
    "dockerfile": _option("-D", "--dockerfile", metavar="PATH", text="The job's own Dockerfile, in the build context."),
    "build_context": _option(
        "-b", "--build-context", metavar="DIR", text="Folder of the code that is the build context."
    ),
    # W&B's; it is refused with the reason.
    "services": Annotated[list[str] | None, typer.Option("-s", "--service", metavar="NAME=WHEN", hidden=True)],
    "entity": EntityOption,
    "project": ProjectOption,
    "args": ArgsArgument,
}

if TYPE_CHECKING:

    class JobOptions:
        """Options of `job create`."""
else:
    JobOptions = make_dataclass("JobOptions", [(name, kind, field(default=None)) for name, kind in _OPTIONS.items()])


app = group("Create, show, deploy and delete jobs.")
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


@create_app.command("image", cls=PassesArgs, epilog=examples("prefect-launch job create image team/train:1.2 -n train"))
@flattened("git_hash", "runtime", "base_image", "install", "dockerfile", "build_context", "keep", "inputs_from")
def create_image(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image, such as team/train:1.2.")],
    options: JobOptions,
    json: JsonOption = False,
) -> None:
    """Create a job from a container image."""
    _create(image, "image", options, json)


@create_app.command(
    "code",
    cls=PassesArgs,
    epilog=examples(
        'prefect-launch job create code examples/digits -n digits -E "python train.py"',
        'prefect-launch job create code . -n train -E "python train.py" -- --data big',
    ),
)
@flattened("git_hash")
def create_code(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder of code.")],
    options: JobOptions,
    json: JsonOption = False,
) -> None:
    """Create a job from a folder of code; .launchignore and .gitignore exclude files."""
    _create(folder, "code", options, json)


@create_app.command(
    "git",
    cls=PassesArgs,
    epilog=examples('prefect-launch job create git https://github.com/team/train.git -g v1.2 -E "python train.py"'),
)
@flattened()
def create_git(
    url: Annotated[str, typer.Argument(metavar="URL", help="The repository: https, ssh, or git@host:path.")],
    options: JobOptions,
    json: JsonOption = False,
) -> None:
    """Create a job from a commit of a git repository."""
    _create(url, "git", options, json)


def _create(path: str, kind: str, options: Any, as_json: bool) -> None:
    api = connected()
    from prefect_launch.client.create_job import JobRequest, create_in
    from prefect_launch.jobs.code_checks import parse_entry_point

    given = {name: value for name, value in vars(options).items() if value is not None}
    args = given.pop("args", ())
    given["entrypoint"] = parse_entry_point(given.get("entrypoint"))
    if args and not given["entrypoint"]:
        raise SpecError(
            f"The arguments {shlex.join(args)!r} follow the job's entry point, which is not given. Give it with -E,"
            ' such as -E "python train.py".'
        )
    given["entrypoint"] += tuple(args)
    if "retries" in given:
        given["retries"] = read_retries(given["retries"])
    if "services" in given:
        given["services"] = dict(split_assignment(each, "--service") for each in given["services"])
    request = JobRequest(path=path, job_type=kind, **given)
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
@app.command("describe", hidden=True)  # W&B's word.
def show(job: JobName, json: JsonOption = False) -> None:
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
            ("base image", found.base_image),
            ("Dockerfile", found.dockerfile),
            ("context", found.build_context),
            ("entry point", shlex.join(found.entry_point) or ("the image's own" if found.dockerfile else "")),
            ("inputs as", "" if found.inputs_as == "json" else found.inputs_as),
            ("installs", ", ".join(found.install)),
            ("Python", found.runtime),
            ("description", found.description),
            ("retries", retries_of(found)),
            ("keep", ", ".join(found.document.keep or ())),
            ("created", at(found.created_at)),
            ("digest", found.digest),
        ]
    )
    rows = list(input_rows(found.schema or {}))
    if rows:
        typer.echo()
        print_table(
            (Column("INPUT"), Column("TYPE"), Column("DEFAULT", gives_way=True), Column("MEANING", wraps=True)),
            rows,
            empty="",
        )


@app.command(epilog=examples("prefect-launch job delete digits:v0"))
def delete(
    job: Annotated[
        str,
        typer.Argument(metavar="JOB", help="The job, with all its versions; or one: JOB:v3, JOB:ALIAS."),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar="",
            help="Also while items that wait name it: an agent without a copy of the job fails them.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Delete a job, or one version of it."""
    deleted = connected().delete_job(job, force=force)
    if json:
        print_json(asdict(deleted))
        return
    aliases = f", with the aliases {', '.join(deleted.aliases)}" if deleted.aliases else ""
    typer.echo(f"Deleted {', '.join(deleted.versions)} of the job {deleted.path}{aliases}.")
    if deleted.waiting:
        waiting = f"Items that wait for it: {deleted.waiting}."
        typer.echo(f"{waiting} An agent without a copy of the job fails them.", err=True)


@app.command(
    epilog=examples("prefect-launch job alias digits:v3 best", "prefect-launch job alias digits best --delete")
)
def alias(
    job: JobName,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")],
    delete: Annotated[
        bool, typer.Option("--delete", metavar="", help="Delete the alias; the version that it means stays.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Point an alias to a version of a job, or delete one."""
    api = connected()
    path = api.delete_job_alias(job, name) if delete else None
    reference = None if delete else api.set_job_alias(job, name).reference
    if json:
        print_json({"job": path or reference, "alias": name, "deleted": delete})
        return
    typer.echo(f"The job {path} has no alias {name} any more." if delete else f"{name} means {reference} now.")


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


#: Rules of JSON Schema, in words.
_RULES: Final = {
    "enum": "one of",
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "pattern": "matches",
    "format": "format",
}

#: Uncommitted files that are shown; `--json` has more.
_SHOWN_CHANGES = 5


def source(job: Job) -> str:
    """Return where a job's code or image comes from."""
    source = job.document.source.model_dump(mode="json", exclude_none=True)
    git = source.get("git")
    return f"{git['remote']} at {git['commit'][:12]}" if git else str(source.get("image") or "its own code archive")


def work_tree(job: Job) -> str | None:
    """Return the commit of a folder of code, and its uncommitted files."""
    git = job.metadata.get("git")
    if not git:
        return None
    commit = f"{git['remote'] or 'a repository without a remote'} at {git['commit'][:12]}"
    if not git.get("dirty"):
        return commit
    changed = [str(line).strip() for line in git.get("changed", ())]
    count = git.get("changed_count", len(changed))
    shown = ", ".join(changed[:_SHOWN_CHANGES])
    return f"{commit}, {count} not committed: {shown}{', …' if count > _SHOWN_CHANGES else ''}"


def input_rows(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Return a row of each input: its name, type, default, and meaning with its rules."""
    from prefect_launch.jobs.schema import inputs_in_order

    required = set(schema.get("required") or ())
    for name, each in inputs_in_order(schema).items():
        if each.get("properties"):
            yield from input_rows(each, f"{prefix}{name}.")
            continue
        rules = [f"{words} {_listed(each[rule])}" for rule, words in _RULES.items() if rule in each]
        shown = "required" if name in required and "default" not in each else _text(each.get("default"))
        yield (
            f"{prefix}{name}",
            each.get("type", "any"),
            shown,
            "; ".join(filter(None, (str(each.get("description") or "").rstrip("."), *rules))),
        )


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def retries_of(job: Job) -> dict[str, Any] | None:
    """Return a job's own retry rule, as it was written."""
    rule = job.document.retries
    return None if rule is None else rule.model_dump(mode="json", exclude_unset=True)


def job_fields(job: Job, aliases: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a job, for programs."""
    return {
        "job": job.reference,
        "entity": job.entity,
        "project": job.project,
        "name": job.name,
        "version": job.version,
        "aliases": list(aliases),
        "kind": job.kind.name.lower(),
        "source": job.document.source.model_dump(mode="json", exclude_none=True),
        "entry_point": list(job.entry_point),
        "runtime": job.runtime,
        "description": job.description,
        "schema": job.schema,
        "inputs_as": job.inputs_as,
        "retries": retries_of(job),
        "keep": list(job.document.keep or ()),
        "metadata": job.metadata,
        "digest": job.digest,
        "created": job.created_at,
    }


def summary_fields(job: JobSummary) -> dict[str, Any]:
    """Return the fields of a job in a list, for programs."""
    return {
        "job": job.path,
        "entity": job.entity,
        "project": job.project,
        "name": job.name,
        "kind": job.kind.name.lower(),
        "latest_version": job.latest_version,
        "versions": job.version_count,
        "aliases": list(job.aliases),
        "description": job.description,
        "updated": job.updated_at,
    }
