"""Item validation: every check of a launch spec that needs the server, before anything is made."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect.logging import get_logger

from prefect_launch.client.api import Api
from prefect_launch.core.caller import author_here
from prefect_launch.core.states import ItemState
from prefect_launch.core.validation import check_json
from prefect_launch.environments.conda import CondaFile
from prefect_launch.errors import LaunchError, NotFoundError, SourceError, SpecError
from prefect_launch.jobs.model import GitJobSource, Job, JobDraft, SourceKind, check_version
from prefect_launch.planning.image_pinning import Digests, with_digest
from prefect_launch.planning.item_options import check_resource, item_macros, merged_options
from prefect_launch.planning.job_inputs import arguments_of, variables_of_inputs
from prefect_launch.planning.override_checks import check_overrides, overrides_code
from prefect_launch.planning.plan import build_request, default_resource, with_checked_inputs
from prefect_launch.planning.refused_fields import locked_parts, outputs_named_by, refuse_unread
from prefect_launch.policy.submitter_options import merge_resource_args
from prefect_launch.queues.item_outputs import find_outputs
from prefect_launch.queues.options import QueueOptions, make_config
from prefect_launch.queues.pool import DEFAULT_QUEUE, create_queue
from prefect_launch.queues.predecessors import judge_predecessors, read_items
from prefect_launch.queues.session import QUEUE_LABEL, CachedQueue, Session
from prefect_launch.runners.code_job import check_command
from prefect_launch.runners.registry import runner_class
from prefect_launch.server.values import Item, ItemDraft, State
from prefect_launch.sources.notebook import notebook_in
from prefect_launch.sources.wandb_hosts import run_address
from prefect_launch.spec.code_options import parse_image
from prefect_launch.spec.item_outputs import with_values
from prefect_launch.spec.item_parameters import labels_of, run_id_of, tags_of
from prefect_launch.spec.launch_spec import GitSource, LaunchSpec
from prefect_launch.spec.option_names import ENV, normalise_options
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.queues.agent_status import AgentInfo


@dataclass
class NamedJob:
    """Job of a spec, before the item is made.

    Attributes:
        job: the job; `None` for an image. A new job is not stored yet: read it only.
        draft: of a job that is not stored yet.
    """

    job: Job | None = None
    draft: JobDraft | None = None

    async def check_overrides(
        self, spec: LaunchSpec, jobs: JobRegistry, resource: str, of_queue: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse a file or folder that a spec names and the job's code does not have, as far as the code is listed.

        Args:
            spec: the request.
            jobs: where the job is kept.
            resource: that it runs on.
            of_queue: the queue's resource options.

        Raises:
            SubmitterError: naming it, and the nearest existing one.
            InfrastructureError: when the job store fails.
        """
        # The command given with a URI is the job's own, and was checked with it.
        asked = spec if self.job is None else with_job(spec, self.job)
        if self.job is None or not overrides_code(asked):
            return
        listing = await jobs.list_code(self.job) if self.draft is None else self.draft.listing
        if listing is not None:
            check_overrides(asked, self.job, listing, runner_class(resource), of_queue=of_queue)

    async def save(self, jobs: JobRegistry) -> Job | None:
        """Return the job, stored if it was new."""
        if self.draft is not None:
            self.job, self.draft = (await jobs.put(self.draft)).job, None
        return self.job


def same_source(spec: LaunchSpec) -> tuple[object, ...]:
    """Return what specs have in common when they name the same job."""
    of_uri = (spec.uri, spec.git, spec.overrides.entry_point, spec.entity, spec.project) if spec.uri else ()
    return (spec.job, spec.image, *of_uri)


