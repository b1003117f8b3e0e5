"""Service of an agent as a deployment on a schedule: one run at a time (a shift), and the next one takes over.

A run ends before the next is due, so the server never refuses one for overlapping. The deployment's limit of one run
is only a safety net. The service replaces a run that crashed at once. It deletes runs that a stopped service left
waiting, so that the UI shows no pile of late or cancelled runs.

A service that was killed leaves its run behind, whose process continues. The next service on the machine counts that
run as the active one until it has ended.

The first signal drains the agent, by a request on the server for all its scheduled runs. The active run, or the next
one when there is none, adopts the agent's own items, takes no more, and ends when they have ended. The service makes
the request again if somebody cancels it, and ends it when no run is active and none of the agent's items is left. At
its start, it ends a request that an earlier service has left, unless a signal has come by then. The second signal ends
the service at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import anyio

from prefect_launch.agent.item.ownership import home_id
from prefect_launch.agent.polling.events import WakeEvent
from prefect_launch.core.early_signals import SIGNALS
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import AgentConfigError, ServerUnavailableError
from prefect_launch.queues.agent_status import TAG, drain_scheduled_runs, release_scheduled_runs
from prefect_launch.queues.presence import Holder, read_presences
from prefect_launch.queues.session import queue_tag
from prefect_launch.runners.process.supervisor import environments
from prefect_launch.server.values import PAGE
from prefect_launch.settings.agent_config import AgentConfig

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.deployments.runner import RunnerDeployment

    from prefect_launch.client.api import Api
    from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

DEFAULT_INTERVAL_SECONDS: Final = 600.0
#: A run costs the server about ten writes and the machine some seconds of a core.
MIN_INTERVAL_SECONDS: Final = 60.0
#: Time between the end of a run and the next one: to shut down, and for clocks that differ.
MARGIN_SECONDS: Final = 10.0
#: How often the service checks whether a run is active, and whether one is due.
CHECK_SECONDS: Final = 2.0
#: What the service is given to end: Prefect gives a run 30 s.
STOP_SECONDS: Final = 40.0
_ON: Final = ("PENDING", "RUNNING", "CANCELLING")
#: What Prefect gives the process of a flow run.
_RUN_VARIABLE: Final = b"PREFECT__FLOW_RUN_ID="
_ENGINE: Final = b"prefect.engine"


class Stop:
    """What signals ask of a service: the first drains its agent, the second ends it at once.

    Attributes:
        received: the signals, in their order.
        has_drained: whether the agent has drained.
        wake: is set at every signal.
        end: ends the service.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.has_drained = False
        self.wake = WakeEvent()
        self.end: Callable[[], object] = lambda: None

    @contextmanager
    def by_signals(self, early: Sequence[signal.Signals] = ()) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT; left to Prefect, a run would stay Running forever.

        Args:
            early: signals that came before: see `prefect_launch.core.early_signals`.
        """
        task = asyncio.current_task()
        assert task is not None
        self.end = task.cancel
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.handle, number)
        for number in early:
            self.handle(number)
        try:
            yield
        except asyncio.CancelledError:
            if not self.received:
                raise
        finally:
            self._forget()

    def handle(self, number: signal.Signals) -> None:
        """Act on a signal."""
        self.received.append(number)
        self.wake.set()
        if len(self.received) == 1:
            log.info("draining: what is this agent's own is taken up and finished; once more to leave at once")
        else:
            log.info("leaving: the runs continue")
            self._forget()
            self.end()

    def _forget(self) -> None:
        """Leave the next signal to the system: it ends the process."""
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)


async def serve(
    api: Api,
    config: AgentConfig,
    *,
    interval_seconds: float = DEFAULT_INTERVAL_SECONDS,
    early: Sequence[signal.Signals] = (),
) -> signal.Signals | None:
    """Serve an agent until stopped by SIGINT or SIGTERM: the first drains it, the second ends it at once.

    Args:
        api: the server.
        config: the agent's settings.
        interval_seconds: from the start of one run to the start of the next, at least 60 s.
        early: signals that came before this call.

    Returns:
        The first signal that came, if one did.

    Raises:
        AgentConfigError: for an interval that is too short, or no queue.
        NotFoundError: when a queue does not exist.
        BackgroundTaskError: when the service fails again and again to keep a run active.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.states import Cancelled
    from prefect.types.entrypoint import EntrypointType

    from prefect_launch.agent.entry.flow import launch_agent

    if interval_seconds < MIN_INTERVAL_SECONDS:
        raise AgentConfigError(
            f"The interval of an agent's shifts is {interval_seconds:g} s; use {MIN_INTERVAL_SECONDS:g} s or more."
        )
    if not config.queues:
        raise AgentConfigError("To serve an agent please specify its queues (-q QUEUE).")
    stop = Stop()
    with stop.by_signals(early):
        async with api.open() as session:
            server = session.server
            for queue in config.queues:
                await session.queue(queue)
            client = server.client
            deployment = await launch_agent.ato_deployment(
                name=config.name,
                interval=timedelta(seconds=interval_seconds),
                parameters={
                    "config": config.model_dump(mode="json", exclude_defaults=True) | {"name": config.name},
                    "api": api.model_dump(mode="json"),
                    "max_runtime_seconds": interval_seconds - MARGIN_SECONDS,
                },
                entrypoint_type=EntrypointType.MODULE_PATH,
                concurrency_limit=ConcurrencyLimitConfig(
                    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
                ),
                description=f"The agent **{config.name}** on the queues {', '.join(config.queues)}.",
                tags=[TAG, *(queue_tag(queue) for queue in config.queues)],
            )
            deployment_id = await deployment.aapply()
            await end_last_request(server, config.name, stop)
            left = await clear_away(client, deployment_id, _no_process())
            for run_id in left:
                log.info("agent %s continues in the run %s, which its last service has left", config.name, run_id)
            log.info("agent %s served as %s/%s", config.name, launch_agent.name, config.name)
            try:
                home = await asyncio.to_thread(home_id, config.home)
                holder = Holder(agent=config.name, instance=uuid4().hex, host=socket.gethostname(), home=home)
                service = asyncio.create_task(_serve(deployment))
                runs = ScheduledRuns(client, deployment_id, server, holder, stop, left=left)
                await until_stopped(service, stop, runs.keep_one_active)
                how = "has drained" if stop.has_drained else "is stopped; its jobs continue"
                log.info("agent %s %s", config.name, how)
            finally:
                await clear_away(client, deployment_id, Cancelled(message="The agent's service was stopped."))
                if stop.has_drained:
                    await release_scheduled_runs(server, config.name)
    return stop.received[0] if stop.received else None


