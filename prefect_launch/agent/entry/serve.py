"""Serving an agent as a deployment on a schedule: one run at a time, each a shift, the next one takes over.

A shift ends before the next is due, so that none is ever refused for overlapping; the deployment's limit of one run
is only the net under that. A shift that crashed is replaced at once. Runs that a stopped service left waiting or
running are cleared away: no pile of late or cancelled runs is left in the UI.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.agent.item.transitions import log
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import AgentConfigError, ServerUnavailableError
from prefect_launch.queues.agent_status import TAG
from prefect_launch.queues.deployment import queue_tag
from prefect_launch.settings.agent_config import AgentConfig

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.deployments.runner import RunnerDeployment

    from prefect_launch.client.api import Api

DEFAULT_INTERVAL_SECONDS: Final = 600.0
#: A shift costs the server about ten writes and the machine some seconds of a core.
MIN_INTERVAL_SECONDS: Final = 60.0
#: What a shift leaves free before the next one: time to let go, and for the clocks to differ.
MARGIN_SECONDS: Final = 10.0
#: How often the service looks whether a shift is on, and whether one is due.
LOOK_SECONDS: Final = 2.0
#: What the service is given to end: Prefect gives a run 30 s.
STOP_SECONDS: Final = 40.0
_PAGE: Final = 200


async def serve(api: Api, config: AgentConfig, *, interval_seconds: float = DEFAULT_INTERVAL_SECONDS) -> None:
    """Serve an agent until stopped by SIGINT or SIGTERM.

    Args:
        api: the server.
        config: the agent's settings.
        interval_seconds: from the start of one shift to the start of the next, at least 60 s.

    Raises:
        AgentConfigError: for an interval that is too short, or no queue.
        NotFoundError: when a queue does not exist.
        BackgroundTaskError: when no shift can be kept on.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from prefect_launch.agent.entry.flow import launch_agent

    if interval_seconds < MIN_INTERVAL_SECONDS:
        raise AgentConfigError(
            f"The interval of an agent's shifts is {interval_seconds:g} s; use {MIN_INTERVAL_SECONDS:g} s or more."
        )
    if not config.queues:
        raise AgentConfigError("To serve an agent please specify its queues (-q QUEUE).")
    async with api.open() as session:
        for queue in config.queues:
            await session.queue(queue)
        client: PrefectClient = session.server.client  # type: ignore[attr-defined]
        deployment = await launch_agent.ato_deployment(
            name=config.name,
            interval=timedelta(seconds=interval_seconds),
            parameters={
                "config": config.model_dump(mode="json", exclude_defaults=True) | {"name": config.name},
                "api": api.model_dump(mode="json"),
                "max_runtime_seconds": interval_seconds - MARGIN_SECONDS,
            },
            entrypoint_type=EntrypointType.MODULE_PATH,
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            description=f"The agent **{config.name}** on the queues {', '.join(config.queues)}.",
            tags=[TAG, *(queue_tag(queue) for queue in config.queues)],
        )
        deployment_id = await deployment.aapply()
        await clear_away(client, deployment_id, "The agent's service was started anew.")
        log.info("agent %s served as %s/%s", config.name, launch_agent.name, config.name)
        try:
            service = asyncio.create_task(_serve(deployment))
            await until_stopped(service, lambda: keep_a_shift_on(client, deployment_id))
            log.info("agent %s is stopped; what runs goes on", config.name)
        finally:
            await clear_away(client, deployment_id, "The agent's service was stopped.")


async def until_stopped(service: asyncio.Task[None], shifts: Callable[[], Awaitable[None]]) -> None:
    """Wait for the end of the service, which SIGTERM and SIGINT bring about; keep a shift on meanwhile.

    Args:
        service: serves the deployment.
        shifts: sees to it that a shift is on, for ever.

    Raises:
        BackgroundTaskError: when that fails again and again.
    """
    async with supervised(service.cancel) as supervisor:
        supervisor.supervise(BackgroundTask("shifts", shifts))
        with _stopped_by_signals(service), suppress(asyncio.CancelledError):
            await service


async def _serve(deployment: RunnerDeployment) -> None:
    """Serve it on a thread of its own: on the main one, Prefect would take SIGTERM for itself."""
    inner: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def on_thread() -> None:
        from prefect import aserve

        task = asyncio.current_task()
        assert task is not None
        inner.set_result((asyncio.get_running_loop(), task))
        # Without prefetching: a shift that is fetched before the last one has ended would be refused by the limit.
        await aserve(deployment, query_seconds=int(LOOK_SECONDS), prefetch_seconds=0, print_starting_message=False)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(on_thread())

    thread = asyncio.create_task(asyncio.to_thread(run))
    try:
        await asyncio.shield(thread)
    except asyncio.CancelledError:
        loop, task = await asyncio.wrap_future(inner)
        loop.call_soon_threadsafe(task.cancel)
        await asyncio.wait({thread}, timeout=STOP_SECONDS)
        raise


@contextmanager
def _stopped_by_signals(service: asyncio.Task[None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the service in order; left to Prefect, a run would stay Running for ever."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.cancel)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def keep_a_shift_on(client: PrefectClient, deployment_id: UUID) -> None:
    """Start the next shift at once whenever none is on: at the start, after a crash, and after one that has ended."""
    while True:
        try:
            runs = await _runs(client, deployment_id, ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"])
            waiting = [run for run in runs if _type_of(run) == "SCHEDULED"]
            if len(waiting) == len(runs):
                await _next_shift(client, deployment_id, waiting)
        except ServerUnavailableError as error:
            log.debug("not looked whether a shift is on: %s", error)
        await asyncio.sleep(LOOK_SECONDS)


async def _next_shift(client: PrefectClient, deployment_id: UUID, waiting: list[FlowRun]) -> None:
    """Bring the schedule's next run forward, so that there is none left over; make one only before the schedule has."""
    from prefect.states import Scheduled

    now = datetime.now(timezone.utc)
    dated = [run for run in waiting if run.expected_start_time is not None]
    if not dated:
        key = f"shift-{deployment_id}-{now.isoformat()}"
        await client.create_flow_run_from_deployment(deployment_id, idempotency_key=key)
        return
    first = min(dated, key=lambda run: run.expected_start_time.timestamp() if run.expected_start_time else 0.0)
    if first.expected_start_time and first.expected_start_time.timestamp() > now.timestamp():
        await client.set_flow_run_state(first.id, Scheduled(scheduled_time=now, message="The last shift has ended."))


async def clear_away(client: PrefectClient, deployment_id: UUID, why: str) -> None:
    """Delete the agent's runs that wait or were refused, and end those that nothing runs any more."""
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelled

    for run in await _runs(client, deployment_id, ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "CANCELLED"]):
        with suppress(ObjectNotFound):  # a paused schedule takes its runs away by itself
            if _type_of(run) == "SCHEDULED" or (_type_of(run) == "CANCELLED" and run.start_time == run.end_time):
                await client.delete_flow_run(run.id)
            elif _type_of(run) != "CANCELLED":
                await client.set_flow_run_state(run.id, Cancelled(message=why), force=True)


def _type_of(run: FlowRun) -> str:
    return run.state_type.value if run.state_type else ""


async def _runs(client: PrefectClient, deployment_id: UUID, state_types: list[str]) -> list[FlowRun]:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )

    wanted: Any = state_types
    return await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=wanted))),
        limit=_PAGE,
    )
