"""Jobs of our own store, drafted from a run or a job of a W&B server.

A run's commit, code or image becomes the job's source, as in W&B's own jobs; its arguments belong to the command, and
its config is the inputs' defaults. All is read when the item is submitted, so that agents need no W&B.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import anyio
from prefect.logging import get_logger
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.client.create_job import JobRequest, draft_job
from prefect_launch.core.filesystem import make_folders, temporary_folder_async
from prefect_launch.core.names import UNNAMED, safe_name
from prefect_launch.core.validation import json_fault
from prefect_launch.errors import NotFoundError, OperatorError, SourceError, SpecError
from prefect_launch.jobs.model import DOCUMENT_FILE, JobDraft, JobReference, parse_reference
from prefect_launch.server.secrets import ReadSecret
from prefect_launch.settings.agent_config import default_home
from prefect_launch.sources.fetch import GitCheckout
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.remote import machine_git_settings
from prefect_launch.sources.wandb_client import WandbClient, WandbFiles, WandbRun
from prefect_launch.sources.wandb_hosts import RunAddress, WandbSettings, machine_wandb_settings

_logger = get_logger("launch.jobs")

_METADATA_FILE: Final = "wandb-metadata.json"
_RUN_REQUIREMENTS: Final = "requirements.txt"
_FROZEN_FILE: Final = "requirements.frozen.txt"
_PATCH_FILE: Final = "diff.patch"
#: Where a run keeps the code that it was told to save.
_CODE: Final = "code/"
_BY_ID: Final = "wandb-artifact://_id/"
#: Of the job of a W&B job, so that its versions and aliases are not taken for those of the server.
_SUFFIX: Final = "-wandb"
_PYTHON: Final = re.compile(r"(?:.*/)?python[0-9.]*\Z")
_VERSION: Final = re.compile(r"3\.[0-9]+")
#: A line of a run's requirements, with the local part of its version (`+cu118`), which no index has.
_PINNED: Final = re.compile(r"(?P<pin>[A-Za-z0-9][A-Za-z0-9._-]*==[^\s+;@]+)(?:\+\S*)?\Z")
#: With one of these at its top, the code itself says what it needs.
_REQUIREMENTS: Final = frozenset({"requirements.txt", "uv.lock"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


_Told = TypeVar("_Told", bound=_Part)


class _GitCommit(_Part):
    remote: str | None = None
    commit: str | None = None


class _Metadata(_Part):
    """What a run says of itself in `wandb-metadata.json`."""

    program: str | None = None
    code_path: str | None = Field(default=None, alias="codePath")
    args: tuple[str, ...] = ()
    git: _GitCommit | None = None
    docker: str | None = None
    python: str | None = None

    @property
    def file(self) -> str | None:
        """The program's file, in the repository or the saved code."""
        path = self.code_path or self.program or ""
        return path if path.endswith((".py", ".ipynb", ".sh")) and not PurePosixPath(path).is_absolute() else None


class _JobSource(_Part):
    git: _GitCommit | None = None
    artifact: str | None = None
    image: str | None = None
    entrypoint: tuple[str, ...] = ()
    build_context: str | None = None
    dockerfile: str | None = None
    base_image: str | None = None


class _JobDocument(_Part):
    """A job of a W&B server, as `wandb-job.json` has it."""

    source: _JobSource
    runtime: str | None = None
    services: dict[str, Any] | None = None
    input_schemas: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Taken:
    """What a run or a job of a W&B server comes to.

    Attributes:
        title: what it is, for messages.
        request: the job, but for its kind and path.
        files: of the run or the job.
        requirements: the file among them that says what was installed.
        git: the remote and the commit.
        code: the code's files, and the folder of them that is the code's top.
        image: to run as it is.
    """

    title: str
    request: Mapping[str, Any]
    files: WandbFiles
    requirements: str
    git: tuple[str, str] | None = None
    code: tuple[WandbFiles, str] | None = None
    image: str | None = None


