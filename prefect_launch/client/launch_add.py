"""Queuing of jobs: `launch_add` and `launch_add_many`.

All checks come before anything is made: source, queue, job and inputs, template variables, options. A refused call
leaves nothing behind. In a flow, `launch_add` is a task of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from prefect_launch.client import in_flow
from prefect_launch.client.api import Api, default_api
from prefect_launch.client.item_check import CheckedItem, NamedJob, check_item, same_item, same_source, warn_once
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.errors import InternalError, LaunchError, QueueError, ServerUnavailableError, SpecError, retold
from prefect_launch.planning.image_pinning import Digests
from prefect_launch.planning.job_inputs import unread_inputs
from prefect_launch.planning.refused_fields import refuse_unread_at_queue
from prefect_launch.queues.author_shares import check_waiting
from prefect_launch.queues.pool import DEFAULT_QUEUE
from prefect_launch.queues.session import CachedQueue, Session
from prefect_launch.server.values import PAGE, Item, ItemDraft
from prefect_launch.spec.launch_spec import LaunchSpec, construct_spec, parse_spec

#: Is told how many items of how many are on the queue.
Progress = Callable[[int, int], None]

#: The second try sees a queue that was deleted and created again meanwhile.
_ATTEMPTS: Final = 2


def launch_add(
    uri: str | None = None,
    job: str | None = None,
    config: Mapping[str, Any] | None = None,
    template_variables: Mapping[str, Any] | None = None,
    project: str | None = None,
    entity: str | None = None,
    queue_name: str | None = None,
    resource: str | None = None,
    entry_point: Sequence[str] | None = None,
    name: str | None = None,
    version: str | None = None,
    docker_image: str | None = None,
    project_queue: str | None = None,
    resource_args: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    build: bool = False,
    repository: str | None = None,
    sweep_id: str | None = None,
    author: str | None = None,
    priority: int | str | None = None,
) -> QueuedRun:
    """Put one item on a queue of the Prefect server.

    Args:
        uri: a git repository (https, ssh or `git@host:path`): a job is made of it, with `version` and `entry_point`, or
            found when there is one of the same commit and entry point, and queued.
        job: `entity/project/name:alias`, or a shorter form. Exactly one of `job`, `docker_image` and `uri`.
        config: a launch config; arguments win over it, key by key. It is not changed.
        template_variables: values of the queue's template variables.
        project: of the run; by default the job's, or the default one.
        entity: of the run, likewise.
        queue_name: of the queue; `default`, which is made on first use, when none is given.
        resource: must be the queue's, when given.
        entry_point: command, as a list of texts, that takes the place of the job's own.
        name: the run's display name, 1 to 200 characters.
        version: git branch, tag or commit of `uri`; by default the remote's default branch.
        docker_image: image to run.
        project_queue: kept on the handle, for callers of the reference's library.
        resource_args: `{resource: {option: value}}`, over the queue's own; the queue says which options may be set.
        run_id: a name for the run. Queuing the same spec again under it returns the existing item.
        build: build the image of the job's code here, push it to `repository`, and queue an image job of it.
        repository: where the built image is pushed, such as `registry.example:5000/team/train`; by default
            `builder.destination` of this machine's agent config.
        sweep_id: id of the sweep that it belongs to.
        author: who submits it.
        priority: 1 (critical), 2 (high), 3 (medium, the default), 4 (low), or the word.

    Returns:
        A handle on the item.

    Raises:
        SpecError: for no source or several, and for values of the wrong type or out of range.
        SourceError: for a `uri` that is no git remote or cannot be read, and for a command's file, a Dockerfile or a
            config file that the job's code does not have, as far as its files are known here.
        InfrastructureError: when a git host cannot be reached.
        InputError: when the inputs do not match the job's schema.
        NotFoundError: for an unknown queue, job, alias, variable, option or resource; names the nearest right one.
        UnsafeSpecError: for an option that the queue does not let submitters set.
        QueueError: when its author has as many waiting as the queue allows.
        ServerUnavailableError: when the server does not answer within 15 s.
    """
    arguments = {
        **{"uri": uri, "job": job, "config": config, "template_variables": template_variables, "project": project},
        **{"entity": entity, "queue_name": queue_name, "resource": resource, "entry_point": entry_point, "name": name},
        **{"version": version, "docker_image": docker_image, "resource_args": resource_args, "run_id": run_id},
        **{"build": build, "repository": repository, "sweep_id": sweep_id, "author": author, "priority": priority},
    }
    spec, queue, add = _request(arguments)
    api = default_api()
    if in_flow.is_flow_code():
        run: QueuedRun = in_flow.sync_task()(api, spec, queue, add)
    else:
        run = api.call(lambda session: add(api, session, spec, queue))
    run.project_queue = project_queue
    return run


@with_arguments_of(launch_add)
async def alaunch_add(arguments: Mapping[str, Any]) -> QueuedRun:
    """`launch_add` for async code; arguments, result and errors are the same."""
    spec, queue, add = _request(arguments)
    api = default_api()
    if in_flow.is_flow_code():
        run: QueuedRun = await in_flow.async_task()(api, spec, queue, add)
    else:
        run = await api.acall(lambda session: add(api, session, spec, queue))
    run.project_queue = arguments["project_queue"]
    return run


def launch_add_many(
    specs: Iterable[LaunchSpec | Mapping[str, Any]],
    queue_name: str | None = None,
    *,
    run_id: str | None = None,
    progress: Progress | None = None,
    api: Api | None = None,
) -> list[QueuedRun]:
    """Put many items on one queue, in as few requests as possible; each exactly once, in order.

    With `run_id`, a call that was killed can be made again: it adds what is missing, and no item twice.

    Args:
        specs: launch configs.
        queue_name: of the queue; `default` when none is given.
        run_id: a name for the list. Its items have the run ids `NAME-1`, `NAME-2`, … in its order, but for those with
            their own. Further items may follow at the end of the list later.
        progress: is called with the number of items that are on the queue, and of all: first with those that were
            there already, then after each request.
        api: the server; the default one when none is given.

    Returns:
        A handle on each.

    Raises:
        LaunchError: as `launch_add`; nothing is queued when one of the specs is refused.
    """
    own, read = api or default_api(), _parse_all(specs, run_id)
    return own.call(lambda session: add_items(own, session, read, queue_name or DEFAULT_QUEUE, progress))


@with_arguments_of(launch_add_many)
async def alaunch_add_many(arguments: Mapping[str, Any]) -> list[QueuedRun]:
    """`launch_add_many` for async code."""
    own, read = arguments["api"] or default_api(), _parse_all(arguments["specs"], arguments["run_id"])
    queue, progress = arguments["queue_name"] or DEFAULT_QUEUE, arguments["progress"]
    return await own.acall(lambda session: add_items(own, session, read, queue, progress))


def _parse_all(specs: Iterable[LaunchSpec | Mapping[str, Any]], run_id: str | None) -> list[LaunchSpec]:
    given, read = list(specs), list[LaunchSpec]()
    for number, spec in enumerate(given, start=1):
        with _told_of(number, len(given)):
            read.append(_parse(spec, None if run_id is None else f"{run_id}-{number}"))
    return read


@contextmanager
def _told_of(number: int, count: int) -> Iterator[None]:
    """Let the error of a spec that is refused say which one of the list it is."""
    try:
        yield
    except LaunchError as error:
        if count > 1 and not isinstance(error, (InternalError, ServerUnavailableError)):
            retold(error, f"Spec {number} of {count}: {error}")
        raise


def _parse(spec: LaunchSpec | Mapping[str, Any], run_id: str | None) -> LaunchSpec:
    read = (spec if isinstance(spec, LaunchSpec) else parse_spec(spec)).check_source()
    refuse_unread_at_queue(read, build=False)
    return read if run_id is None or read.run_id else parse_spec({**read.dump(), "run_id": run_id})


def _request(arguments: Mapping[str, Any]) -> tuple[LaunchSpec, str, in_flow.Add]:
    """Read the arguments of a call into a spec, the queue's name, and what makes the item."""
    spec, queue = read_request(arguments)
    named = in_flow.with_run_id(spec, queue)
    found = named.run_id != spec.run_id and in_flow.is_retry()
    add = add_built_item if arguments["build"] else add_item
    return named, queue, in_flow.found_again(add) if found else add