async def job_named_by(spec: LaunchSpec, session: Session) -> NamedJob:
    """Find the job that a spec names. It stores nothing; it may read a git remote or a W&B server.

    Raises:
        NotFoundError: for an unknown job, run, branch, tag or commit.
        SourceError: for a URI that is no git remote or W&B run, or one that cannot be read.
        InfrastructureError: when the network or a host is at fault.
    """
    if spec.job:
        try:
            return NamedJob(await session.jobs.resolve(spec.job))
        except NotFoundError as error:
            from prefect_launch.client.wandb_job import draft_of_job

            draft = await draft_of_job(spec.job, error, session.read_secret)
    elif spec.uri:
        draft = await _draft_of_uri(spec, spec.uri, session)
    else:
        return NamedJob()
    found = await session.jobs.find_same(draft)
    return NamedJob(found) if found is not None else NamedJob(await session.jobs.preview(draft), draft)


async def _draft_of_uri(spec: LaunchSpec, uri: str, session: Session) -> JobDraft:
    given = {"entity": spec.entity, "project": spec.project, "entrypoint": spec.overrides.entry_point or ()}
    if (run := run_address(uri)) is not None:
        from prefect_launch.client.wandb_job import draft_of_run

        if spec.git.version is not None:
            raise SpecError(
                f"version={spec.git.version!r} chooses what a git uri is taken at, and {str(run)!r} is a W&B run, which"
                " has a commit of its own. Leave version out."
            )
        for key, value in spec.git.of_new_job.items():
            raise SpecError(
                f"git.{key} ({value!r}) is for the job of a git uri, and {str(run)!r} is a W&B run, whose job is as the"
                " run was. Leave it out."
            )
        return await draft_of_run(run, given, session.read_secret)
    from prefect_launch.client.create_job import JobRequest, draft_job

    of_job = {{"job_name": "name"}.get(key, key): value for key, value in spec.git.of_new_job.items()}
    draft, _ = await draft_job(JobRequest(path=uri, job_type="git", git_hash=spec.git.version, **given, **of_job))
    return draft


def with_job(spec: LaunchSpec, job: Job) -> LaunchSpec:
    """Return a spec that names this version of the job; of a URI, what it was resolved to stays in `git`."""
    if not spec.uri:
        return spec.model_copy(update={"job": job.reference})
    source = job.document.source
    git = source.git if isinstance(source, GitJobSource) else None  # A W&B run may have none.
    changes = {
        "uri": None,
        "job": job.reference,
        "git": GitSource(repo=git.remote, version=git.commit) if git else GitSource(),
        "overrides": spec.overrides.model_copy(update={"entry_point": None}),  # It is the job's own now.
    }
    return spec.model_copy(update=changes)


# Validation of an item.

_logger = get_logger("launch.enqueue")

#: Where the outputs of other items seem to be as long as no agent has a folder for them.
_UNPLACED: Final = "/launch/inputs"
#: Of `docker`: what is there when a digest was looked up.
_LOOKED_UP: Final = frozenset({"pin", "digest", "resolved"})


@dataclass(frozen=True)
class CheckedItem:
    """A checked item that is not created yet.

    Attributes:
        api: whose names are the defaults.
        queue: that it goes to.
        spec: the request.
        named: its job.
        job: the same, as it was when the draft was made.
        draft: of the item.
    """

    api: Api
    queue: CachedQueue
    spec: LaunchSpec
    named: NamedJob
    job: Job | None
    draft: ItemDraft

    async def check_run_id_free(self, session: Session) -> None:
        """Refuse a run id that is taken, before a job is stored for the item.

        Raises:
            SpecError: naming the item that has it.
        """
        if self.named.draft is not None and self.spec.run_id:
            for item in await session.server.list_items(keys=[self.draft.idempotency_key], limit=1):
                same_item(item, self.draft, self.queue)

    async def made(self, session: Session) -> ItemDraft:
        """Return the draft of the item; stores its job if it is new."""
        job = await self.named.save(session.jobs)
        return self.draft if job is self.job else draft_item(self.api, self.queue, self.spec, job)


