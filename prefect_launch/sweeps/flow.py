"""The flow `launch-sweep`: its flow run is the sweep, and its parameters are the sweep's configuration.

It runs in any process that executes the flow run: `prefect-launch sweep run`, or a Prefect worker by `flows/sweep.py`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from prefect import Flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.flow_engine import run_flow_async
from prefect.states import Cancelled, Completed, Failed, Pending
from pydantic import Field

from prefect_launch.client.api import Api, default_api
from prefect_launch.core.names import short_id
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError, NotFoundError
from prefect_launch.server.values import PAGE, SCHEDULER_FLOW, Item
from prefect_launch.server.values import State as ItemStateValue
from prefect_launch.sweeps.config import MAX_TRIALS, MAX_WORKERS, SweepConfig, parse_sweep
from prefect_launch.sweeps.runner import SweepRunner, check_sweep_request
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.subflow import place_in_flow

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from prefect_launch.client.item_check import NamedJob
    from prefect_launch.queues.session import Session

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STATES: Final[Mapping[Outcome, Callable[..., Any]]] = {
    Outcome.FINISHED: Completed,
    Outcome.FAILED: Failed,
    Outcome.STOPPED: Cancelled,
}
_MIN_PART_CHARS: Final = 6


def sweep_config(
    config: Mapping[str, Any],
    queue: str | None = None,
    job: str | None = None,
    docker_image: str | None = None,
    num_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None,
    run_cap: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None,
    prior_runs: Sequence[str] | None = None,
) -> SweepConfig:
    """Return the configuration that a sweep's flow run has: what is given beside the file wins over it.

    Its arguments are the parameters of the flow run, and the form of its deployment.

    Args:
        config: The content of a sweep file.
        queue: Where its trials are queued; by default `launch.queue` of the config.
        job: That its trials run; by default the config's.
        docker_image: That its trials run, in place of a job.
        num_workers: Trials at a time; by default the config's.
        run_cap: The most trials; by default the config's.
        prior_runs: Ids of earlier sweeps, and of other items, that its sampler learns from; by default the config's.

    Raises:
        LaunchError: as `parse_sweep` does.
    """
    parse_sweep(config)
    data = dict(config["sweep"] if set(config) == {"sweep"} else config)
    launch = dict(data.get("launch") or {})
    if job is not None or docker_image is not None:
        for name in ("job", "image_uri"):
            data.pop(name, None)
        for name in ("job", "docker", "image_uri", "uri"):
            launch.pop(name, None)
        data |= {name: value for name, value in (("job", job), ("image_uri", docker_image)) if value is not None}
    if queue is not None:
        launch["queue"] = queue
    if num_workers is not None:
        data["scheduler"] = {**(data.get("scheduler") or {}), "num_workers": num_workers}
    if run_cap is not None:
        data["run_cap"] = run_cap
    if prior_runs is not None:
        data["prior_runs"] = prior_runs
    return parse_sweep({**data, "launch": launch} if launch else data)


def config_of(sweep: Item) -> SweepConfig:
    """Return the configuration of a sweep, from its flow run; an item of a queue that names none has its trials there.

    Raises:
        LaunchError: when its parameters are none.
    """
    config = sweep_config(**sweep.parameters)
    if config.launch.queue is not None or sweep.work_pool_name is None:
        return config
    return sweep_config(**{**sweep.parameters, "queue": sweep.work_pool_name})


#: Is given the scheduler of a sweep before it begins, to stop it.
Started = Callable[[SweepRunner], None]


def sweep_flow(tell: Callable[[str], None] | None = None, started: Started | None = None) -> Flow[..., Any]:
    """Return the flow `launch-sweep`.

    Args:
        tell: is told of what happens, one line at a time, beside the flow run's log.
        started: is given the scheduler.
    """

    @with_arguments_of(sweep_config)
    async def launch_sweep(arguments: Mapping[str, Any]) -> Any:
        return await run_as_flow(sweep_config(**arguments), tell, started)

    launch_sweep.__doc__ = sweep_config.__doc__  # Prefect reads the descriptions of a form's fields there.
    about = "Queues the trials of a sweep, until it ends."
    return Flow(launch_sweep, name=SCHEDULER_FLOW, description=about, persist_result=False, retries=0)


async def run_as_flow(
    config: SweepConfig, tell: Callable[[str], None] | None = None, started: Started | None = None
) -> State:
    """Run the sweep that the flow run around the call is.

    Args:
        config: of the sweep.
        tell: as for `sweep_flow`.
        started: as for `sweep_flow`.

    Returns:
        The state that the flow run ends in.

    Raises:
        LaunchError: when no trial of it could be queued.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise LaunchError("A sweep is a flow run: call it in a flow.")
    logger = get_run_logger()

    def told(line: str) -> None:
        logger.info(line)
        if tell is not None:
            tell(line)

    api = default_api()
    async with api.open() as session:
        # Prior runs are the runner's to read: a sweep that has trials goes on when one of them was deleted.
        await check_sweep_request(api, session, config.model_copy(update={"prior_runs": ()}))
        runner = SweepRunner(api, session, context.flow_run.id, config, tell=told)
        if started is not None:
            started(runner)
        with _stopped_by_signals(runner, told):
            end = await runner.run()
    state: State = _STATES[end.outcome](message=end.message)
    return state


