"""Runner of the resource `prefect`: hands an item to another work pool, where any worker of Prefect's runs it.

A job is a child flow run in that pool, made from a deployment of ours. It is created in a state that no worker takes,
gets its plan and code as inputs (`payload.py`), and is released then. Its command is a wrapper (`wrapper.py`) that
reports to the server, since workers report too little: an exit code of 0 not at all, another one in words. A live child
has a tag. Removing a child removes the tag: the flow run itself stays, with its page.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import UUID

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.errors import (
    InfrastructureError,
    ItemGoneError,
    LaunchError,
    ServerUnavailableError,
    SpecError,
    UnreachableError,
)
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.base import Finding, Labels, RunPlan
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.jobs import JobChange, LogPart, RemoteJob
from prefect_launch.runners.remote.prefect import options as prefect_options
from prefect_launch.runners.remote.prefect.command import PLAN_KEY
from prefect_launch.runners.remote.prefect.logs import read_job_log, read_workers_log
from prefect_launch.runners.remote.prefect.lost import LOST_SECONDS, NOBODY, LostRuns
from prefect_launch.runners.remote.prefect.payload import delete_payload, fetch_outputs, put_payload
from prefect_launch.runners.remote.prefect.status import END_OF_UNSTARTED, HELD, end_of, is_held, job_of
from prefect_launch.runners.remote.prefect.waiting import WaitReasons
from prefect_launch.runners.remote.prefect.wrapper import START_KEY
from prefect_launch.server.paging import all_items
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import PAGE, Item, ItemDraft, Pool, State

#: The flow of the children, and the tag of those that are not removed yet.
FLOW: Final = "launch-elsewhere"
LIVE_TAG: Final = "launch-live"
_DESCRIPTION: Final = (
    "Made by prefect-launch: runs of it are items of its queues, handed to this work pool. Each run's parameters say"
    " which. Deleting it cancels those that wait."
)
_TAGGED: Final = {Labels.ITEM: "item", Labels.AGENT: "agent"}
#: How often a wrapper looks first whether it is to end.
_LOOK_SECONDS: Final = 2.0

#: What an event tells of, and how long after it the server has committed the change.
_CHANGES: Final = (StateType.RUNNING, StateType.PENDING, *TERMINAL)
_COMMIT_SECONDS: Final = 0.15
#: Opens a connection to the Prefect server.
Connect = Callable[[], AbstractAsyncContextManager[Server]]


class PrefectRunner(RemoteRunner):
    """Runs jobs as flow runs in other work pools.

    Args:
        home: the agent's folder.
        connect: opens a connection to the Prefect server; by default to the agent's.
        look_seconds: how often a job's wrapper looks first whether it is to end.
        lost_seconds: for how long a job is silent that counts as lost.
    """

    name: ClassVar[str] = "prefect"
    removed_message: ClassVar[str] = "flow run ended"
    no_exec: ClassVar[str] = (
        "a worker of Prefect runs it, and tells no way in. The page of its child flow run names what the worker has"
        " made: join that by hand."
    )
    sources: ClassVar[frozenset[SourceKind]] = frozenset(SourceKind)
    submitter_options: ClassVar[frozenset[str]] = prefect_options.SUBMITTER_OPTIONS
    options: ClassVar[frozenset[str]] = prefect_options.OPTIONS
    takes_secret_values: ClassVar[bool] = False
    can_hold: ClassVar[bool] = True
    has_unique_handles: ClassVar[bool] = True
    tells_changes: ClassVar[bool] = True
    lag_seconds: ClassVar[float] = 0.5
    log_seconds: ClassVar[float] = 3.0

    def __init__(
        self,
        home: Path,
        connect: Connect | None = None,
        *,
        look_seconds: float = _LOOK_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        super().__init__(home)
        self._connect = connect or self._connect_as_agent
        self._look_seconds, self._lost = look_seconds, LostRuns(lost_seconds)
        self._connection: _Connection | None = None

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        prefect_options.check_values(checked)
        return checked

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        return FillRule.ANY if prefect_options.is_free(option, keys[0] if keys else None) else FillRule.OWNER

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        prefect_options.read_target(options)

    @classmethod
    async def check_on_server(cls, options: Mapping[str, Any], server: Server) -> None:
        if "work-pool" in options and prefect_options.is_known(options["work-pool"]):
            await _named_pool(options, server)

    def check(self, plan: RunPlan) -> None:
        prefect_options.read_target(plan.options)
        if not plan.command:
            raise SpecError(
                "A job for another work pool must have an entry point: the command of its image is not known here."
                " Give one, such as entry_point=['python', 'main.py']."
            )
        if plan.file_overrides and plan.code_dir is None:
            raise SpecError(
                "Config files of an image cannot be changed in another work pool. Give the values as inputs, or make a"
                " job of the code."
            )

    async def ping(self) -> None:
        await self._server()

    async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
        found = await super().diagnose(options)
        if all(one.is_ok for one in found):
            try:
                server = (await self._server()).server
                pool = await _named_pool(options, server)
                found.append(Finding(name="work pool", is_ok=True, detail=f"{pool.name!r}, of the type {pool.type!r}"))
            except LaunchError as error:
                return [*found, Finding(name="work pool", is_ok=False, detail=str(error))]
            is_served = pool.status != "NOT_READY"
            start = f"Items wait for one: 'prefect worker start --pool {pool.name}' starts it."
            found.append(Finding(name="worker online", is_ok=is_served, detail="" if is_served else start))
        return found

    # --- the system ---

    async def submit(self, plan: RunPlan) -> RemoteJob:
        with _unreachable():
            connection = await self._server()
            child = await connection.find(plan)
            if child is None:
                child = await connection.create(plan)
            if is_held(child) and child.labels.get(Labels.CLAIM) == plan.labels.get(Labels.CLAIM):
                await put_payload(connection.server, child.id, plan, self._look_seconds)
                await _link(connection.server, plan, child)
            return job_of(child, "")

    async def release(self, handle: str) -> None:
        with _unreachable():
            server = (await self._server()).server
            child = await server.read_item(UUID(handle))
            if child is not None and is_held(child):
                with contextlib.suppress(ItemGoneError):
                    await server.propose(child.id, State(type=StateType.SCHEDULED, name="Queued"))

    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        with _unreachable():
            connection = await self._server()
            ids = [UUID(handle) for handle in handles]
            children: list[Item] = []
            for start in range(0, len(ids), PAGE):
                children += await connection.server.list_items(flow=FLOW, ids=ids[start : start + PAGE])
            reasons = await connection.reasons.of(children)
            await self._lost.end(connection.server, connection.reasons, children)
            return {str(child.id): job_of(child, reasons.get(str(child.id), "")) for child in children}

    async def changes(self, part: str = "") -> AsyncIterator[JobChange]:
        with _unreachable():
            server = (await self._server()).server
            tag = LIVE_TAG if self.agent is None else _tags({Labels.AGENT: self.agent})[0]
            async for child in server.watch_items(tag, state_types=_CHANGES):
                yield JobChange(child or None)
                if child:
                    # All that change within a poll share the next: a pause here would hold up those behind.
                    asyncio.get_running_loop().call_later(_COMMIT_SECONDS, self._part(child).poller.wake)

    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        with _unreachable():
            server = (await self._server()).server
            tags = [LIVE_TAG, *_tags(labels)]
            jobs = []
            async for child in all_items(server, flow=FLOW, tags=tags):
                if all(str(child.labels.get(key)) == value for key, value in labels.items()):
                    # What is held has its plan last.
                    whole = not is_held(child) or await server.read_input(child.id, PLAN_KEY) is not None
                    jobs.append(job_of(child, "", is_complete=whole))
            return jobs

    async def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        with _unreachable():
            server = (await self._server()).server
            async for part in read_job_log(server, UUID(handle), after):
                after = part.position
                yield part
            child = await server.read_item(UUID(handle)) if after is None else None
            if child is not None and child.state_type in TERMINAL and not end_of(child):
                async for part in read_workers_log(server, child.id, None):
                    yield part

    async def cancel(self, handle: str, grace_seconds: float) -> None:
        with _unreachable(), contextlib.suppress(ItemGoneError):
            server = (await self._server()).server
            child = await server.read_item(UUID(handle))
            if child is None or child.state_type in TERMINAL:
                return
            cancelled = State(
                type=StateType.CANCELLED,
                name="Cancelled",
                message="Stopped before it was started.",
                data=END_OF_UNSTARTED,
            )
            if is_held(child):
                await server.propose(child.id, cancelled)
                return
            data = {"grace_seconds": grace_seconds}
            await server.propose(child.id, State(type=StateType.CANCELLING, name="Cancelling", data=data))
            if child.start_time is None and (
                await server.put_input(child.id, START_KEY, NOBODY)
                # An earlier call may have put it there, and come no further.
                or await server.read_input(child.id, START_KEY) == NOBODY
            ):
                # Whatever its worker starts from now on, starts no job.
                await server.propose(child.id, cancelled)

    async def delete(self, handle: str) -> None:
        with _unreachable():
            server = (await self._server()).server
            child = await server.read_item(UUID(handle))
            if child is None:
                return
            if child.state_type not in TERMINAL:
                if not is_held(child):
                    raise InfrastructureError(f"The flow run {handle} has not ended, so it is not removed. Cancel it.")
                with contextlib.suppress(ItemGoneError):
                    await server.propose(child.id, State(type=StateType.CANCELLED, name="Cancelled"))
            await delete_payload(server, child.id, end_of(child))
            await server.replace_tags(child.id, [tag for tag in child.tags if tag != LIVE_TAG])

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        with _unreachable():
            server = (await self._server()).server
            child = await server.read_item(UUID(handle))
            if child is None:
                return LeftOut()
            return await fetch_outputs(server, child.id, end_of(child), plan.output_dir, plan.output_limits)

    async def aclose(self) -> None:
        await super().aclose()
        connection, self._connection = self._connection, None
        if connection is not None and connection.loop is asyncio.get_running_loop():
            await connection.aclose()

    # --- the connection ---

    async def _server(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop is not loop:
            self._connection = _Connection(self._connect)
        with _unreachable():
            await self._connection.open()
        return self._connection

    def _connect_as_agent(self) -> AbstractAsyncContextManager[Server]:
        from prefect_launch.server.client import connect

        environment = self.agent_environment() if self.agent_environment is not None else {}
        return connect(environment.get("PREFECT_API_URL"))


async def _named_pool(options: Mapping[str, Any], server: Server) -> Pool:
    """Return the work pool that options name, when it has the work queue and the job variables that they name.

    Args:
        options: of a queue, with the submitter's over them; what is filled in later is not looked at.
        server: the Prefect server.

    Raises:
        LaunchError: naming what is not there.
    """
    known = {name: value for name, value in options.items() if prefect_options.is_known(value) or name == "work-pool"}
    target = prefect_options.read_target(known)
    pool = prefect_options.check_pool(target.pool, await server.read_pool(target.pool))
    prefect_options.check_work_queue(target, await server.list_queues(pool.name))
    prefect_options.check_job_variables(target.job_variables, pool)
    return pool


class _Connection:
    """A connection to the server, on one event loop."""

    def __init__(self, connect: Connect) -> None:
        self.loop = asyncio.get_running_loop()
        self._connect = connect
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._server: Server | None = None
        #: By the ids of their pools: of a pool that is deleted and made again, the deployment is in none.
        self._deployments: dict[UUID, UUID] = {}

    @property
    def server(self) -> Server:
        """The server."""
        assert self._server is not None
        return self._server

    async def open(self) -> None:
        """Connect, unless that was done."""
        async with self._opening:
            if self._server is None:
                self._server = await self._stack.enter_async_context(self._connect())
                self.reasons = WaitReasons(self._server)

    async def find(self, plan: RunPlan) -> Item | None:
        """Return the live child of a plan's name, if there is one."""
        found = await self.server.list_items(flow=FLOW, names=[plan.name], tags=[LIVE_TAG])
        claim = plan.labels.get(Labels.CLAIM)
        return next((one for one in found if one.labels.get(Labels.CLAIM) == claim), found[0] if found else None)

    async def create(self, plan: RunPlan) -> Item:
        """Make the child of a plan, held."""
        target = prefect_options.read_target(plan.options)
        pool = prefect_options.check_pool(target.pool, await self.server.read_pool(target.pool))
        queues = await self.server.list_queues(pool.name)
        prefect_options.check_work_queue(target, queues)
        draft = ItemDraft(
            name=plan.name,
            parameters=_parameters(plan, self.server.ui_url),
            job_variables=prefect_options.job_variables(plan, target, pool),
            tags=(LIVE_TAG, *_tags(plan.labels)),
            labels=plan.labels,
            work_queue_name=target.queue or "default",
            idempotency_key=f"{plan.name}@{plan.labels.get(Labels.CLAIM, '')}",
            state=State(type=StateType.PAUSED, name=HELD, message="It gets its plan, and is released then."),
        )
        for _ in range(2):
            child = await self.server.create_item(await self._deployment(pool), draft)
            if child is not None:
                return child
            self._deployments.pop(pool.id, None)  # Somebody has deleted it.
        raise InfrastructureError(f"The deployment {FLOW}/{pool.name} is deleted again and again. Find out by whom.")

    async def _deployment(self, pool: Pool) -> UUID:
        if pool.id not in self._deployments:
            there = await self.server.find_deployment(pool.name, flow=FLOW)
            if there is not None and there.work_pool_name == pool.name:
                self._deployments[pool.id] = there.id
            else:
                self._deployments[pool.id] = await self.server.upsert_deployment(
                    pool.name,
                    flow=FLOW,
                    pool=pool.name,
                    parameters={},
                    parameter_schema={"type": "object", "properties": {}},
                    description=_DESCRIPTION,
                    tags=["prefect-launch"],
                    labels={"prefect-launch.made": True},
                    enforce=False,
                )
        return self._deployments[pool.id]

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stack.aclose()


