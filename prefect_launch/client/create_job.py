"""Job creation: `create_job` for an image, a folder of code, or a git repository, as in the reference.

Unlike the reference's it raises, with one clear error, when something is wrong, and stores nothing then.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread
from prefect.logging import get_logger
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.core.file_patterns import FilePatterns
from prefect_launch.core.filesystem import make_folders, temporary_folder
from prefect_launch.core.names import check_name
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.core.validation import check_server_json, first_error
from prefect_launch.environments.projects import CodeTree
from prefect_launch.environments.requirements import RequirementsFileReader, read_requirements
from prefect_launch.errors import InvalidNameError, SourceError, SpecError, unknown_name
from prefect_launch.jobs.archive import pack
from prefect_launch.jobs.argparse_schema import ParserInputs, read_argparse
from prefect_launch.jobs.code_checks import (
    DEFAULT_ENTRY_POINT,
    check_build_files,
    check_in_code,
    entry_file,
    parse_entry_point,
    refuse_parents,
)
from prefect_launch.jobs.index import LATEST, check_alias
from prefect_launch.jobs.model import (
    CONFIG_INPUTS,
    JOB_FILE,
    CodeJobSource,
    CodeListing,
    GitCommit,
    GitJobSource,
    ImageJobSource,
    Job,
    JobDocument,
    JobDraft,
    PutResult,
    SourceKind,
    job_requirements,
)
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.schema import SchemaSource, inputs_in_order, load_schema, with_positions
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.git_info import CommitListing, describe_work_tree, ls_remote_files, resolve_commit
from prefect_launch.sources.notebook import as_program, convert, notebook_in, script_of
from prefect_launch.sources.remote import check_remote, machine_git_settings, name_of, reject_web_pages
from prefect_launch.spec.code_options import check_inside, check_runtime, job_name, parse_image, runtime_of
from prefect_launch.spec.input_styles import INPUTS_AS, input_variables
from prefect_launch.spec.scheduling import Retries

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


_logger = get_logger("launch.jobs")

#: Job types of the reference, and its artifact's word for code.
JOB_TYPES: Final[Mapping[str, SourceKind]] = MappingProxyType(
    {
        "image": SourceKind.IMAGE,
        "code": SourceKind.CODE,
        "artifact": SourceKind.CODE,
        "git": SourceKind.GIT,
        "repo": SourceKind.GIT,
    }
)


class JobRequest(BaseModel):
    """Request for a new job. See `prefect_launch.client.create_job.create_job`."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    path: str
    job_type: str
    entity: str | None = None
    project: str | None = None
    name: str | None = None
    description: str | None = None
    aliases: tuple[str, ...] = ()
    runtime: str | None = None
    entrypoint: tuple[str, ...] = ()
    git_hash: str | None = None
    build_context: str | None = None
    dockerfile: str | None = None
    base_image: str | None = None
    install: tuple[str, ...] = ()
    services: Any = None
    input_schema: Any = None
    inputs_as: str | None = None
    inputs_from: str | None = None
    retries: Retries | None = None
    keep: tuple[str, ...] = ()

    @property
    def kind(self) -> SourceKind:
        """The kind of source.

        Raises:
            SpecError: when the job type is unknown.
        """
        if self.job_type not in JOB_TYPES:
            raise SpecError(str(unknown_name("job type", self.job_type, ("image", "code", "git"))))
        return JOB_TYPES[self.job_type]


async def draft_job(request: JobRequest, *, git: Git | None = None) -> tuple[JobDraft, tuple[str, ...]]:
    """Draft a job from its author's request.

    Returns:
        The job, and the aliases that shall mean it, without `latest`.

    Raises:
        SubmitterError: of the kind that fits, when something in the request is wrong.
        InfrastructureError: when a git host cannot be reached.
    """
    kind = request.kind
    if request.name is not None:
        check_name("job", request.name)
    check_runtime(request.runtime)
    if request.services:
        raise SpecError(
            f"Invalid services {request.services!r}: nothing here starts additional services. Start them as runs of"
            " their own, or in the job itself, and leave services out."
        )
    if request.inputs_as is not None and request.inputs_as not in INPUTS_AS:
        raise SpecError(str(unknown_name("value of inputs_as", request.inputs_as, INPUTS_AS)))
    FilePatterns(request.keep, "keep")
    _check_install(request)
    _check_inputs_from(request)
    aliases = tuple(check_alias(alias) for alias in request.aliases)
    _check_paths(request)
    draft, own_alias = await _MAKERS[kind](request, git or Git(machine_git_settings()))
    content = {"description": draft.description, "metadata": draft.metadata, **draft.document.model_dump()}
    check_server_json(content, f"The job {draft.name!r}", path="its document")
    return draft, tuple(dict.fromkeys([*aliases, *([own_alias] if own_alias else [])]))