async def check_item(
    api: Api,
    session: Session,
    spec: LaunchSpec,
    queue_name: str,
    named: NamedJob | None = None,
    digests: Digests | None = None,
    *,
    is_built_first: bool = False,
    is_move: bool = False,
) -> CheckedItem:
    """Check a spec against the server's queues and jobs; makes nothing but the queue `default` on its first use.

    Args:
        api: whose names are the defaults.
        session: an open connection.
        spec: the request.
        queue_name: the queue's name.
        named: its job, when it is known.
        digests: of images, looked up once a call.
        is_built_first: the image of its code is built and pushed before the item is queued.
        is_move: the item was submitted before, perhaps by another person than the one who calls.

    Raises:
        SubmitterError: naming what is wrong, and the next step.
    """
    named = named or await resolve_source(session, spec)
    await _check_predecessors(session, spec)
    queue = await _queue(session, queue_name, spec, named.job)
    digests = digests or Digests(session.digest_cache)
    await _warn_of_locked_fields(session, queue, spec)
    if not is_built_first:
        await _refuse_image_out_of_reach(session, queue, spec, named.job)
    spec = await with_digest(spec, named.job, digests, by_queue=queue.config.pin)
    spec = spec if is_move else with_author(spec, queue)
    draft = draft_item(api, queue, spec, named.job)
    await check_named_on_server(session, queue, spec)
    await named.check_overrides(spec, session.jobs, queue.config.resource, queue.config.resource_args)
    for wanted in set(outputs_named_by(spec, named.job).values()):
        await find_outputs(session, wanted)
    return CheckedItem(api, queue, spec, named, named.job, draft)