@contextmanager
def _stopped_by_signals(runner: SweepRunner, tell: Callable[[str], None]) -> Iterator[None]:
    """Stop the sweep at the first signal inside the block; the second one ends the process."""
    loop = asyncio.get_running_loop()
    before = {}

    def stop(number: signal.Signals) -> None:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        tell("The sweep is being stopped, and its trials with it; once more, and this process ends without waiting.")
        runner.stop()

    # Another thread than the main one cannot handle signals.
    with suppress(ValueError, RuntimeError):
        for number in _SIGNALS:
            if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stop, number)
                before[number] = handler
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


# --- from outside the flow ---


async def begin_sweep(api: Api, parameters: Mapping[str, Any]) -> UUID:
    """Check a sweep and make its flow run; nothing runs yet. In a flow, it is a subflow.

    Args:
        api: the Prefect server.
        parameters: those of `sweep_config`.

    Returns:
        The sweep's id, for `run_sweep`. In a flow that is tried again, that of the sweep which its earlier try began,
        whatever has become of it.

    Raises:
        LaunchError: as `check_sweep_request` does; then nothing was made.
    """
    config = sweep_config(**parameters)
    async with api.open() as session:
        named = await check_sweep_request(api, session, config)
        pinned = pinned_parameters(parameters, named)
        client: Any = session.server.client  # type: ignore[attr-defined]
        parent, earlier = await place_in_flow(client, parameters)
        if earlier is not None:
            return earlier
        about: dict[str, Any] = {"name": config.name, "tags": ["launch", "sweep"], "parent_task_run_id": parent}
        made = await client.create_flow_run(sweep_flow(), parameters=pinned, state=Pending(), **about)
        return UUID(str(made.id))


def pinned_parameters(parameters: Mapping[str, Any], named: NamedJob) -> dict[str, Any]:
    """Return a sweep's parameters with its job at one version: trials of one sweep all run the same.

    Args:
        parameters: those of `sweep_config`.
        named: what `check_sweep_request` returned.
    """
    return {**parameters} if named.job is None else {**parameters, "job": named.job.reference}


