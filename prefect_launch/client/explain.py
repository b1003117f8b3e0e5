"""Dry run of `launch_add` (`explain_launch`).

It makes the same checks as `launch_add`, then plans the item as an agent would. It shows what would be created, what
the queue changes of the request, and the place in the queue. It creates nothing on the server or on this machine. It
shows names of environment variables, never their values.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.client.api import Api, default_api
from prefect_launch.client.item_check import check_named_on_server, draft_item, resolve_source, same_item, with_author
from prefect_launch.client.launch_add import launch_add, read_request
from prefect_launch.core.masking import without_users
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.core.states import StateType
from prefect_launch.core.units import format_duration
from prefect_launch.errors import NotFoundError
from prefect_launch.planning.image_pinning import Digests, digest_in, with_digest
from prefect_launch.planning.job_inputs import unread_inputs
from prefect_launch.planning.plan import Request, default_resource, preview_plan
from prefect_launch.policy.limits import fixed_options, limits_of, time_limit
from prefect_launch.policy.submitter_options import locked_options
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.author_shares import check_waiting
from prefect_launch.queues.options import QueueOptions, make_config
from prefect_launch.queues.pool import DEFAULT_QUEUE
from prefect_launch.queues.session import CachedQueue, Session, blocked_reason_of
from prefect_launch.queues.wait_reason import WaitReason, why_would_wait
from prefect_launch.runners.base import Labels, Runner, RunPlan
from prefect_launch.runners.option_values import GpuRequest, read_gpus
from prefect_launch.runners.registry import runner_class
from prefect_launch.server.secrets import secret_names
from prefect_launch.server.values import Item, ItemDraft
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.spec.option_names import normalise_option, normalise_options, read_env

if TYPE_CHECKING:
    from prefect_launch.client.build_first import BuiltJob


_ENV: Final = "env"
#: Mappings whose values are nobody's business, at any depth.
_SECRETIVE: Final = frozenset({_ENV, "env-vars", "headers"})
_HIDDEN: Final = "***"


class Change(BaseModel):
    """One difference from the request.

    Attributes:
        what: a launch option such as `job`, or an option of the resource.
        asked: the requested value; `None`: nothing.
        becomes: the effective value.
        by: who changed it, for people.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    asked: Any = None
    becomes: Any = None
    by: str


def changes_of(
    asked: LaunchSpec, full: LaunchSpec, config: QueueConfig, options: Mapping[str, Any], *, is_built: bool = False
) -> tuple[Change, ...]:
    """List the differences of the full spec, and of the resource's options, from what was asked for."""
    return (
        *_of_spec(asked, full, "the build" if is_built else "pinned", time_limit(None, config)),
        *_of_variables(asked, config),
        *_of_options(asked, config, options),
    )


def masked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, or what is created, without the values of environment variables: their names remain.

    A variable that names a secret keeps the block's name. The variables of a manifest's containers are masked too.
    """
    return {name: _names(value) if _is_env(name) else _masked_inside(value) for name, value in options.items()}


def _masked_inside(value: Any) -> Any:
    """Return nested data in which variables and headers have their names alone, and addresses no users."""
    if isinstance(value, Mapping):
        return {key: _named(item) if _is_secretive(key, item) else _masked_inside(item) for key, item in value.items()}
    if isinstance(value, str):
        return without_users(value)
    return [_masked_inside(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_secretive(key: object, value: Any) -> bool:
    """Whether a mapping, or a list of names and values, holds values that nobody should see."""
    if isinstance(value, (list, tuple)):
        return key == _ENV
    return isinstance(value, Mapping) and str(key).lower().replace("_", "-") in _SECRETIVE


def _named(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        return sorted(map(str, values))
    return [one.get("name") if isinstance(one, Mapping) else one for one in values]


def masked_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's parameters with their `resource_args` masked."""
    by_resource = parameters.get("resource_args")
    if not isinstance(by_resource, Mapping):
        return dict(parameters)
    hidden = {resource: masked(options) for resource, options in by_resource.items()}
    return {**parameters, "resource_args": hidden}


def _is_env(name: str) -> bool:
    return normalise_option(name) == _ENV


def _names(env: Any) -> list[str]:
    return sorted(_name(name, value) for name, value in read_env(env).items())


def _name(name: str, value: str) -> str:
    secrets = secret_names(value)
    return f"{name} (Secret block {', '.join(secrets)})" if secrets else name