@cache
def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged it or there is none."""
    if text:
        _logger.warning("%s", text)


async def check_named_on_server(session: Session, queue: CachedQueue, spec: LaunchSpec) -> None:
    """Check what a submitter's own options name on the Prefect server; the queue's were checked when it was written.

    Raises:
        LaunchError: naming what is not there.
    """
    asked = normalise_options(spec.resource_args.get(queue.config.resource, {}))
    if asked.keys() - {ENV}:
        options = merge_resource_args(queue.config.resource_args, asked)
        await runner_class(queue.config.resource).check_on_server(options, session.server)


async def _check_predecessors(session: Session, spec: LaunchSpec) -> None:
    """Refuse an item that waits for another one that is not there, or has ended without success.

    Raises:
        NotFoundError: naming the one that is not there.
        SpecError: naming the one that has ended, and how.
    """
    ids = [UUID(one) for one in spec.after]
    found = await read_items(session.server, ids) if ids else {}
    for one in ids:
        if one not in found:
            raise NotFoundError(
                f"There is no item {str(one)!r} to start after. 'prefect-launch item list' shows the items."
            )
    if failure := judge_predecessors(ids, found).failure:
        raise SpecError(f"It would never start. {failure}")


async def _warn_of_locked_fields(session: Session, queue: CachedQueue, spec: LaunchSpec) -> None:
    """Warn of an item that no online agent of its queue would run; another agent may still start."""
    locked = locked_parts(spec, pins=queue.config.pin)
    agents: tuple[str, ...] = ()
    if locked:
        with suppress(LaunchError):  # a failed warning must not keep anybody from queuing
            online = await session.online_agents(queue.name)
            agents = tuple(agent.name for agent in online) if all(agent.secure_mode for agent in online) else ()
    if agents:
        _logger.warning(
            "All agents online for the queue %s (%s) are in secure mode, which locks %s: there the item fails.",
            queue.name,
            ", ".join(agents),
            ", ".join(locked),
        )


async def _refuse_image_out_of_reach(session: Session, queue: CachedQueue, spec: LaunchSpec, job: Job | None) -> None:
    """Refuse an item whose image every online agent would build where its resource cannot pull it from.

    Raises:
        SpecError: naming the agents, and what to set.
    """
    runner = runner_class(queue.config.resource)
    if runner.uses_this_machine or not runner.needs_image or build_request(spec, job) is None:
        return
    online: tuple[AgentInfo, ...] = ()
    with suppress(LaunchError):  # The agent refuses it, too.
        online = await session.online_agents(queue.name)
    if online and all(agent.pushes_images is False for agent in online):
        raise SpecError(
            f"The job has code and no image, and the agents of the queue {queue.name!r}"
            f" ({', '.join(agent.name for agent in online)}) keep the images that they build on their own machines: the"
            f" resource {queue.config.resource!r} could not pull it. Have their operator set builder.destination to a"
            " repository, queue it with build=True ('add --build'), or give the job an image, or a base_image where the"
            " resource takes one."
        )


async def resolve_source(session: Session, spec: LaunchSpec) -> NamedJob:
    """Return the job that a spec names, at its version, or that would be made of its URI; none for an image."""
    if spec.image:
        parse_image(spec.image)
    return await job_named_by(spec, session)


def draft_item(api: Api, queue: CachedQueue, spec: LaunchSpec, job: Job | None) -> ItemDraft:
    """Check a spec against its queue and job, and return the draft of the item; needs no server."""
    if job is not None and spec.job:  # with a URI, it says at which commit the URI is taken
        check_version(job, spec.git.version, named=spec.job)
    _refuse_notebook(spec)
    _check_resource(spec, queue, job)
    refuse_unread(spec, job, runner_class(queue.config.resource))
    full = _completed(api, spec, job)
    _check_options(with_checked_inputs(full, job, _UNPLACED), queue, job)
    dumped = full.dump()
    check_json(dumped)  # A spec that was made as an object comes unchecked.
    parameters = {key: value for key, value in dumped.items() if key not in ("template_variables", "priority")}
    return ItemDraft(
        name=full.name or f"{job.name if job else _image_name(full)}-{full.run_id}",
        parameters=parameters,
        job_variables=dict(full.template_variables),
        tags=tags_of(full, queue=queue.name, job=job.name if job else None, version=job.version if job else None),
        labels=labels_of(full, job=job.reference if job else None) | {QUEUE_LABEL: queue.name},
        work_queue_name=_work_queue(full, queue),
        state=State.of(ItemState.QUEUED, queue.blocked_reason or None),
        # A run id that was made up here may be another item's: it must not be taken for that one.
        idempotency_key=f"{full.entity}/{full.project}/{full.run_id}" if spec.run_id else secrets.token_hex(16),
        # All was checked here, and a fraction may be larger than that schema lets any number be.
        enforce_parameter_schema=False,
    )


def with_author(spec: LaunchSpec, queue: CachedQueue) -> LaunchSpec:
    """Name whoever calls as the author, where the queue shares its places among authors; trials are their sweep's."""
    config = queue.config
    if spec.author or spec.sweep_id or (config.per_author is None and config.per_author_waiting is None):
        return spec
    return spec.model_copy(update={"author": author_here()})


async def _queue(session: Session, name: str, spec: LaunchSpec, job: Job | None) -> CachedQueue:
    try:
        return await session.queue(name)
    except NotFoundError:
        if name != DEFAULT_QUEUE:
            raise
    resource = spec.resource or default_resource(job)
    await create_queue(session, name, make_config(QueueOptions(name, resource)), replace=True)
    return await session.queue(name)


def _refuse_notebook(spec: LaunchSpec) -> None:
    """Refuse a notebook in the place of a job's command: it becomes a program only when a job is made of it."""
    notebook = None if spec.uri else notebook_in(spec.overrides.entry_point or ())
    if notebook is not None:
        raise SpecError(
            f"The entry point of this run is the notebook {notebook!r}, which no Python runs as it is. Make a job with"
            " it as the entry point (create_job, or 'prefect-launch job create'), and queue that."
        )