async def end_last_request(server: Server, name: str, stop: Stop) -> None:
    """End the drain request that an earlier service has left, unless this one is to drain, too.

    Otherwise the active run could take an item between that request and the next.

    Args:
        server: the agent's.
        name: of the agent.
        stop: the signals so far.
    """
    if not stop.received and await release_scheduled_runs(server, name):
        log.info("agent %s takes items again: the drain request was for its last service", name)


async def until_stopped(
    service: asyncio.Task[None], stop: Stop, keep_one_active: Callable[[], Awaitable[None]]
) -> None:
    """Wait until signals have ended the service; keep a run active meanwhile.

    Args:
        service: serves the deployment.
        stop: set by signals.
        keep_one_active: starts a run whenever none is active, and never returns.

    Raises:
        BackgroundTaskError: when that fails again and again.
    """
    async with supervised(service.cancel) as supervisor:
        supervisor.supervise(BackgroundTask("scheduled runs", keep_one_active))
        stop.end = service.cancel
        with suppress(asyncio.CancelledError):
            await service


async def _serve(deployment: RunnerDeployment) -> None:
    """Serve it on a thread of its own: on the main one, Prefect would take SIGTERM for itself."""
    inner: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def on_thread() -> None:
        from prefect import aserve

        task = asyncio.current_task()
        assert task is not None
        inner.set_result((asyncio.get_running_loop(), task))
        # Without prefetching: a run that is fetched before the last one has ended would be refused by the limit.
        await aserve(deployment, query_seconds=int(CHECK_SECONDS), prefetch_seconds=0, print_starting_message=False)

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


