"""Direct runs (`launch`): a job runs here and now, in the caller's process, as a flow.

A call alone is its own flow run; a call in a flow is a subflow. `launch_flow` is the flow. `alaunch` and `launch` call
it, and wait for it or leave it in the background.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from uuid import UUID

import anyio
from prefect import Flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from prefect_launch.agent.item.image_build import build_with_log
from prefect_launch.agent.item.inputs import fetch_inputs
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.metrics import MetricsCollector
from prefect_launch.agent.item.outputs import copy_previous_outputs, keep_outputs, publish_outputs
from prefect_launch.agent.item.usage import UsageCollector
from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.client.api import Api
from prefect_launch.client.background import FollowedRun, follower
from prefect_launch.client.item_check import job_named_by, warn_once, with_job
from prefect_launch.clouds.accounts import Clouds
from prefect_launch.core.event_loop import run_sync
from prefect_launch.core.names import short_id
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.core.states import ItemState
from prefect_launch.core.validation import check_server_json
from prefect_launch.direct.ending import (
    ending_as_its_run,
    failure_of,
    outcome_of_run,
    retries_here,
    show_failure,
    with_retries,
)
from prefect_launch.errors import LaunchError, SpecError
from prefect_launch.planning.job_inputs import unread_inputs
from prefect_launch.planning.plan import Request, default_resource, local_config, make_plan, preview_plan
from prefect_launch.queues.session import Session
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.runners.base import ExitStatus, Labels, Runner, RunPlan
from prefect_launch.runners.registry import make_runner, runner_class
from prefect_launch.runners.run import DEFAULT_GRACE_SECONDS, AbstractRun, RunnerRun
from prefect_launch.settings.agent_config import MachineSettings, default_home, resolve_agent_config
from prefect_launch.sources.remote import machine_git_settings
from prefect_launch.spec.launch_spec import LaunchSpec, construct_spec

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from prefect_launch.jobs.model import Job

P = ParamSpec("P")
T = TypeVar("T")

_LAST_LINES = 20


@task(name="prepare", cache_policy=NO_CACHE, persist_result=False)
@ending_as_its_run
async def _prepare(
    session: Session, flow_run_id: UUID, runner: Runner, plan: RunPlan, repository: str | None
) -> RunPlan:
    """Build or pull the image, or make the environment."""
    if plan.build_request is not None:
        plan = await _with_image(session, flow_run_id, runner, plan, repository)
    runner.check(plan)
    await runner.prepare(plan)
    return plan


async def _with_image(
    session: Session, flow_run_id: UUID, runner: Runner, plan: RunPlan, repository: str | None
) -> RunPlan:
    config = resolve_agent_config()
    settings = config.builder.pushing_to(repository)
    if not runner.uses_this_machine:
        settings.check_reaches(runner.name)
    images = ImageBuilder(settings, config.home, "a call of launch", runner.registry)
    try:
        found = await images.find(plan)
        return found or await build_with_log(session.server, flow_run_id, images, plan)
    finally:
        await images.aclose()


@task(name="run", cache_policy=NO_CACHE, persist_result=False)
@ending_as_its_run
async def _run(session: Session, flow_run_id: UUID, runner: Runner, plan: RunPlan, follow: bool) -> RunnerRun:
    """Create and start the run, and follow it to its end."""
    handle = await runner.create(plan)
    try:
        await session.server.record_infrastructure(flow_run_id, handle)
        await runner.start(handle)
        run = RunnerRun(runner, handle, plan)
        if follow:
            if (followed := FollowedRun.here()) is not None:
                followed.attempt_started(run)
            await runner.wait_running(handle, partial(_log_wait, runner.name))
    except BaseException:
        # It is interrupted, or does not come to run: nothing of it stays.
        with anyio.CancelScope(shield=True), suppress(LaunchError):
            await runner.stop(handle, DEFAULT_GRACE_SECONDS)
            await runner.remove(handle)
        raise
    if follow:
        await _follow(session, flow_run_id, runner, handle, run, plan)
    return run


async def _log_wait(resource: str, reason: str) -> None:
    """Log why the run waits where it was submitted."""
    get_run_logger().info("Waits in %s%s", resource, f": {reason}" if reason else " to be started.")


async def _follow(
    session: Session, flow_run_id: UUID, runner: Runner, handle: str, run: RunnerRun, plan: RunPlan
) -> None:
    shipper = LogShipper(session.server, flow_run_id, plan.log_path, mask=plan.mask)
    shipper.follow()
    collector = MetricsCollector(session.server, flow_run_id, plan)
    collector.follow()
    usage = UsageCollector(plan, runner, handle)
    usage.follow()

    async def close(end: ExitStatus, *, timed_out: bool = False) -> None:
        await usage.let_go()
        end = usage.in_end(end)
        try:
            await shipper.finish()
        finally:
            await shipper.let_go()
            await collector.let_go()
        try:
            await _keep(session, flow_run_id, plan, end)
            await collector.finish()
            await usage.finish(session.server, flow_run_id, usage.totals(end))
            outcome = outcome_of_run(plan, end, timed_out=timed_out)
            if outcome.state is not ItemState.COMPLETED:
                await show_failure(session, flow_run_id, plan, end, outcome, await runner.image_of(handle))
                raise failure_of(plan, end, outcome, await shipper.last_lines(_LAST_LINES))
        finally:
            if end.log_complete:
                await runner.remove(handle)

    try:
        end, timed_out = await _ended(run, plan)
    except (asyncio.CancelledError, LaunchError):
        # The caller is interrupted, or out of time, or a part of the run can never start: remove all of it.
        with anyio.CancelScope(shield=True), suppress(LaunchError):
            await run.cancel()
            if run.exit is not None:
                await close(run.exit)
        raise
    await close(end, timed_out=timed_out)


async def _ended(run: RunnerRun, plan: RunPlan) -> tuple[ExitStatus, bool]:
    """Wait for the end; return the exit status, and whether the time limit ended the run."""
    timed_out = False
    try:
        await run.wait(plan.timeout)
    except TimeoutError:
        timed_out = True
        await run.cancel()
    assert run.exit is not None, "it has ended"
    return run.exit, timed_out


async def _keep(session: Session, flow_run_id: UUID, plan: RunPlan, end: ExitStatus) -> None:
    await keep_outputs(session, flow_run_id, plan, end)
    await publish_outputs(session.server, flow_run_id, plan.run_id, plan.output_dir)


class _LaunchFlow(Flow[P, T]):
    """The flow `launch`; it refuses parameters that the server cannot store before a flow run exists."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        serialized = super().serialize_parameters(parameters)
        check_server_json(serialized, "What launch is asked for")
        return serialized


