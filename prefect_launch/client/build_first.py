"""Build before queuing (`launch_add(build=True)`): builds and pushes a job's image, and queues an image job of it.

Agents then need neither the code nor a builder: they pull the image by its digest. The image job is named after the
job, `NAME-image`; its schema, retries and `inputs_as` are the job's, and its metadata says what it was built from. The
same code gives the same image, and so the same version of the image job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import uuid4

from prefect.logging import get_logger

from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.client.api import Api
from prefect_launch.client.item_check import check_item
from prefect_launch.core.filesystem import temporary_folder_async
from prefect_launch.core.names import safe_name
from prefect_launch.errors import NotFoundError, SpecError
from prefect_launch.jobs.model import GitJobSource, ImageJobSource, Job, JobDocument, JobDraft, SourceKind
from prefect_launch.planning.plan import build_request
from prefect_launch.queues.author_shares import check_waiting
from prefect_launch.queues.session import CachedQueue, Session
from prefect_launch.registries.base import parse_repository
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.registry import runner_class
from prefect_launch.settings.agent_config import AgentConfig, resolve_agent_config
from prefect_launch.sources.fetch import fetch_code
from prefect_launch.spec.launch_spec import DockerSource, GitSource, LaunchSpec, RegistryOptions

_logger = get_logger("launch.build")

_SUFFIX: Final = "-image"
#: The tag that stands for an image before it is built.
_WHEN_BUILT: Final = "set-when-built"
_STOPPED: Final = "Stopped: the image is not finished, and nothing is queued. The same call builds it anew."


async def with_built_job(api: Api, session: Session, spec: LaunchSpec, queue_name: str) -> LaunchSpec:
    """Build the image of what a spec names, push it to `registry.uri`, and return the spec with an image job instead.

    Raises:
        SpecError: when nothing is to be built, the queue runs no images, nothing builds here, or no repository is
            known.
        LaunchError: as `launch_add` does; nothing is built then.
        BuildError: when a step of the build fails.
        RegistryError: when the registry does not take the image.
    """
    checked = await check_item(api, session, spec, queue_name, is_built_first=True)
    await check_waiting(session.server, checked.queue, [checked.draft])
    job = _job_to_build(checked.job, checked.queue)
    config = _config_of_builder()
    repository = _repository(spec, config)
    try:
        plan = await _built(session, spec, job, config, repository)
    except asyncio.CancelledError:
        _logger.warning(_STOPPED)
        raise
    draft = image_job(job, str(plan.image), plan.command)
    kept = (await session.jobs.put(draft)).job
    return _naming(spec, kept)


class BuiltJob(NamedTuple):
    """Preview of a build before queuing.

    Attributes:
        spec: names the image job.
        job: the image job; for one that does not exist yet, the image's tag is a placeholder.
        built_of: the job whose code is built.
        repository: where the image is pushed.
    """

    spec: LaunchSpec
    job: Job
    built_of: Job
    repository: str


async def preview_built_job(session: Session, spec: LaunchSpec, job: Job | None, queue: CachedQueue) -> BuiltJob:
    """Preview `with_built_job` for a checked spec; builds, pushes and creates nothing.

    Raises:
        SpecError: as `with_built_job` does.
    """
    of = _job_to_build(job, queue)
    repository = _repository(spec, _config_of_builder())
    to_build = build_request(spec, of)
    draft = image_job(of, f"{repository}:{_WHEN_BUILT}", to_build.entry_point if to_build else ())
    made = await _built_last(session, draft) or await session.jobs.preview(draft)
    return BuiltJob(_naming(spec, made), made, of, repository)


async def _built_last(session: Session, draft: JobDraft) -> Job | None:
    """Return the existing image job of the same code, which is current unless the base image has changed."""
    try:
        last = await session.jobs.resolve(f"{draft.entity}/{draft.project}/{draft.name}")
    except NotFoundError:
        return None
    same = last.metadata.get("built_from") == draft.metadata["built_from"]
    return last if same and last.entry_point == draft.document.source.entrypoint else None


def _config_of_builder() -> AgentConfig:
    config = resolve_agent_config()
    if config.builder.type == "none":
        raise SpecError(
            "build=True builds on this machine, whose ~/.config/prefect-launch/agent.yaml says builder.type: none. Set"
            " it to docker, or leave build out: an agent of the queue builds the image then."
        )
    return config


def _job_to_build(job: Job | None, queue: CachedQueue) -> Job:
    resource = queue.config.resource
    if not runner_class(resource).needs_image:
        raise SpecError(
            f"Cannot build a docker image for the resource: {resource}. Queue {queue.name!r} runs its items"
            " there without one: leave build out, or choose a queue of containers."
        )
    if job is None or job.kind is SourceKind.IMAGE or job.base_image:
        what = f"the job {job.reference}" if job else "a docker_image"
        raise SpecError(
            f"There is nothing to build: {what} names its image already. Leave build out, or give a job of code or git."
        )
    if job.document.keep:
        raise SpecError(
            f"The job {job.reference} keeps {', '.join(map(repr, job.document.keep))} of its code folder, and an image"
            " job has none. Leave build out: an agent builds the image of its code."
        )
    return job


def _repository(spec: LaunchSpec, config: AgentConfig) -> str:
    given = spec.registry.uri or config.builder.destination
    if not given:
        raise SpecError(
            "build=True needs to know where the image is pushed, for the agents of the queue may be on other machines."
            " Give repository, such as 'registry.example:5000/team/train', or set builder.destination in"
            " ~/.config/prefect-launch/agent.yaml; or leave build out, and an agent builds the image itself."
        )
    return parse_repository(str(given))


async def _built(session: Session, spec: LaunchSpec, job: Job, config: AgentConfig, repository: str) -> RunPlan:
    """Return a plan with the image, by its digest in the repository, and the command in it."""
    settings = config.builder.pushing_to(repository)
    images = ImageBuilder(settings, config.home, "a call of launch_add", RemoteRegistries(config.keychain()))
    try:
        async with temporary_folder_async("launch-build-") as folder:
            code = folder / "code"
            await fetch_code(job, code, session.jobs, home=config.home, settings=config.git)
            plan = RunPlan(
                item_id=str(uuid4()),
                run_id="build",
                run_dir=folder,
                code_dir=code,
                build_request=build_request(spec, job),
            )
            return await images.find(plan) or await images.ensure_image(plan, _line_logger())
    finally:
        await images.aclose()


def _line_logger() -> Callable[[str], None]:
    def log(text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                _logger.info("%s", line)

    return log


def image_job(job: Job, image: str, command: tuple[str, ...]) -> JobDraft:
    """Return the image job that replaces a code job: its image by digest, and the run's command."""
    was = job.document
    document = JobDocument.model_validate(
        {
            "_version": "v0",
            "source_type": SourceKind.IMAGE,
            "source": ImageJobSource(image=image, entrypoint=command),
            "input_types": was.input_types,
            "output_types": was.output_types,
            "retries": was.retries,
            "input_schemas": was.input_schemas,
            "inputs_as": was.inputs_as,
        }
    )
    return JobDraft(
        name=safe_name(f"{job.name}{_SUFFIX}"),
        entity=job.entity,
        project=job.project,
        document=document,
        description=job.description,
        metadata={**job.metadata, "built_from": _origin(job)},
    )


def _origin(job: Job) -> str:
    """Return what an image was built from; a job of a URI is not stored, so its commit is named."""
    source = job.document.source
    return f"{source.git.remote}@{source.git.commit}" if isinstance(source, GitJobSource) else job.reference


def _naming(spec: LaunchSpec, job: Job) -> LaunchSpec:
    """Return the spec with the image job, without the options that only the build uses."""
    overrides = spec.overrides.model_copy(update={"entry_point": None, "dockerfile": None})
    changes: dict[str, Any] = {
        "job": job.reference,
        "uri": None,
        "git": GitSource(),
        "docker": DockerSource(),
        "overrides": overrides,
        "python_version": None,
        "builder": {},
        "registry": RegistryOptions(),
    }
    return spec.model_copy(update=changes)