async def _draft_image(request: JobRequest, git: Git) -> tuple[JobDraft, str | None]:
    name, tag = parse_image(request.path)
    for option in ("git_hash", "build_context", "dockerfile", "base_image", "install"):
        if getattr(request, option):
            raise SpecError(
                f"An image job takes no {option} ({getattr(request, option)!r}): its image is run as it is."
            )
    if request.keep:
        raise SpecError(
            f"An image job takes no keep ({list(request.keep)!r}): it has no code folder. Have its program write to"
            " $LAUNCH_OUTPUT_DIR."
        )
    if request.runtime:
        _logger.warning("The runtime %s is not used: the image %s brings its own.", request.runtime, request.path)
    source = ImageJobSource(image=request.path, entrypoint=request.entrypoint)
    document = await _document(request, SourceKind.IMAGE, source, runtime=None)
    return _draft(request, job_name(name), document), _alias_of_tag(tag)


async def _draft_code(request: JobRequest, git: Git) -> tuple[JobDraft, str | None]:
    if request.git_hash is not None:
        raise SpecError(f"A code job takes no git_hash ({request.git_hash!r}). Make a git job of the remote instead.")
    folder = await to_thread.run_sync(_code_folder, request.path)
    entry_point = _entry_point(request)
    program = await to_thread.run_sync(_program_of_notebook, folder, entry_point, request.build_context)
    archive = await pack(folder, {**program, **job_requirements(request.install, request.build_context)})
    where, hint = f"the code folder {folder}", " Or see whether .launchignore or .gitignore leaves the file out."
    _check_build_files(request, archive.paths, where, hint)
    _check_command(request, entry_point, archive.paths, where=where, hint=hint)
    conda = await to_thread.run_sync(_check_requirements, request, folder, archive.paths)
    place = folder / (request.build_context or ".")
    runtime = request.runtime or await to_thread.run_sync(lambda: runtime_of(place, folder))
    source = CodeJobSource(
        artifact=CodeJobSource.artifact_of(archive.content_digest), **_command(entry_point), **_build(request)
    )
    inputs = await to_thread.run_sync(_parser_inputs, request, entry_point, partial(_read_in, folder))
    document = await _document(request, SourceKind.CODE, source, runtime=runtime, folder=folder, inputs=inputs)
    state = await describe_work_tree(folder)
    metadata = {**({"git": state} if state else {}), **conda}
    listing = CodeListing(files=archive.paths)
    return _draft(request, job_name(folder.name), document, archive.content, listing, metadata=metadata), None


async def _draft_git(request: JobRequest, git: Git) -> tuple[JobDraft, str | None]:
    reject_web_pages(request.path)
    remote = check_remote(request.path, git.protocols)
    entry_point = _entry_point(request)
    refuse_parents(entry_point)
    commit = await resolve_commit(git, remote, request.git_hash)
    listing, contents, conda = await _check_in_commit(git, remote, commit, entry_point, request)
    source = GitJobSource(git=GitCommit(remote=remote, commit=commit), **_command(entry_point), **_build(request))
    # The agent reads the Python version where it fetches the code: see `prefect_launch.spec.code_options.runtime_of`.
    inputs = _parser_inputs(request, entry_point, contents.get)
    document = await _document(request, SourceKind.GIT, source, runtime=request.runtime, inputs=inputs)
    return _draft(request, job_name(name_of(remote)), document, listing=listing, metadata=conda), None


async def _check_in_commit(
    git: Git, remote: str, commit: str, entry_point: tuple[str, ...], request: JobRequest
) -> tuple[CodeListing | None, Mapping[str, bytes], dict[str, Any]]:
    """Check what is asked for in a commit.

    Returns:
        Its paths, when the host lists them; what was read of it; and what `_check_requirements` returns.
    """
    read = _scripts(request, entry_point) if request.inputs_from else ()
    listed = await ls_remote_files(git, remote, commit, read=read)
    if listed is None:
        return None, {}, {}
    files, submodules = listed.files, listed.submodules
    where = f"{remote} at {commit[:12]}"
    _check_build_files(request, files, where, submodules=submodules)
    conda = {} if submodules else await to_thread.run_sync(_check_requirements_of, request, listed)
    _check_command(request, entry_point, files, where=where, unlisted=submodules)
    return CodeListing(files=files, unlisted=submodules), listed.contents, conda