def _check_resource(spec: LaunchSpec, queue: CachedQueue, job: Job | None) -> None:
    check_resource(queue.config, spec, queue.name)
    runner = runner_class(queue.config.resource)
    runner.check_source(job.kind if job else SourceKind.IMAGE)
    if job is not None and job.kind is not SourceKind.IMAGE and not (runner.needs_image or job.base_image):
        check_command(spec.overrides.entry_point or job.entry_point, runner.name)
        if "conda" in job.metadata:
            raise SourceError(CondaFile(pip=(), **job.metadata["conda"]).refusal)


def _check_options(spec: LaunchSpec, queue: CachedQueue, job: Job | None) -> None:
    """Check the options that the item will run with, as far as they are known before its agent starts it."""
    image = spec.image or (job.image if job else None)
    macros = item_macros(spec, item_id=spec.run_id or "", image=image, queue=queue.name)
    options = merged_options(queue.config, spec, queue.name, macros=macros, secrets={})
    if job is not None and job.kind is not SourceKind.IMAGE:
        runner = runner_class(queue.config.resource)
        if base := job.base_image or runner.own_image(options):
            runner.check_base_image(base, options)
    arguments_of(spec, job)
    variables_of_inputs(spec, job, queue.config, queue.name)


def _completed(api: Api, spec: LaunchSpec, job: Job | None) -> LaunchSpec:
    """Return the spec with the job pinned, its inputs checked and its names filled in."""
    changes: dict[str, Any] = {
        "run_id": spec.run_id or secrets.token_hex(4),
        "entity": spec.entity or (job.entity if job else api.entity),
        "project": spec.project or (job.project if job else api.project),
    }
    if job is None:
        return spec.model_copy(update=changes)
    if job.schema:
        checked = with_checked_inputs(spec, job, _UNPLACED).overrides.run_config
        # What is kept of the item says from where such an input comes.
        named = {keys: one.model_dump() for keys, one in outputs_named_by(spec, job).items()}
        changes["overrides"] = spec.overrides.model_copy(update={"run_config": with_values(checked, named)})
    return with_job(spec.model_copy(update=changes), job)


def _work_queue(spec: LaunchSpec, queue: CachedQueue) -> str:
    if queue.config.prioritization_mode == "DISABLED" and spec.priority is not Priority.MEDIUM:
        raise SpecError(
            f"Queue {queue.name!r} has no priorities (its prioritization mode is DISABLED); leave priority out."
        )
    return spec.priority.work_queue


def same_item(item: Item, draft: ItemDraft, queue: CachedQueue) -> Item:
    """Return the item that was there under the caller's run id, when it is of the same spec.

    Raises:
        SpecError: when it is of another.
    """
    was = (_asked(item.parameters), item.job_variables or {}, item.work_queue_name or draft.work_queue_name)
    same_spec = was == (_asked(draft.parameters), draft.job_variables, draft.work_queue_name)
    if same_spec and item.work_pool_name == queue.name:
        return item
    where = f" on queue {item.work_pool_name!r}" if item.work_pool_name != queue.name else ""
    raise SpecError(
        f"The run_id {run_id_of(item)!r} is taken by another spec (item {item.id}{where})."
        " Choose another run_id, or queue the same spec to get that item."
    )


def _asked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec without the digest that was looked up, since its tag may mean another image by now.

    Nor does it matter that it was to be looked up: the queue's owner may have asked for that in the meantime.
    """
    docker = parameters.get("docker")
    if not isinstance(docker, Mapping) or not (docker.get("pin") or docker.get("resolved")):
        return dict(parameters)
    named = {key: value for key, value in docker.items() if key not in _LOOKED_UP}
    rest = {key: value for key, value in parameters.items() if key != "docker"}
    return {**rest, "docker": named} if named else rest


def _image_name(spec: LaunchSpec) -> str:
    return (spec.image or "launch").rpartition("/")[2].partition("@")[0].partition(":")[0]