async def draft_of_run(
    address: RunAddress,
    given: Mapping[str, Any],
    read_secret: ReadSecret,
    *,
    settings: WandbSettings | None = None,
    git: Git | None = None,
) -> JobDraft:
    """Draft a job that repeats a run of a W&B server.

    Args:
        address: of the run.
        given: the fields of a `JobRequest` that the caller decides: `entity`, `project`, `entrypoint`.
        read_secret: reads a Secret block.
        settings: the servers that this machine may ask; by default its own.
        git: runs git; by default with this machine's settings.

    Raises:
        NotFoundError: when there is no such run.
        SourceError: when it has neither a commit, nor code, nor an image.
        AgentConfigError: when its server is not listed, or refuses the key.
        InfrastructureError: when a server does not answer.
    """
    settings = settings or machine_wandb_settings()
    key = await settings.key_of(address.host, read_secret)
    async with WandbClient(address.host, key) as client:
        run = await client.run(address)
        files = await client.run_files(address)
        taken = _of_run(run, files, await _metadata(client, files), given)
        draft = await _draft(client, taken, git or Git(machine_git_settings()))
    return replace(draft, metadata={**draft.metadata, "wandb": {"run": str(address)}})


async def draft_of_job(
    reference: str,
    not_here: NotFoundError,
    read_secret: ReadSecret,
    *,
    settings: WandbSettings | None = None,
    git: Git | None = None,
) -> JobDraft:
    """Draft a job from the job of a listed W&B server that a name means: `entity/project/name:alias`.

    Args:
        reference: the name.
        not_here: why it is no job of our own store.
        read_secret: reads a Secret block.
        settings: the servers that this machine may ask; by default its own.
        git: runs git; by default with this machine's settings.

    Raises:
        NotFoundError: when no server has it, or none is listed; `not_here` itself when the name is not a full one.
        LaunchError: as `draft_of_run` does.
    """
    settings = settings or machine_wandb_settings()
    if not settings.hosts or reference.count("/") != 2:
        raise not_here
    wanted = parse_reference(reference, entity=UNNAMED, project=UNNAMED)
    told = [str(not_here)]
    for host in settings.hosts:
        try:
            key = await settings.key_of(host, read_secret)
            async with WandbClient(host, key) as client:
                return await _draft_of_job(client, wanted, git or Git(machine_git_settings()))
        except NotFoundError as error:
            told.append(str(error))
        except OperatorError as error:
            raise type(error)(" ".join([*told, str(error)])) from None
    raise NotFoundError(" ".join(told))


async def _draft_of_job(client: WandbClient, wanted: JobReference, git: Git) -> JobDraft:
    files = await client.artifact_files(wanted.entity, wanted.project, wanted.name, wanted.alias)
    draft = await _draft(client, await _of_job(client, wanted, files), git)
    return replace(draft, metadata={**draft.metadata, "wandb": {"host": client.host, "job": str(wanted)}})


def _of_run(run: WandbRun, files: WandbFiles, metadata: _Metadata, given: Mapping[str, Any]) -> _Taken:
    program = metadata.program or ""
    command: tuple[str, ...] = ()
    if program.startswith("-m "):
        command = ("python", *program.split(), *metadata.args)
    elif metadata.file:
        command = ("bash" if metadata.file.endswith(".sh") else "python", metadata.file, *metadata.args)
    title, own = f"The W&B run {run.address}", given.get("entrypoint") or command
    taken = _Taken(
        title=title,
        request={
            "entity": given.get("entity") or safe_name(run.address.entity),
            "project": given.get("project") or safe_name(run.address.project),
            "name": safe_name(f"run-{run.address.run_id}"),
            "description": f"{run.title}: {run.address}",
            "runtime": _runtime(metadata.python),
            "entrypoint": own,
            "input_schema": _schema_of(run),
        },
        files=files,
        requirements=_RUN_REQUIREMENTS,
    )
    commit = metadata.git
    saved = metadata.file is not None and f"{_CODE}{metadata.file}" in files
    if own and commit and commit.remote and commit.commit:
        return replace(taken, git=(commit.remote, commit.commit))
    if own and saved:
        return replace(taken, code=(files, _CODE))
    if metadata.docker:
        return replace(taken, image=metadata.docker)
    raise SourceError(
        f"{title} cannot be repeated: {_why_not(metadata, own)} Make a job of its code"
        " ('prefect-launch job create code FOLDER'), and queue that."
    )