def _check_command(request: JobRequest, entry_point: tuple[str, ...], paths: Collection[str], **about: Any) -> None:
    folder, is_copied = request.build_context or ".", request.dockerfile is not None
    check_in_code(entry_point, paths, folder=folder, is_copied=is_copied, **about)


def _check_build_files(
    request: JobRequest, paths: Collection[str], where: str, hint: str = "", *, submodules: Collection[str] = ()
) -> None:
    given = {"build_context": request.build_context, "dockerfile": request.dockerfile}
    check_build_files(paths, **given, where=where, hint=hint, unlisted=submodules)


def _check_requirements(
    request: JobRequest, folder: Path, paths: Collection[str], *, is_whole: bool = True
) -> dict[str, Any]:
    """Read the code's requirements as an agent does: refuse what is not available, and warn of what is not read.

    Returns:
        What the job's metadata says of them.
    """
    if request.dockerfile is not None or request.base_image is not None:
        return {}  # Then these decide the environment.
    top = PurePosixPath(request.build_context or ".")
    inside = [str(PurePosixPath(path).relative_to(top)) for path in paths if PurePosixPath(path).is_relative_to(top)]
    if request.install:
        code = CodeTree(folder / top, inside, is_whole=is_whole)
        RequirementsFileReader(code).read_text("\n".join(request.install), JOB_FILE)
        return {}
    found = read_requirements(folder / top, inside, is_whole=is_whole)
    for note in found.notes:
        _logger.warning("%s", note)
    return {} if found.conda is None else {"conda": {"path": found.conda.path, "packages": list(found.conda.packages)}}


def _check_requirements_of(request: JobRequest, listed: CommitListing) -> dict[str, Any]:
    """Check the requirements of a commit, with the files that the host returned."""
    with temporary_folder("launch-git-") as scratch:
        for path, content in listed.contents.items():
            make_folders((scratch / path).parent)
            (scratch / path).write_bytes(content)
        return _check_requirements(request, scratch, listed.files, is_whole=False)


_Maker = Callable[[JobRequest, Git], Awaitable[tuple[JobDraft, "str | None"]]]
_MAKERS: Final[Mapping[SourceKind, _Maker]] = MappingProxyType(
    {SourceKind.IMAGE: _draft_image, SourceKind.CODE: _draft_code, SourceKind.GIT: _draft_git}
)


def _check_install(request: JobRequest) -> None:
    for option in ("dockerfile", "base_image"):
        if request.install and getattr(request, option) is not None:
            raise SpecError(
                f"install ({list(request.install)!r}) is for an environment that is made of the code, and {option}"
                f" ({getattr(request, option)!r}) brings its own. Leave one of them out."
            )


# --- inputs of a parser ---


def _check_inputs_from(request: JobRequest) -> None:
    if request.inputs_from is None:
        return
    if request.inputs_from != "argparse":
        raise SpecError(str(unknown_name("value of inputs_from", request.inputs_from, ("argparse",))))
    if request.input_schema is not None:
        raise SpecError("A job has a schema or inputs_from, which reads one from its script. Leave one of them out.")
    if request.kind is SourceKind.IMAGE:
        raise SpecError("An image job takes no inputs_from: its script is in the image. Give a schema.")


def _scripts(request: JobRequest, entry_point: Sequence[str]) -> list[str]:
    """Return where the script of an entry point may be in the code."""
    script = entry_file(entry_point)
    if script is None or not script.endswith(".py"):
        raise SpecError(
            f"The entry point {shlex.join(entry_point)!r} names no Python script to read the inputs from. Name it, such"
            " as 'python train.py', or give a schema."
        )
    folders = (request.build_context or ".", *(["."] if request.dockerfile is not None else []))
    return [posixpath.normpath(posixpath.join(folder, script)) for folder in folders]


def _read_in(folder: Path, path: str) -> bytes | None:
    return (folder / path).read_bytes() if (folder / path).is_file() else None