def read_request(arguments: Mapping[str, Any]) -> tuple[LaunchSpec, str]:
    """Read the arguments of `launch_add` into a spec and the queue's name.

    Raises:
        LaunchError: as `launch_add` does for what needs no server to be refused.
    """
    given = dict(arguments)
    queue, build = given.pop("queue_name"), given.pop("build")
    given.pop("project_queue", None)
    if build and not queue:
        raise SpecError(
            "Cannot build an image without a queue. Give queue_name; 'launch' builds what it runs here by itself."
        )
    queue = queue or DEFAULT_QUEUE
    spec = construct_spec(given.pop("config"), **given)
    refuse_unread_at_queue(spec, build=build)
    return spec, queue


# --- with an open session ---------------------------------------------------------------------------------------------


async def add_item(
    api: Api, session: Session, spec: LaunchSpec, queue_name: str, labels: Mapping[str, str] | None = None
) -> QueuedRun:
    """Check a spec and make its item, with these labels besides its own; see `launch_add`."""
    named = spec.run_id is not None
    for _ in range(_ATTEMPTS):
        checked = await check_item(api, session, spec, queue_name)
        await checked.check_run_id_free(session)
        await check_waiting(session.server, checked.queue, [checked.draft])
        queue, draft = checked.queue, await checked.made(session)
        if labels:
            draft = draft.model_copy(update={"labels": {**draft.labels, **labels}})
        item = await session.server.create_item(queue.deployment_id, draft)
        if item is not None and item.work_pool_name == queue.name:
            warn_once(unread_inputs(checked.spec, checked.job))
            return QueuedRun(api, same_item(item, draft, queue) if named else item)
        if item is not None and named:
            same_item(item, draft, queue)
        await _drop(session, queue, item)
    raise QueueError(
        f"The queue {queue_name!r} was deleted while the item was made; nothing was queued. Make the queue."
    )