def _of_spec(asked: LaunchSpec, full: LaunchSpec, names_job: str, limit: float | None) -> list[Change]:
    given = asked.overrides.run_config
    found = [Change(what="job", asked=asked.job, becomes=full.job, by=names_job)] if asked.job != full.job else []
    found += [
        Change(what=f"input {name}", asked=given.get(name), becomes=value, by="the job's schema")
        for name, value in full.overrides.run_config.items()
        if given.get(name) != value
    ]
    if asked.timeout is None and limit is not None:
        found.append(Change(what="timeout", becomes=format_duration(limit), by="the queue's limit"))
    if full.docker.pin and not asked.docker.pin:
        found.append(Change(what="docker.pin", becomes=True, by="the queue"))
    return found + [
        Change(what=what, becomes=getattr(full, what), by="the job, or your settings")
        for what in ("entity", "project")
        if getattr(asked, what) is None
    ]


def _of_variables(asked: LaunchSpec, config: QueueConfig) -> list[Change]:
    return [
        Change(what=f"variable {name}", becomes=schema["default"], by="the queue's default")
        for name, schema in config.template_variables.items()
        if "default" in schema and name not in asked.template_variables
    ]


def _of_options(asked: LaunchSpec, config: QueueConfig, options: Mapping[str, Any]) -> list[Change]:
    wanted = _flat(normalise_options(asked.resource_args.get(config.resource, {})))
    locked = locked_options(config.resource_args)
    found = []
    for what, value in _flat(options).items():
        if what in wanted and str(wanted[what]) == str(value):
            continue
        by = "a macro" if what in wanted else "the queue"
        if what not in wanted and what in limits_of(config) and what not in config.resource_args:
            by = "the queue's limit"
        by += f", from the template variable {locked[what]}" if what in locked else ""
        asked_for, becomes = (wanted.get(what), value) if "." not in what else (what in wanted and _HIDDEN, _HIDDEN)
        found.append(Change(what=what, asked=_masked_inside(asked_for) or None, becomes=_masked_inside(becomes), by=by))
    return found


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with each environment variable as one of its own, `env.NAME`."""
    env = options.get(_ENV)
    flat = {name: value for name, value in options.items() if name != _ENV}
    return {**flat, **{f"{_ENV}.{name}": value for name, value in (env if isinstance(env, Mapping) else {}).items()}}


# The dry run.

#: Placeholders for values that exist only once the item exists.
_ITEM: Final = "ITEM-ID"
_RUN: Final = "RUN-ID"
_HOME: Final = Path("AGENT-HOME")
_AT_START: Final = "set-at-start"
_NO_ID: Final = UUID(int=0)


class Explanation(BaseModel):
    """What would be queued, and what an agent would make of it.

    Attributes:
        name: the run's; `RUN-ID` stands for the run id that is made up when none was given.
        queue: that it would go to.
        resource: that it would run on.
        priority: its work queue in the pool.
        job: at the version that would be pinned, or made of a URI; `None` for an image.
        parameters: what the item would carry, values of variables left out.
        image: that it would run; `None` for a process, and for an image that is still to be built.
        builds: whether the job's image would be built at the start.
        digest: of the image; `None` when the agent resolves it at the start.
        creates: the container or the process, as the agent would make it.
        options: the resource's options, the queue's and the submitter's together.
        limits: the most that an item of the queue may ask for, by the option, or `timeout`.
        fixed: the options (or `env.NAME`) that the queue sets, and its submitters may not.
        changes: differences from the request, and who made them.
        waiting: its place, why it would wait, and when it would about start; `None` when the queue does not exist yet.
        there: id of the item that is already queued under this run id; `launch_add` would return it.
        note: what may surprise, if anything does, such as inputs that nothing is known to read.
        built_of: with `build`, the job whose code would be built here first; `job` is then the image job, which is the
            one that was made of the same code before when there is one.
        pushed_to: with `build`, the repository of the image.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    queue: str
    resource: str
    priority: str
    job: str | None
    parameters: dict[str, Any]
    image: str | None
    builds: bool = False
    digest: str | None = None
    creates: dict[str, Any]
    options: dict[str, Any]
    limits: dict[str, Any] = Field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    waiting: WaitReason | None = Field(default=None)
    there: str | None = None
    note: str = ""
    built_of: str | None = None
    pushed_to: str | None = None