def _parser_inputs(
    request: JobRequest, entry_point: Sequence[str], read: Callable[[str], bytes | None]
) -> ParserInputs | None:
    """Read the inputs of a job's script, when that is asked for."""
    if request.inputs_from is None:
        return None
    paths = _scripts(request, entry_point)
    found = next(((path, content) for path in paths if (content := read(path)) is not None), None)
    if found is None:
        raise SourceError(
            f"The script {paths[0]!r} cannot be read where the job's code is. Make the job of a folder, or give a"
            " schema."
        )
    path, content = found
    inputs = read_argparse(content, path)
    for note in inputs.notes:
        _logger.warning("Inputs of %s: %s.", path, note)
    return inputs


async def _document(
    request: JobRequest,
    kind: SourceKind,
    source: GitJobSource | CodeJobSource | ImageJobSource,
    *,
    runtime: str | None,
    folder: Path | None = None,
    inputs: ParserInputs | None = None,
) -> JobDocument:
    given: SchemaSource | None = request.input_schema if inputs is None else inputs.schema
    inputs_as = request.inputs_as or ("json" if inputs is None else "args")
    schema = with_positions(await load_schema(given, folder=folder)) if given is not None else None
    if inputs_as == "env":
        input_variables(dict.fromkeys(inputs_in_order(schema), ""))
    return JobDocument.model_validate(
        {
            "_version": "0.17.0" if request.build_context or request.dockerfile else "v0",
            "source_type": kind,
            "source": source,
            "runtime": runtime,
            "retries": request.retries,
            # The default is left out: the document, and so the job's version, stays as it was.
            "inputs_as": None if inputs_as == "json" else inputs_as,
            "keep": request.keep or None,
            "input_schemas": {CONFIG_INPUTS: schema} if schema is not None else None,
        }
    )


def _draft(
    request: JobRequest,
    default_name: str,
    document: JobDocument,
    code: bytes | None = None,
    listing: CodeListing | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> JobDraft:
    return JobDraft(
        name=request.name or default_name,
        entity=request.entity,
        project=request.project,
        document=document,
        code=code,
        listing=listing,
        description=request.description,
        metadata=metadata or {},
    )


def _build(request: JobRequest) -> dict[str, Any]:
    given = {key: getattr(request, key) for key in ("build_context", "dockerfile", "base_image", "install")}
    return {key: value for key, value in given.items() if value}


def _command(entry_point: tuple[str, ...]) -> dict[str, Any]:
    program = as_program(entry_point)
    return {"entrypoint": program, "notebook": program != entry_point}


def _program_of_notebook(folder: Path, entry_point: tuple[str, ...], build_context: str | None) -> dict[str, bytes]:
    """Return the converted notebook of a folder, by its path."""
    notebook = notebook_in(entry_point)
    for place in (build_context or "", "") if notebook else ():
        path = PurePosixPath(place, notebook or "")
        if (folder / path).is_file():
            return {script_of(str(path)): convert((folder / path).read_bytes(), str(path)).encode()}
    return {}


def _entry_point(request: JobRequest) -> tuple[str, ...]:
    if request.entrypoint or request.dockerfile is not None:
        return parse_entry_point(request.entrypoint or None)  # A Dockerfile's image brings its own command.
    _logger.warning("No entry point given for %s: using %s.", request.path, " ".join(DEFAULT_ENTRY_POINT))
    return DEFAULT_ENTRY_POINT


def _code_folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"The code folder {path!r} does not exist, or is no folder. Name the folder of the job's code."
        )
    return folder.resolve()


def _check_paths(request: JobRequest) -> None:
    for option in ("build_context", "dockerfile"):
        value = getattr(request, option)
        if value is not None:
            check_inside(option, value)
    if request.base_image is not None:
        parse_image(request.base_image)


def _alias_of_tag(tag: str | None) -> str | None:
    if tag is None or tag == LATEST:
        return None
    try:
        return check_alias(tag)
    except InvalidNameError as error:
        _logger.warning("The image's tag does not become an alias: %s", error)
        return None