def _tags(labels: Mapping[str, str]) -> list[str]:
    """Return the tags by which the server finds children with these labels."""
    return [f"launch-{name}-{labels[key]}" for key, name in _TAGGED.items() if key in labels]


def _parameters(plan: RunPlan, ui_url: str) -> dict[str, Any]:
    """Return what a child's page shows of where it comes from."""
    shown = {"queue": plan.labels.get(Labels.QUEUE), "run_id": plan.run_id, "attempt": plan.attempt}
    page = f"{ui_url}/runs/flow-run/{plan.item_id}" if Labels.QUEUE in plan.labels else None
    return {key: value for key, value in {"launch_item": page, **shown}.items() if value is not None}


async def _link(server: Server, plan: RunPlan, child: Item) -> None:
    """Link the child from the page of its item."""
    if Labels.QUEUE not in plan.labels:
        return
    page = f"{server.ui_url}/runs/flow-run/{child.id}"
    text = f"Handed to the work pool `{child.work_pool_name}`: [{child.name}]({page})"
    await server.create_artifact(
        UUID(plan.item_id), key="launch-elsewhere", kind="markdown", data=text, once=str(child.id)
    )


@contextmanager
def _unreachable() -> Iterator[None]:
    """Tell of a server that does not answer as the base expects it."""
    try:
        yield
    except ServerUnavailableError as error:
        raise UnreachableError(str(error)) from error