def _launch_flow(function: Callable[P, Coroutine[Any, Any, T]]) -> Flow[P, Coroutine[Any, Any, T]]:
    return _LaunchFlow(function, name="launch", validate_parameters=False, persist_result=False, retries=0)


def launch(
    api: Api,
    job: str | None = None,
    entry_point: Sequence[str] | None = None,
    version: str | None = None,
    name: str | None = None,
    resource: str | None = None,
    resource_args: Mapping[str, Any] | None = None,
    project: str | None = None,
    entity: str | None = None,
    docker_image: str | None = None,
    config: Mapping[str, Any] | None = None,
    synchronous: bool = True,
    run_id: str | None = None,
    repository: str | None = None,
) -> AbstractRun:
    """Run a job here and now, as a flow. It blocks a running event loop: use `alaunch` in asynchronous code.

    Args:
        api: the Prefect server.
        job: `entity/project/name:alias`, or a shorter form. Exactly one of `job`, `docker_image` and a git `uri` in
            `config`.
        entry_point: command, as a list of texts, that takes the place of the job's own.
        version: git branch, tag or commit of the `uri`.
        name: the run's display name.
        resource: `local-process` or `local-container`; by default what the job's kind needs.
        resource_args: `{resource: {option: value}}`.
        project: of the run.
        entity: of the run.
        docker_image: image to run.
        config: a launch config; arguments win over it, key by key. It is not changed. Its `retries`, or the job's,
            hold here too.
        synchronous: wait until the run has ended. When false, the call returns as soon as the run has started, and this
            process follows it in the background. It blocks at its exit until the run has ended, as a flow does at its
            end; when it is interrupted (SIGINT, SIGTERM), it ends the run first. Nobody follows a run
            of a third party's runner elsewhere: only the returned run tells its state.
        run_id: a name for the run.
        repository: where a built image is pushed.

    Returns:
        The run. Its flow run's state is its own: `Running` until it ends, then as it has ended.

    Raises:
        ExecutionError: when a run that was waited for failed; with the exit code and the last lines of its log.
        LaunchError: when it cannot be started; see the subclasses.
    """
    arguments: dict[str, Any] = {
        **{"api": api, "job": job, "entry_point": entry_point, "version": version, "name": name, "resource": resource},
        **{"resource_args": resource_args, "project": project, "entity": entity, "docker_image": docker_image},
        **{"config": config, "synchronous": synchronous, "run_id": run_id, "repository": repository},
    }
    if not synchronous:
        follower().end_runs_at_sigterm()  # In the program's own thread, which the coroutine may not run in.
    return run_sync(alaunch(**arguments))


@with_arguments_of(launch)
async def alaunch(arguments: Mapping[str, Any]) -> AbstractRun:
    """`launch` for async code; arguments, result and errors are the same."""
    given = dict(arguments)
    config = given["config"]
    flow = launch_flow_named(given["name"] or (config.get("name") if isinstance(config, Mapping) else None))
    if given["synchronous"]:
        run: AbstractRun = await flow(**given)
        return run
    return await follower().begin(lambda: flow(**given))


