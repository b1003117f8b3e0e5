"""Making a job: the call that users know from the reference, for `image`, `code` and `git`.

Unlike the reference's it raises, with one clear error, when something is wrong, and stores nothing then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prefect_launch.client.job_drafts import JobRequest, draft_job
from prefect_launch.core.validation import first_error
from prefect_launch.errors import SpecError
from prefect_launch.jobs.code_checks import parse_entry_point
from prefect_launch.jobs.model import Job, PutResult
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.schema import SchemaSource
from prefect_launch.sources.git_command import Git

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


async def acreate_job(
    path: str | PathLike[str],
    job_type: str,
    entity: str | None = None,
    project: str | None = None,
    name: str | None = None,
    description: str | None = None,
    aliases: Iterable[str] | None = None,
    runtime: str | None = None,
    entrypoint: str | Sequence[str] | None = None,
    git_hash: str | None = None,
    build_context: str | None = None,
    dockerfile: str | None = None,
    *,
    base_image: str | None = None,
    services: Mapping[str, str] | None = None,
    schema: SchemaSource | None = None,
    retries: Mapping[str, Any] | int | None = None,
    api: Api | None = None,
) -> Job:
    """Make a job, or its next version; the same content makes no new one.

    Args:
        path: an image (`team/train:1.2`), a folder of code, or a git remote (https, ssh, `git@host:path`).
        job_type: `image`, `code` or `git`.
        entity: its owner; by default the `Api`'s.
        project: its project; by default the `Api`'s.
        name: its name; by default `job-` and the name of the image, folder or repository.
        description: a text for people.
        aliases: names for this version, beside `latest`. An image's tag becomes one, too.
        runtime: the Python that it wants, such as `"3.11"`; by default what `runtime.txt` or `.python-version`
            says, or the one that runs here.
        entrypoint: its command, as text or as a list; by default `python main.py`, or an image's own.
        git_hash: branch, tag or commit of a git job; by default the remote's default branch.
        build_context: the folder in its code that it runs in, with the requirements there, or that its image is built
            in: a project of a repository with several.
        dockerfile: the Dockerfile, relative to the build context.
        base_image: an image that its code runs in as it is.
        services: of the reference; nothing here starts services beside a run, so that any are refused.
        schema: what its inputs must obey: a JSON schema or its file, a pydantic class, or `module:Class` in its code.
        retries: when its items are run again, unless they say: `{"max": 3, "on": ["crashed", "oom"], "delay": 30}`.
        api: the server; by default the one that Prefect's settings name.

    Returns:
        The job, at the version that now is `latest`.

    Raises:
        InvalidNameError: for a name or alias that cannot be given; a safe one is suggested.
        SpecError: for a job type, runtime, entry point, image, path or schema that is wrong.
        SourceError: for a folder that leaks or lacks its entry point, and a remote that is refused or cannot be read.
        NotFoundError: for a branch, tag or commit that does not exist.
        InfrastructureError: when storage or network fail.
        ServerUnavailableError: when the server does not answer.
    """
    request = _request(
        path, job_type, entity, project, name, description, aliases, runtime, entrypoint, git_hash, build_context,
        dockerfile, base_image, services, schema, retries,
    )  # fmt: skip
    return (await (api or _default_api()).acall(lambda session: create_in(session.jobs, request))).job


def create_job(
    path: str | PathLike[str],
    job_type: str,
    entity: str | None = None,
    project: str | None = None,
    name: str | None = None,
    description: str | None = None,
    aliases: Iterable[str] | None = None,
    runtime: str | None = None,
    entrypoint: str | Sequence[str] | None = None,
    git_hash: str | None = None,
    build_context: str | None = None,
    dockerfile: str | None = None,
    *,
    base_image: str | None = None,
    services: Mapping[str, str] | None = None,
    schema: SchemaSource | None = None,
    retries: Mapping[str, Any] | int | None = None,
    api: Api | None = None,
) -> Job:
    """Make a job, from synchronous code. See `acreate_job`."""
    request = _request(
        path, job_type, entity, project, name, description, aliases, runtime, entrypoint, git_hash, build_context,
        dockerfile, base_image, services, schema, retries,
    )  # fmt: skip
    return (api or _default_api()).call(lambda session: create_in(session.jobs, request)).job


async def create_in(registry: JobRegistry, request: JobRequest, *, git: Git | None = None) -> PutResult:
    """Make a job in a registry that is open, and say whether it is new.

    Args:
        registry: where it is stored.
        request: what its author says.
        git: how git is run; by default with the protocols that are allowed to users.

    Raises:
        LaunchError: as `acreate_job` does.
    """
    draft, aliases = await draft_job(request, git=git)
    return await registry.put(draft, aliases)


def _default_api() -> Api:
    from prefect_launch.client.api import default_api

    return default_api()


def _request(
    path: str | PathLike[str],
    job_type: str,
    entity: str | None,
    project: str | None,
    name: str | None,
    description: str | None,
    aliases: Iterable[str] | None,
    runtime: str | None,
    entrypoint: str | Sequence[str] | None,
    git_hash: str | None,
    build_context: str | None,
    dockerfile: str | None,
    base_image: str | None,
    services: Mapping[str, str] | None,
    schema: SchemaSource | None,
    retries: Mapping[str, Any] | int | None = None,
) -> JobRequest:
    if isinstance(aliases, str):
        raise SpecError(f"aliases must be a list of names, not the text {aliases!r}. Write [{aliases!r}].")
    values = {
        "path": fspath(path),
        "job_type": job_type,
        "entity": entity,
        "project": project,
        "name": name,
        "description": description,
        "aliases": tuple(aliases or ()),
        "runtime": runtime,
        "entrypoint": parse_entry_point(entrypoint),
        "git_hash": git_hash,
        "build_context": build_context,
        "dockerfile": dockerfile,
        "base_image": base_image,
        "services": dict(services) if services else None,
        "input_schema": schema,
        "retries": retries,
    }
    try:
        return JobRequest.model_validate(values)
    except ValidationError as error:
        first = first_error(error)
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"Invalid job: {place}: {first['msg']} (got {first['input']!r}).") from None
