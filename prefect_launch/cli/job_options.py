"""The options of the commands that make a job, and the job that they ask for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_launch.cli.style import EntityOption, ProjectOption, RetriesOption
from prefect_launch.cli.values import read_retries

if TYPE_CHECKING:
    from prefect_launch.client.job_drafts import JobRequest

NameOption = Annotated[
    str | None, typer.Option("-n", "--name", metavar="NAME", help="The job's name. Default: job-… from its source.")
]
EntryPointOption = Annotated[
    str | None, typer.Option("-E", "--entry-point", metavar="COMMAND", help='Its command, such as "python train.py".')
]
RefOption = Annotated[
    str | None,
    typer.Option("-g", "--git-ref", metavar="REF", help="Branch, tag or commit. Default: its main branch."),
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


@dataclass(frozen=True)
class JobOptions:
    """The options as they were written, in the order of the help."""

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
        """Return what is asked for.

        Args:
            path: of the job: an image, a folder, or a repository.
            kind: `image`, `code` or `git`.

        Raises:
            SpecError: when a value cannot be read.
        """
        from prefect_launch.client.job_drafts import JobRequest
        from prefect_launch.jobs.code_checks import parse_entry_point
        from prefect_launch.spec.retry import parse_retries

        given: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        given["entrypoint"] = parse_entry_point(given.pop("entry_point", None))
        if self.retries is not None:
            given["retries"] = parse_retries(read_retries(self.retries))
        return JobRequest(path=path, job_type=kind, **given)
