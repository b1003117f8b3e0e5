"""The flow `launch-sweep`: its flow run is the sweep, and its parameters are the sweep's configuration.

It runs in any process that executes the flow run: `prefect-launch sweep run`, or a Prefect worker by `flows/sweep.py`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect import Flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause
from prefect.flow_engine import run_flow_async
from prefect.states import Cancelled, Completed, Failed, Pending

from prefect_launch.client.api import Api, default_api
from prefect_launch.core.early_signals import ENDING_SIGNALS
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.errors import LaunchError, NotFoundError
from prefect_launch.server.values import SCHEDULER_FLOW
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.runner import SweepRunner
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.subflow import place_in_flow
from prefect_launch.sweeps.sweep_check import check_sweep_request
from prefect_launch.sweeps.sweep_run import sweep_config

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from prefect_launch.client.item_check import NamedJob
    from prefect_launch.queues.session import Session

_STATES: Final[Mapping[Outcome, Callable[..., Any]]] = {
    Outcome.FINISHED: Completed,
    Outcome.FAILED: Failed,
    Outcome.STOPPED: Cancelled,
}


#: Is given the scheduler of a sweep before it begins, to stop it.
Started = Callable[[SweepRunner], None]


def sweep_flow(report: Callable[[str], None] | None = None, started: Started | None = None) -> Flow[..., Any]:
    """Return the flow `launch-sweep`.

    Args:
        report: is called with each line about what happens; the flow run's log has them too.
        started: is given the scheduler.
    """

    @with_arguments_of(sweep_config)
    async def launch_sweep(arguments: Mapping[str, Any]) -> Any:
        return await run_as_flow(sweep_config(**arguments), report, started)

    launch_sweep.__doc__ = sweep_config.__doc__  # Prefect reads the descriptions of a form's fields there.
    about = "Queues the trials of a sweep, until it ends."
    return Flow(launch_sweep, name=SCHEDULER_FLOW, description=about, persist_result=False, retries=0)


async def run_as_flow(
    config: SweepConfig, report: Callable[[str], None] | None = None, started: Started | None = None
) -> State:
    """Run the sweep that the flow run around the call is.

    Args:
        config: of the sweep.
        report: as for `sweep_flow`.
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

    def report_line(line: str) -> None:
        logger.info(line)
        if report is not None:
            report(line)

    api = default_api()
    async with api.open() as session:
        # Prior runs are the runner's to read: a sweep that has trials continues when one of them was deleted.
        await check_sweep_request(api, session, config.without_prior_runs())
        runner = SweepRunner(api, session, context.flow_run.id, config, report=report_line)
        if started is not None:
            started(runner)
        with _stopped_by_signals(runner, report_line):
            end = await runner.run()
    if end.outcome is Outcome.PAUSED:
        raise Pause(end.message)  # As Prefect's own: this process ends, and the flow run stays in its state.
    state: State = _STATES[end.outcome](message=end.message)
    return state


@contextmanager
def _stopped_by_signals(runner: SweepRunner, report: Callable[[str], None]) -> Iterator[None]:
    """Stop the sweep at the first signal inside the block; the second one ends the process."""
    loop = asyncio.get_running_loop()
    before = {}

    def stop(number: signal.Signals) -> None:
        for each in ENDING_SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        report("The sweep is being stopped, and its trials with it; once more, and this process ends without waiting.")
        runner.stop()

    # Another thread than the main one cannot handle signals.
    with suppress(ValueError, RuntimeError):
        for number in ENDING_SIGNALS:
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
        client = session.server.client
        parent, earlier = await place_in_flow(client, parameters)
        if earlier is not None:
            return earlier
        pinned = await pinned_parameters(session, parameters, named)
        about: dict[str, Any] = {"name": config.name, "tags": ["launch", "sweep"], "parent_task_run_id": parent}
        made = await client.create_flow_run(sweep_flow(), parameters=pinned, state=Pending(), **about)
        return UUID(str(made.id))


async def pinned_parameters(session: Session, parameters: Mapping[str, Any], named: NamedJob) -> dict[str, Any]:
    """Return a sweep's parameters with its job, stored if it was new, at one version: its trials all run the same.

    Args:
        session: an open connection.
        parameters: those of `sweep_config`.
        named: what `check_sweep_request` returned.
    """
    job = await named.save(session.jobs)
    return {**parameters} if job is None else {**parameters, "job": job.reference}


async def run_sweep(
    api: Api, sweep_id: UUID, report: Callable[[str], None] | None = None, started: Started | None = None
) -> EndSweep:
    """Run a sweep in this process, as a flow, until it ends.

    Args:
        api: the Prefect server.
        sweep_id: what `begin_sweep` returned, or `resume_sweep` was given.
        report: as for `sweep_flow`.
        started: as for `sweep_flow`.

    Raises:
        NotFoundError: when its flow run was deleted; none of its trials waits or runs then.
    """
    async with api.open() as session:
        client = session.server.client
        flow_run = await client.read_flow_run(sweep_id)
    flow = sweep_flow(report, started)
    try:
        state: Any = await run_flow_async(flow, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
    except Pause as paused:
        return EndSweep(Outcome.PAUSED, str(paused))
    except ObjectNotFound:
        raise NotFoundError(f"The sweep {sweep_id} was deleted, which stops its trials.") from None
    outcome = next((one for one, make in _STATES.items() if make().type == state.type), Outcome.FAILED)
    return EndSweep(outcome, state.message or "")