async def add_built_item(api: Api, session: Session, spec: LaunchSpec, queue_name: str) -> QueuedRun:
    """Build and push the image of a spec's job, then make the item of an image job; see `launch_add`."""
    from prefect_launch.client.build_first import with_built_job

    return await add_item(api, session, await with_built_job(api, session, spec, queue_name), queue_name)


async def _drop(session: Session, queue: CachedQueue, item: Item | None) -> None:
    """Delete an item whose queue was deleted, and read the queue again."""
    session.forget_queue(queue.name)
    if item is not None:
        await session.server.delete_item(item.id)


async def add_items(
    api: Api, session: Session, specs: Sequence[LaunchSpec], queue_name: str, progress: Progress | None = None
) -> list[QueuedRun]:
    """Check all specs, then make all items; see `launch_add_many`."""
    session.forget_queue(queue_name)
    checked: list[CheckedItem] = []
    digests = Digests(session.digest_cache)
    sources: dict[object, NamedJob] = {}  # Each remote is read once, however many items use it.
    if not specs:
        return []
    if queue_name != DEFAULT_QUEUE:  # That one is made for the first of the specs.
        await session.queue(queue_name)
    for number, spec in enumerate(specs, start=1):
        source = same_source(spec)
        with _told_of(number, len(specs)):
            checked.append(await check_item(api, session, spec, queue_name, sources.get(source), digests))
        sources[source] = checked[-1].named
    queue = checked[0].queue
    taken = [one.draft.idempotency_key for one in checked]
    if len(set(taken)) < len(taken):
        twice = next(key for key, count in Counter(taken).items() if count > 1)
        raise SpecError(f"Two specs of the list have the run_id {twice.rpartition('/')[2]!r}; each needs its own.")
    for number, one in enumerate(checked, start=1):
        with _told_of(number, len(specs)):
            await one.check_run_id_free(session)
    await check_waiting(session.server, queue, [one.draft for one in checked])
    drafts = [await one.made(session) for one in checked]
    named = [draft for draft, spec in zip(drafts, specs, strict=True) if spec.run_id]
    items = await _find_made(session, queue, named)
    missing = [draft for draft in drafts if draft.idempotency_key not in items]
    tell = progress or (lambda made, of: None)
    there = len(items)
    tell(there, len(drafts))
    for item in await session.server.create_items(
        queue.deployment_id, missing, progress=lambda made: tell(there + made, len(drafts))
    ):
        items[item.idempotency_key or ""] = item.model_copy(update={"work_pool_name": queue.name})
    for one in checked:
        warn_once(unread_inputs(one.spec, one.job))
    return [QueuedRun(api, items[draft.idempotency_key]) for draft in drafts]


async def _find_made(session: Session, queue: CachedQueue, drafts: Sequence[ItemDraft]) -> dict[str, Item]:
    """Return the items that are there under the run ids of some, by their keys.

    Raises:
        SpecError: when another spec has taken one of the run ids.
    """
    found: dict[str, Item] = {}
    for start in range(0, len(drafts), PAGE):
        asked = {draft.idempotency_key: draft for draft in drafts[start : start + PAGE]}
        for item in await session.server.list_items(keys=list(asked), limit=PAGE):
            key = item.idempotency_key or ""
            found[key] = same_item(item, asked[key], queue)
    return found