def launch_flow_named(name: object) -> Flow[..., Any]:
    """Return the flow `launch` whose flow run has a run's display name; without one, Prefect makes a name up."""
    # A function, not a text: Prefect would fill in braces that stand in a text.
    return launch_flow.with_options(flow_run_name=lambda: str(name)) if name else launch_flow


@_launch_flow
@ending_as_its_run
@with_arguments_of(launch)
async def launch_flow(arguments: Mapping[str, Any]) -> AbstractRun:
    """Flow of `launch`, with its arguments; ends when the run has ended.

    Raises:
        LaunchError: as `launch` does.
    """
    given = dict(arguments)
    api, synchronous = given.pop("api"), given.pop("synchronous")
    spec = construct_spec(given.pop("config"), **given)
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise LaunchError("launch_flow is a Prefect flow: call it, not the function under it.")
    flow_run = context.flow_run
    followed = FollowedRun.here()
    async with api.open() as session:
        spec, found = await _pin(session, spec, str(flow_run.id))
        follow = synchronous or runner_class(spec.resource or default_resource(found)).uses_this_machine
        rule = retries_here(spec, found, followed=follow)

        async def attempt(number: int) -> RunnerRun:
            return await _attempt(session, spec, found, flow_run.id, number, follow)

        async def pause(seconds: float) -> None:
            await (anyio.sleep(seconds) if followed is None else followed.unless_stopped(anyio.sleep(seconds)))

        return await with_retries(rule, attempt, first=max(1, flow_run.run_count), logger=get_run_logger(), pause=pause)


async def _pin(session: Session, spec: LaunchSpec, item_id: str) -> tuple[LaunchSpec, Job | None]:
    """Pin the version of the job, so that every attempt runs the same; creates a URI's job after all checks."""
    named = await job_named_by(spec, session)
    if named.job is not None and named.draft is not None:
        await preview_plan(_request(with_job(spec, named.job), named.job, item_id, 1), _machine_settings(), named.job)
    resource = spec.resource or default_resource(named.job)
    _check_needs_no_queue(resource)
    await named.check_overrides(spec, session.jobs, resource)
    job = await named.save(session.jobs)
    warn_once(unread_inputs(spec, job))
    return (spec if job is None else with_job(spec, job)), job


def _check_needs_no_queue(resource: str) -> None:
    """Refuse a resource that can be reached through a queue alone."""
    if runner_class(resource).needs_queue:
        raise SpecError(
            f"A run without a queue cannot go to {resource}: it needs options that only a queue's owner may set. Queue"
            f" it: 'prefect-launch add -q QUEUE'. A queue is made with 'prefect-launch queue create QUEUE -r {resource}"
            " -c FILE'."
        )


async def _attempt(
    session: Session, spec: LaunchSpec, job: Job | None, flow_run_id: UUID, number: int, follow: bool
) -> RunnerRun:
    chosen, plan = await _plan(session, spec, job, str(flow_run_id), number)
    config = resolve_agent_config()
    clouds = Clouds(config.clouds)
    runner = make_runner(chosen, default_home(), RemoteRegistries(config.keychain(clouds)), clouds)
    followed = FollowedRun.here()
    try:
        work = _result(_prepare(session, flow_run_id, runner, plan, spec.registry.uri, return_state=True))
        plan = await (work if followed is None else followed.unless_stopped(work))
        return await _result(_run(session, flow_run_id, runner, plan, follow, return_state=True))
    except LaunchError:
        with plan.mask.in_errors():
            raise
    finally:
        if follow:
            await runner.aclose()


async def _result(ended: State[T]) -> T:
    """Return the result of a task, or raise its error."""
    # Prefect's types leave out that a call of an async task has to be awaited.
    return await (await cast("Awaitable[State[T]]", ended)).aresult()


async def _plan(session: Session, spec: LaunchSpec, job: Job | None, item_id: str, attempt: int) -> tuple[str, RunPlan]:
    request, machine = _request(spec, job, item_id, attempt), _machine_settings()
    plan = await make_plan(request, machine, session.jobs, session.read_secret)
    await copy_previous_outputs(session, plan, machine)
    await fetch_inputs(session, plan)
    return request.config.resource, plan


def _request(spec: LaunchSpec, job: Job | None, item_id: str, attempt: int) -> Request:
    config = local_config(spec.resource or default_resource(job))
    labels = {Labels.ITEM: item_id, Labels.ATTEMPT: str(attempt), Labels.RUN_ID: spec.run_id or short_id(item_id)}
    return Request(spec=spec, item_id=item_id, attempt=attempt, config=config, labels=labels)


def _machine_settings() -> MachineSettings:
    return MachineSettings(home=default_home(), git=machine_git_settings())