def _why_not(metadata: _Metadata, command: tuple[str, ...]) -> str:
    if not command:
        return (
            f"it was started from {metadata.program or 'no program'!r}, which is no file of a repository or of saved"
            " code, as in an interactive session. Name a command as the entry point if its repository has one."
        )
    return (
        "it has neither a git remote with a commit, nor an image, and its program was not saved (wandb.init with"
        " save_code, or run.log_code)."
    )


async def _of_job(client: WandbClient, reference: JobReference, files: WandbFiles) -> _Taken:
    title = f"The job {reference} of the W&B server {client.host!r}"
    if DOCUMENT_FILE not in files:
        raise SourceError(f"{title} has no {DOCUMENT_FILE}: it is no job, but another artifact. Name a job.")
    document = _parsed(_JobDocument, await client.read(files, DOCUMENT_FILE), f"{DOCUMENT_FILE} of {title}")
    source = document.source
    if document.services:
        raise SpecError(f"{title} needs the services {sorted(document.services)}, which nothing here starts.")
    taken = _Taken(
        title=title,
        request={
            "entity": safe_name(reference.entity),
            "project": safe_name(reference.project),
            "name": safe_name(f"{reference.name}{_SUFFIX}"),
            "description": f"{reference} of {client.host}",
            "runtime": _runtime(document.runtime),
            "entrypoint": tuple("python" if _PYTHON.match(part) else part for part in source.entrypoint[:1])
            + source.entrypoint[1:],
        },
        files=files,
        requirements=_FROZEN_FILE,
    )
    options = {name: getattr(source, name) for name in ("build_context", "dockerfile", "base_image")}
    of_code = replace(taken, request={**taken.request, **options})
    if source.git and source.git.remote and source.git.commit:
        return replace(of_code, git=(source.git.remote, source.git.commit))
    if source.artifact and source.artifact.startswith(_BY_ID):
        code = await client.artifact_files_by_id(source.artifact.removeprefix(_BY_ID))
        return replace(of_code, code=(code, ""))
    if source.image:
        return replace(taken, image=source.image)
    raise SourceError(
        f"{title} names neither a git commit, nor a code artifact, nor an image. Make a job of its code"
        " ('prefect-launch job create code FOLDER'), and queue that."
    )


async def _draft(client: WandbClient, taken: _Taken, git: Git) -> JobDraft:
    if taken.image is not None:
        without = {key: value for key, value in taken.request.items() if key != "runtime"}
        return await _made(taken, without, git, path=taken.image, job_type="image")
    if taken.git is not None and _PATCH_FILE not in taken.files:
        remote, commit = taken.git
        draft = await _made(taken, taken.request, git, path=remote, job_type="git", git_hash=commit)
        listed = draft.listing.files if draft.listing else ()
        if _says_what_it_needs(taken, listed) or taken.requirements not in taken.files:
            return draft
    async with temporary_folder_async("launch-wandb-") as scratch:
        folder = scratch / "code"
        await _lay_out(client, taken, folder, git)
        return await _made(taken, taken.request, git, path=str(folder), job_type="code")


async def _made(taken: _Taken, request: Mapping[str, Any], git: Git, **source: Any) -> JobDraft:
    try:
        draft, _ = await draft_job(JobRequest(**request, **source), git=git)
    except NotFoundError as error:
        raise NotFoundError(
            f"{taken.title} cannot be repeated. {error} If its commit was never pushed, push it."
        ) from None
    except SourceError as error:
        raise SourceError(f"{taken.title} cannot be repeated. {error}") from None
    return draft