async def explain_item(
    api: Api, session: Session, spec: LaunchSpec, queue_name: str, *, build: bool = False
) -> Explanation:
    """Return what queuing a spec would do.

    Raises:
        LaunchError: as `launch_add` does, and as the agent would before it starts the run.
    """
    named = spec if spec.run_id else spec.model_copy(update={"run_id": _RUN})
    source = await resolve_source(session, named)
    job = source.job
    queue = await _look_at(session, queue_name, default_resource(job) if spec.resource is None else spec.resource)
    named = await with_digest(named, job, Digests(session.digest_cache), by_queue=queue.config.pin)
    named = with_author(named, queue)
    draft = draft_item(api, queue, named, job)
    await check_named_on_server(session, queue, named)
    await check_waiting(session.server, queue, [draft])
    await source.check_overrides(named, session.jobs, queue.config.resource, queue.config.resource_args)
    built: BuiltJob | None = None
    if build:
        from prefect_launch.client.build_first import preview_built_job

        built = await preview_built_job(session, named, job, queue)
        job, draft = built.job, draft_item(api, queue, built.spec, built.job)
    there = await _there(session, draft, queue) if spec.run_id else None
    full = parse_spec({**draft.parameters, "template_variables": draft.job_variables})
    request = Request(spec=full, item_id=_ITEM, queue=queue.name, config=queue.config, labels=_labels(full, queue))
    plan = await preview_plan(request, MachineSettings(home=_HOME), job)
    runner = runner_class(queue.config.resource)
    return Explanation(
        name=draft.name,
        queue=queue.name,
        resource=queue.config.resource,
        priority=draft.work_queue_name,
        job=full.job,
        parameters=masked_parameters(draft.parameters),
        image=plan.image,
        builds=plan.build_request is not None,
        digest=digest_in(plan.resolved_image or plan.image or ""),
        creates=masked(runner.preview(plan)),
        options=masked(plan.options),
        limits=dict(queue.config.limits),
        fixed=_fixed(queue.config, runner),
        changes=changes_of(spec, full, queue.config, plan.options, is_built=build),
        waiting=await why_would_wait(session, queue.name, _item(draft), requested_gpus=_gpus_in_words(runner, plan)),
        there=there,
        note=unread_inputs(spec, job),
        built_of=built.built_of.reference if built else None,
        pushed_to=built.repository if built else None,
    )


def _fixed(config: QueueConfig, runner: type[Runner]) -> tuple[str, ...]:
    return tuple(sorted({*locked_options(config.resource_args), *fixed_options(config, runner)}))


async def _look_at(session: Session, name: str, resource: str) -> CachedQueue:
    """Return a queue, or the queue that its first use would create; makes no deployment."""
    try:
        pool = await session.pool(name)
    except NotFoundError:
        if name != DEFAULT_QUEUE:
            raise
        config = make_config(QueueOptions(name, resource))
        return CachedQueue(name=name, pool_id=_NO_ID, deployment_id=_NO_ID, config=config)
    config = QueueConfig.from_template(name, pool.base_job_template)
    return CachedQueue(
        name=name, pool_id=pool.id, deployment_id=_NO_ID, config=config, blocked_reason=blocked_reason_of(pool)
    )


async def _there(session: Session, draft: ItemDraft, queue: CachedQueue) -> str | None:
    """Return the id of the item that is queued under the same run id.

    Raises:
        SpecError: when it is of another spec.
    """
    found = await session.server.list_items(keys=[draft.idempotency_key], limit=1)
    return str(same_item(found[0], draft, queue).id) if found else None


def _labels(spec: LaunchSpec, queue: CachedQueue) -> dict[str, str]:
    """Return the labels that its agent would put onto what runs."""
    return {
        Labels.ITEM: _ITEM,
        Labels.ATTEMPT: "1",
        Labels.RUN_ID: spec.run_id or _RUN,
        Labels.QUEUE: queue.name,
        Labels.AGENT: _AT_START,
        Labels.CLAIM: _AT_START,
    }


def _gpus_in_words(runner: type[Runner], plan: RunPlan) -> str:
    """Return the GPUs that a run asks for, such as `2 GPUs`; an empty text for none."""
    gpus = read_gpus(normalise_options(plan.options).get("gpus")) if runner.uses_this_machine else GpuRequest()
    return "" if gpus.is_none else str(gpus)


def _item(draft: ItemDraft) -> Item:
    return Item(
        id=uuid4(),
        name=draft.name,
        parameters=draft.parameters,
        tags=draft.tags,
        state_type=StateType.SCHEDULED,
        work_queue_name=draft.work_queue_name,
    )


@with_arguments_of(launch_add)
def explain_launch(arguments: Mapping[str, Any]) -> Explanation:
    """Return what `launch_add` would do with these arguments; queues nothing and leaves nothing behind.

    It takes the arguments of `launch_add`.

    Raises:
        LaunchError: as `launch_add` does.
    """
    spec, queue = read_request(arguments)
    api = default_api()
    build = bool(arguments["build"])
    return api.call(lambda session: explain_item(api, session, spec, queue, build=build))


@with_arguments_of(launch_add)
def aexplain_launch(arguments: Mapping[str, Any]) -> Awaitable[Explanation]:
    """`explain_launch` for async code; arguments, result and errors are the same."""
    spec, queue = read_request(arguments)
    api = default_api()
    build = bool(arguments["build"])
    return api.acall(lambda session: explain_item(api, session, spec, queue, build=build))