async def resume_sweep(api: Api, sweep_id: UUID, given: Mapping[str, Any]) -> None:
    """Let a sweep that has ended, or whose process has died, be run again; nothing runs yet.

    Args:
        api: the Prefect server.
        sweep_id: its id.
        given: parameters of `sweep_config` that win over the sweep's own.

    Raises:
        LaunchError: when the sweep cannot go on with these; then it stays as it is.
    """
    async with api.open() as session:
        sweep = await read_sweep(session, sweep_id)
        wanted = {name: value for name, value in given.items() if value is not None}
        if "job" in wanted or "docker_image" in wanted:
            wanted = {"job": None, "docker_image": None, **wanted}
        parameters = {**sweep.parameters, **wanted}
        await check_sweep_request(api, session, sweep_config(**parameters))
        await session.server.replace_parameters(sweep_id, parameters)
        pending = ItemStateValue.of(ItemState.CLAIMED, "The sweep is resumed.")
        await session.server.propose(sweep_id, pending, force=True)


async def run_sweep(
    api: Api, sweep_id: UUID, tell: Callable[[str], None] | None = None, started: Started | None = None
) -> EndSweep:
    """Run a sweep in this process, as a flow, until it ends.

    Args:
        api: the Prefect server.
        sweep_id: what `begin_sweep` returned, or `resume_sweep` was given.
        tell: as for `sweep_flow`.
        started: as for `sweep_flow`.
    """
    async with api.open() as session:
        client: Any = session.server.client  # type: ignore[attr-defined]
        flow_run = await client.read_flow_run(sweep_id)
    flow = sweep_flow(tell, started)
    state: Any = await run_flow_async(flow, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
    outcome = next((one for one, make in _STATES.items() if make().type == state.type), Outcome.FAILED)
    return EndSweep(outcome, state.message or "")


async def stop_sweep(api: Api, sweep_id: UUID, tell: Callable[[str], None]) -> EndSweep:
    """Stop a sweep and its trials, whether a process runs it or not; wait until none of them waits or runs.

    Raises:
        LaunchError: when it has ended already, and none of its trials waits or runs.
    """
    async with api.open() as session:
        sweep = await read_sweep(session, sweep_id)
        if sweep.is_terminal:
            raise LaunchError(f"The sweep {sweep_id} has ended already, as {sweep.state_name}: nothing to stop.")
        runner = SweepRunner(api, session, sweep_id, config_of(sweep), tell=tell)
        runner.stop()
        end = await runner.run()
        cancelled = ItemStateValue.of(ItemState.CANCELLED, end.message)
        sweep = await read_sweep(session, sweep_id)
        if not sweep.is_terminal:
            await session.server.propose(sweep_id, cancelled)
        return end


async def read_sweep(session: Session, sweep_id: UUID) -> Item:
    """Read a sweep's flow run.

    Raises:
        NotFoundError: when there is none, or it is no sweep.
    """
    found = await session.server.read_item(sweep_id)
    if found is None or found.flow != SCHEDULER_FLOW:
        raise NotFoundError(f"There is no sweep {str(sweep_id)!r}. 'prefect-launch sweep list' shows them.")
    return found


async def list_sweeps(session: Session) -> list[Item]:
    """List the newest sweeps, the newest first; at most 200."""
    return await session.server.list_items(flow=SCHEDULER_FLOW, limit=PAGE)


async def find_sweep(session: Session, given: str) -> Item:
    """Find a sweep by its id, the id's first or last characters (6 or more), or its name.

    Raises:
        NotFoundError: when there is none, or there are several.
    """
    text = given.strip()
    with suppress(ValueError):
        return await read_sweep(session, UUID(text))
    sweeps = await list_sweeps(session)
    part = text.lower() if len(text) >= _MIN_PART_CHARS else None
    found = [
        sweep
        for sweep in sweeps
        if sweep.name == text or (part and (str(sweep.id).endswith(part) or str(sweep.id).startswith(part)))
    ]
    if len(found) != 1:
        known = ", ".join(f"{short_id(sweep.id)} ({sweep.name})" for sweep in (found or sweeps)[:5])
        fault = f"{given!r} may mean several sweeps:" if found else f"There is no sweep {given!r}. There are:"
        raise NotFoundError(f"{fault} {known or 'none yet'}. Give the id of one.")
    return found[0]