class ScheduledRuns:
    """The scheduled runs of one served agent.

    Args:
        client: of the server.
        deployment_id: the agent's deployment.
        server: the agent's, for its drain requests.
        holder: the agent: it tells its runs on this machine from those of others of its name.
        stop: set by signals.
        left: ids of the runs of an earlier service whose processes continue: nobody else sees how they end.
    """

    def __init__(
        self,
        client: PrefectClient,
        deployment_id: UUID,
        server: Server,
        holder: Holder,
        stop: Stop,
        *,
        left: Collection[UUID] = (),
    ) -> None:
        self._client = client
        self._deployment_id = deployment_id
        self._server = server
        self._holder = holder
        self._stop = stop
        self._left = set(left)

    async def keep_one_active(self) -> None:
        """Start the next run whenever none is active: at the start, after a crash, and after one that has ended.

        Once the agent is to drain and has drained, end the service.
        """
        while not self._stop.has_drained:
            try:
                await self._check()
            except ServerUnavailableError as error:
                log.debug("scheduled runs not checked: %s", error)
            await self._stop.wake.wait(CHECK_SECONDS)
        self._stop.end()
        await anyio.sleep_forever()

    async def _check(self) -> None:
        is_asked = bool(self._stop.received)
        if is_asked:
            await drain_scheduled_runs(self._server, self._holder.agent)
        runs = await _runs(self._client, self._deployment_id, ["SCHEDULED", *_ON])
        waiting = [run for run in runs if _type_of(run) == "SCHEDULED"]
        if any([await self._is_active(run) for run in runs if _type_of(run) in _ON]):
            return
        if is_asked and not await self._has_left_work():
            self._stop.has_drained = True
            self._stop.wake.set()
        else:
            await _start_next_run(self._client, self._deployment_id, waiting)

    async def _is_active(self, run: FlowRun) -> bool:
        """Whether a run is active; end one that an earlier service has left when its process has ended."""
        if run.id not in self._left or run.id in await asyncio.to_thread(living_runs):
            return True
        self._left.discard(run.id)
        await _end(self._client, run, _no_process())
        return False

    async def _has_left_work(self) -> bool:
        """Whether a run has left unfinished items, or may have: one that has finished all deletes its presence."""
        return any(one.holder.is_earlier_life_of(self._holder) for one in await read_presences(self._server))


async def _start_next_run(client: PrefectClient, deployment_id: UUID, waiting: list[FlowRun]) -> None:
    """Start the schedule's next run now, so that none is left over; create one only before the schedule has."""
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


async def clear_away(client: PrefectClient, deployment_id: UUID, end: State[Any]) -> set[UUID]:
    """Delete the agent's runs that wait or were refused, and end those that no process runs any more.

    Args:
        client: of the server.
        deployment_id: the agent's deployment.
        end: the state that those get.

    Returns:
        The ids of those that a process on this machine still runs: they are left alone.
    """
    from prefect.exceptions import ObjectNotFound

    runs = await _runs(client, deployment_id, ["SCHEDULED", *_ON, "CANCELLED"])
    on = [run for run in runs if _type_of(run) in _ON]
    living = await asyncio.to_thread(living_runs) if on else set()
    for run in on:
        if run.id not in living:
            await _end(client, run, end)
    for run in runs:
        if _type_of(run) == "SCHEDULED" or (_type_of(run) == "CANCELLED" and run.start_time == run.end_time):
            with suppress(ObjectNotFound):  # a paused schedule takes its runs away by itself
                await client.delete_flow_run(run.id)
    return {run.id for run in on} & living


async def _end(client: PrefectClient, run: FlowRun, end: State[Any]) -> None:
    """End a run that no process runs any more, unless its process has ended it."""
    from prefect.exceptions import ObjectNotFound

    with suppress(ObjectNotFound):
        state = (await client.read_flow_run(run.id)).state
        if state is None or not state.is_final():
            await client.set_flow_run_state(run.id, end, force=True)


def _no_process() -> State[Any]:
    from prefect.states import Crashed

    return Crashed(message=f"Its process on {socket.gethostname()} was gone when the agent's service looked for it.")


def living_runs() -> set[UUID]:
    """Return the ids of the flow runs that processes of this machine run, from the variables of Prefect's engine."""
    found = set()
    for pid, environment in environments():
        ids = [entry.removeprefix(_RUN_VARIABLE) for entry in environment if entry.startswith(_RUN_VARIABLE)]
        with suppress(OSError, ValueError):
            # What it starts has the variable too.
            if ids and _ENGINE in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.add(UUID(ids[0].decode()))
    return found


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
        limit=PAGE,
    )
