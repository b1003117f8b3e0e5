"""The options of `add` and `run`: what runs, with what, and on which queue."""

from __future__ import annotations

from typing import Annotated

import typer

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
QueueOption = Annotated[
    str | None,
    typer.Option("-q", "--queue", metavar="QUEUE", help="The queue. Default: 'default', made on first use."),
]
VariablesOption = Annotated[
    list[str] | None,
    typer.Option("-v", "--template-variable", metavar="VAR=VALUE", help="A template variable of the queue. Repeat."),
]
PriorityOption = Annotated[
    str | None,
    typer.Option(
        "-P", "--priority", metavar="PRIORITY", help="critical, high, medium or low; or 1 to 4. Default: medium."
    ),
]
BuildOption = Annotated[
    bool,
    typer.Option("-b", "--build", metavar="", help="Build the image of the job's code here, push it, and queue that."),
]
RepositoryOption = Annotated[
    str | None,
    typer.Option("--repository", metavar="REPOSITORY", help="Where it is pushed: registry.example:5000/team/train."),
]
PinOption = Annotated[
    bool | None,
    typer.Option(
        "--pin/--no-pin",
        metavar="",
        help="Run just the image that its tag means now, or means then. Default: as the queue says, or the one of now"
        " where it can be had.",
    ),
]