# The public call, with the reference's arguments.


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
    install: Iterable[str] | None = None,
    services: Mapping[str, str] | None = None,
    schema: SchemaSource | None = None,
    inputs_as: str | None = None,
    inputs_from: str | None = None,
    retries: Mapping[str, Any] | int | None = None,
    keep: Iterable[str] | None = None,
    api: Api | None = None,
) -> Job:
    """Make a job, or its next version; the same content makes no new one.

    Args:
        path: an image (`team/train:1.2`), a folder of code, or a git remote (https, ssh, `git@host:path`).
        job_type: `image`, `code` or `git`.
        entity: its owner; by default the `Api`'s.
        project: its project; by default the `Api`'s.
        name: its name; by default `job-` and the name of the image, folder or repository.
        description: a description of the job.
        aliases: names for this version besides `latest`. An image's tag becomes one too.
        runtime: its Python version, such as `"3.11"`; by default what `runtime.txt` or `.python-version`
            says, or the one that runs here.
        entrypoint: its command, as text or as a list; by default `python main.py`, or an image's own.
        git_hash: branch, tag or commit of a git job; by default the remote's default branch.
        build_context: the folder in its code that it runs in, with the requirements there, or that its image is built
            in: a project of a repository with several.
        dockerfile: the Dockerfile, relative to the build context.
        base_image: an image to run the code in, unchanged.
        install: what to install in place of the code's requirements: lines of a requirements file, such as
            `["-r requirements/train.txt", "-e .[train]"]`.
        services: an option of the reference; not supported, so any value is refused.
        schema: the schema of its inputs: a JSON schema or its file, a pydantic class, or `module:Class` in its code.
        inputs_as: how its program gets its inputs, besides `$LAUNCH_CONFIG`: as `args` (`--lr=0.1 --amp`, for argparse
            and click), in the words of `jsonargparse` or `hydra`, or as variables in its environment (`env`); by
            default there alone (`json`).
        inputs_from: `argparse` reads the schema from the `add_argument` calls of the entry point's script, which is not
            run; `inputs_as` is then `args`.
        retries: retry rule of items without their own: `{"max": 3, "on": ["crashed", "oom"], "delay": 30}`.
        keep: patterns as of `.gitignore`: files that a run has changed in its code folder, and that go to its outputs.
        api: the server; by default the one that Prefect's settings name.

    Returns:
        The job, at the version that now is `latest`.

    Raises:
        InvalidNameError: for an invalid name or alias; the message suggests a valid one.
        SpecError: for a job type, runtime, entry point, image, path or schema that is wrong.
        SourceError: for a folder with links out of it or without its entry point, or a remote that cannot be read.
        NotFoundError: for a branch, tag or commit that does not exist.
        InfrastructureError: when storage or network fail.
        ServerUnavailableError: when the server does not answer.
    """
    request = _request(
        path=path, job_type=job_type, entity=entity, project=project, name=name, description=description,
        aliases=aliases, runtime=runtime, entrypoint=entrypoint, git_hash=git_hash, build_context=build_context,
        dockerfile=dockerfile, base_image=base_image, services=services, schema=schema, inputs_as=inputs_as,
        inputs_from=inputs_from, retries=retries, keep=keep, install=install,
    )  # fmt: skip
    return (api or _default_api()).call(lambda session: create_in(session.jobs, request)).job


@with_arguments_of(create_job)
async def acreate_job(arguments: Mapping[str, Any]) -> Job:
    """`create_job` for async code; arguments, result and errors are the same."""
    request, api = _request(**arguments), arguments["api"] or _default_api()
    return (await api.acall(lambda session: create_in(session.jobs, request))).job


async def create_in(registry: JobRegistry, request: JobRequest, *, git: Git | None = None) -> PutResult:
    """Make a job in a registry that is open, and say whether it is new.

    Raises:
        LaunchError: as `create_job` does.
    """
    draft, aliases = await draft_job(request, git=git)
    return await registry.put(draft, aliases)


def _default_api() -> Api:
    from prefect_launch.client.api import default_api

    return default_api()


def _request(**given: Any) -> JobRequest:
    """Read the arguments of `create_job`."""
    for name in ("aliases", "keep", "install"):
        if isinstance(given[name], str):
            raise SpecError(f"{name} must be a list, not the text {given[name]!r}. Write [{given[name]!r}].")
    values = {
        **given,
        "path": fspath(given["path"]),
        "aliases": tuple(given["aliases"] or ()),
        "keep": tuple(given["keep"] or ()),
        "install": tuple(given["install"] or ()),
        "entrypoint": parse_entry_point(given["entrypoint"]),
        "services": dict(given["services"] or {}) or None,
        "input_schema": given["schema"],
    }
    try:
        return JobRequest.model_validate(values)
    except ValidationError as error:
        first = first_error(error)
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"Invalid job: {place}: {first['msg']} (got {first['input']!r}).") from None