def _says_what_it_needs(taken: _Taken, listed: tuple[str, ...]) -> bool:
    """Whether nothing of what was installed for a run has to be added to its repository."""
    top = PurePosixPath(taken.request.get("build_context") or ".")
    return (
        not listed
        or any(str(top / name) in listed for name in _REQUIREMENTS)
        or bool(taken.request.get("dockerfile") or taken.request.get("base_image"))
    )


async def _lay_out(client: WandbClient, taken: _Taken, folder: Path, git: Git) -> None:
    """Put the code into a folder: of a commit, with its uncommitted changes, or as it was saved."""
    if taken.git is not None:
        checkout = GitCheckout(default_home(), git=git)
        await checkout.check_out(checkout.checked(taken.git[0]), taken.git[1], folder)
        if _PATCH_FILE in taken.files:
            await _apply(await client.read(taken.files, _PATCH_FILE), taken, folder, git)
    elif taken.code is not None:
        files, top = taken.code
        for path in files.urls:
            if path.startswith(top):
                await _write(folder / path.removeprefix(top), await client.read(files, path))
    place = folder / (taken.request.get("build_context") or ".") / _FROZEN_FILE
    if taken.requirements in taken.files and not await anyio.Path(place).exists():
        await _write(place, _installed(await client.read(taken.files, taken.requirements)))


async def _apply(patch: bytes, taken: _Taken, folder: Path, git: Git) -> None:
    """Apply the uncommitted changes of a run; git refuses what leads out of the folder."""
    file = folder.parent / _PATCH_FILE
    await _write(file, patch)
    try:
        await git.run("apply", "--whitespace=nowarn", str(file), cwd=folder)
    except SourceError as error:
        raise SourceError(
            f"{taken.title} ran with uncommitted changes ({_PATCH_FILE}), which do not apply to its commit: {error}"
        ) from None


async def _write(path: Path, content: bytes) -> None:
    def write() -> None:
        make_folders(path.parent)
        path.write_bytes(content)

    await anyio.to_thread.run_sync(write)


def _installed(content: bytes) -> bytes:
    """Return the requirements of a run without those that only its machine had."""
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    pins = [(line, _PINNED.match(line)) for line in lines if line and not line.startswith("#")]
    left = [line for line, match in pins if match is None]
    if left:
        _logger.warning("Of the run's requirements, these are left out: %s.", ", ".join(left)[:500])
    return "".join(f"{match['pin']}\n" for _, match in pins if match is not None).encode()


async def _metadata(client: WandbClient, files: WandbFiles) -> _Metadata:
    if _METADATA_FILE not in files:
        raise SourceError(
            f"On the W&B server {client.host!r}, {files.of} has no {_METADATA_FILE}, which tells its code: wandb was"
            " told not to write it, or has not sent it yet. Make a job of the code instead."
        )
    return _parsed(_Metadata, await client.read(files, _METADATA_FILE), f"{_METADATA_FILE} of {files.of}")


def _parsed(model: type[_Told], content: bytes, what: str) -> _Told:
    try:
        return model.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise SourceError(f"{what} cannot be read: {place}: {first['msg']}. Make a job of the code instead.") from None
    except ValueError:
        raise SourceError(f"{what} is no JSON. Make a job of the code instead.") from None


def _runtime(version: str | None) -> str | None:
    found = _VERSION.search(version or "")
    return found[0] if found else None


def _schema_of(run: WandbRun) -> dict[str, Any] | None:
    """Return a schema without rules, whose defaults are the run's config."""
    kept = {name: value for name, value in run.config.items() if json_fault({name: value}) is None}
    if left := sorted(run.config.keys() - kept):
        _logger.warning("Of the run's config, these cannot be stored, and are left out: %s.", ", ".join(left)[:500])
    if not kept:
        return None
    return {
        "type": "object",
        "properties": {name: {"default": value} for name, value in kept.items()},
        "additionalProperties": True,
    }
