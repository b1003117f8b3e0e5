"""`LaunchAgent`: claims items of its queues, runs them on this machine, and reports them.

The loop knows only claim, start, watch, finish. What it finds it hands to an `Execution`; what it has not in its own memory it finds
again by labels (`prefect_launch.agent.recover`). Work outlives the loop: the next agent of the same name goes on with it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

from prefect_launch.agent.config import AgentConfig, parse_agent_config
from prefect_launch.agent.crew import Crew
from prefect_launch.agent.execution import Execution, Workshop
from prefect_launch.agent.heartbeat import beat
from prefect_launch.agent.intake import Intake
from prefect_launch.agent.moves import log, move, until_server_is_back
from prefect_launch.agent.outcome import Outcome
from prefect_launch.agent.recover import Adopted, find_own_runs, give_back_orphans
from prefect_launch.agent.tracker import JobTracker
from prefect_launch.agent.wake import SECOND_LOOK_SECONDS, Wake, listen
from prefect_launch.errors import AgentConfigError, LaunchError, ServerUnavailableError
from prefect_launch.runners.base import Phase
from prefect_launch.server.values import Item
from prefect_launch.spec import LaunchSpec
from prefect_launch.states import TERMINAL, ItemState, StateType

if TYPE_CHECKING:
    from prefect_launch.api import Api

_STATUS_SECONDS: Final = 300.0
_VERBOSE_STATUS_SECONDS: Final = 20.0
#: Free slots that an agent without a limit polls for.
_MANY: Final = 50


class LaunchAgent:
    """Runs the items of queues on this machine.

    Args:
        api: the server.
        config: an `AgentConfig`, or a mapping of its settings.

    Raises:
        AgentConfigError: for a wrong setting.
    """

    _latest: ClassVar[LaunchAgent | None] = None

    def __init__(self, api: Api, config: AgentConfig | Mapping[str, Any]) -> None:
        self.api = api
        self.config = config if isinstance(config, AgentConfig) else parse_agent_config(config)
        self.status = "POLLING"
        self._wake = Wake()
        self._crew = Crew(self.finish_thread_id)
        self._stopping = False
        self._stops_due = 0.0
        self._workshop: Workshop | None = None
        self._intake: Intake | None = None
        LaunchAgent._latest = self

    # --- what the reference's callers ask ---

    @classmethod
    def name(cls) -> str:
        """Return the name of the agent that was made last in this process.

        Raises:
            LaunchError: when there is none.
        """
        if cls._latest is None:
            raise LaunchError("LaunchAgent has not been initialized: make one with LaunchAgent(api, config).")
        return cls._latest.config.name

    @classmethod
    def initialized(cls) -> bool:
        """Whether an agent was made in this process."""
        return cls._latest is not None

    @property
    def thread_ids(self) -> list[str]:
        """Ids of the items in work."""
        return self._crew.thread_ids

    @property
    def num_running_jobs(self) -> int:
        """How many items are in work, schedulers left out."""
        return self._crew.count(schedulers=False)

    @property
    def num_running_schedulers(self) -> int:
        """How many sweep schedulers are in work."""
        return self._crew.count(schedulers=True)

    @property
    def holder(self) -> str:
        """Who claims, as people read it in an item's state."""
        return f"agent {self.config.name} on {socket.gethostname()}"

    def print_status(self) -> None:
        """Log what the agent does, in one line."""
        running, most = self.num_running_jobs, self.config.max_jobs
        polling = f"polling on queues {','.join(self.config.queues)}, " if running < most else ""
        log.info("agent %s %srunning %d out of a maximum of %s jobs", self.config.name, polling, running, f"{most:g}")

    async def update_status(self, status: str) -> None:
        """Set the agent's status: POLLING, RUNNING or KILLED. A killed agent is taken off its queues' lists."""
        self.status = status
        if status == "KILLED":
            for queue in self.config.queues:
                await self._shop.session.server.delete_worker(queue, self.config.name)

    # --- a connection ---

    @property
    def _shop(self) -> Workshop:
        if self._workshop is None:
            raise LaunchError(
                "The agent is not connected: use it inside 'async with agent.connected():', or run its loop()."
            )
        return self._workshop

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[LaunchAgent]:
        """Open the agent's connection, for use of its methods without its loop.

        Raises:
            AgentConfigError: when the agent has no queue.
            NotFoundError: when one of its queues does not exist.
        """
        if not self.config.queues:
            raise AgentConfigError(
                "To launch an agent please specify a queue or a list of queues (queues: […], or -q QUEUE)."
            )
        async with self.api.open() as session:
            self._workshop = Workshop(self.config, session)
            self._intake = Intake(session, self.config.queues, self.holder)
            try:
                yield self
            finally:
                await self._workshop.aclose()
                self._workshop = self._intake = None

    # --- taking items in ---

    async def pop_from_queue(self, queue: str) -> Item | None:
        """Claim the next item of a queue; `None` when there is none.

        Raises:
            LaunchError: when the server does not answer, or the agent has no such queue.
        """
        return await self._intake_now.pop(queue, slots=self._free_slots, skip=self._crew.held)

    async def get_job_and_queue(self) -> tuple[Item, str] | None:
        """Claim the next item of the first queue in turn that has one; its turn comes last then."""
        return await self._intake_now.next(slots=self._free_slots, skip=self._crew.held)

    @property
    def _free_slots(self) -> int:
        return int(min(self.config.max_jobs - self.num_running_jobs, _MANY))

    # --- working on them ---

    async def run_job(self, job: Item, queue: str, file_saver: Path | None = None) -> None:
        """Start to work on a claimed item; returns at once.

        Args:
            job: the item.
            queue: its queue.
            file_saver: folder that gets an `error.log` when the agent itself fails over the item.
        """
        tracker = JobTracker(item=job, queue=queue, is_scheduler=is_scheduler(job), file_saver=file_saver)
        self._crew.begin(tracker, lambda: self.task_run_job(job.parameters, job, {}, self.api, tracker))

    async def task_run_job(
        self,
        launch_spec: Mapping[str, Any],
        job: Item,
        default_config: Mapping[str, Any],
        api: Api,
        job_tracker: JobTracker,
    ) -> None:
        """Work on one claimed item until its end, which always goes through `finish_thread_id`.

        Args:
            launch_spec: the item's parameters; when their sweep has ended, the item is refused.
            job: the item.
            default_config: kept for callers of the reference's library.
            api: the server.
            job_tracker: of the item.
        """

        async def work() -> Outcome:
            try:
                await self.check_sweep_state(launch_spec, api)
            except LaunchError as error:
                await self.fail_run_queue_item(str(job.id), str(error), Phase.AGENT.value)
                return Outcome(state=ItemState.FAILED, message=str(error))
            return await Execution(self._shop, job_tracker).run()

        await self._crew.do(job_tracker, work)

    def _resume(self, run: Adopted) -> None:
        tracker = JobTracker(item=run.item, queue=run.queue, is_scheduler=is_scheduler(run.item), handle=run.handle)
        current = run.item.state_type or StateType.RUNNING
        if current is StateType.CANCELLING:
            tracker.stop.set()

        async def work() -> Outcome:
            return await Execution(self._shop, tracker).resume(run.runner, run.plan, run.handle, current)

        self._crew.begin(tracker, lambda: self._crew.do(tracker, work))

    async def finish_thread_id(self, thread_id: str, exception: BaseException | None = None) -> None:
        """Be done with an item: its slot is free, and the loop looks for the next.

        Args:
            thread_id: the item's id.
            exception: what the agent failed over, if it did; it is logged.
        """
        tracker = self._crew.find(thread_id)
        if exception is not None:
            log.error("%s agent-failed %s: %s", thread_id, type(exception).__name__, exception, exc_info=exception)
            if tracker is not None and tracker.file_saver is not None:
                (tracker.file_saver / "error.log").write_text(f"{type(exception).__name__}: {exception}\n")
        self._crew.forget(thread_id)
        self._wake.ring()

    async def fail_run_queue_item(
        self, run_queue_item_id: str, message: str, phase: str, files: Sequence[str | Path] | None = None
    ) -> None:
        """End an item as failed.

        Args:
            run_queue_item_id: the item's id.
            message: why.
            phase: `agent`, `build` or `run`.
            files: files that are kept with the item's outputs.
        """
        server, item_id = self._shop.session.server, UUID(run_queue_item_id)
        item = await server.read_item(item_id)
        if item is None or item.state_type in TERMINAL:
            return
        if files:
            extra = {Path(file).name: Path(file) for file in files}
            folder = Path(files[0]).parent / "outputs"
            await self._shop.session.jobs.put_outputs(run_queue_item_id, item.run_count + 1, folder, extra=extra)
        current = item.state_type or StateType.PENDING
        await move(server, item_id, current, ItemState.FAILED, f"[{Phase(phase).value}] {message}")

    async def check_sweep_state(self, launch_spec: Mapping[str, Any] | LaunchSpec, api: Api) -> None:
        """Refuse an item whose sweep has ended.

        A sweep is a flow run; an id that is none is only a label, and refuses nothing.

        Raises:
            LaunchError: when the sweep is in a terminal state.
        """
        sweep = launch_spec.sweep_id if isinstance(launch_spec, LaunchSpec) else launch_spec.get("sweep_id")
        try:
            sweep_id = UUID(str(sweep))
        except ValueError:
            return
        run = await self._shop.session.server.read_item(sweep_id)
        if run is not None and run.is_terminal:
            raise LaunchError(f"The sweep {sweep_id} of this item has ended already ({run.state_name}); it is not run.")

    # --- the loop ---

    async def loop(self, *, until_empty: bool = False, max_runtime_seconds: float | None = None) -> None:
        """Take items in and run them, until it is told to stop.

        What runs when the loop ends goes on, and the next agent of this name takes it up.

        Args:
            until_empty: end when the queues hold nothing and all work is done.
            max_runtime_seconds: end after this time.

        Raises:
            AgentConfigError: when the agent has no queue.
            NotFoundError: when one of its queues does not exist.
            KeyboardInterrupt: when it is asked to stop by the keyboard.
        """
        async with self.connected():
            server = self._shop.session.server
            known = [await self._shop.session.queue(queue) for queue in self.config.queues]
            background = [
                asyncio.create_task(beat(server, self.config.name, self.config.queues, lambda: self._crew.items)),
                asyncio.create_task(listen(server, [queue.pool_id for queue in known], self._heard)),
                asyncio.create_task(self._intake_now.watch_limits()),
                asyncio.create_task(self._tell_status()),
            ]
            try:
                await self._recover()
                await self._intake_now.read_limits()
                await self._work(
                    until_empty, None if max_runtime_seconds is None else time.monotonic() + max_runtime_seconds
                )
            finally:
                for task in background:
                    task.cancel()
                await self._leave()

    def stop(self) -> None:
        """Ask the loop to end; what runs goes on."""
        self._stopping = True
        self._wake.ring()

    async def _work(self, until_empty: bool, ends_at: float | None) -> None:
        while not self._stopping and (ends_at is None or time.monotonic() < ends_at):
            try:
                await self._fill()
                await self._stop_what_is_cancelled()
                if until_empty and not self._crew.thread_ids and await self._is_empty():
                    return
            except ServerUnavailableError as error:
                log.warning("server-away %s", error)
            left = self.config.poll_seconds if ends_at is None else ends_at - time.monotonic()
            await self._wake.wait(min(self.config.poll_seconds, max(left, 0.0)))

    async def _fill(self) -> None:
        while self._free_slots > 0 and not self._stopping:
            found = await self.get_job_and_queue()
            if found is None:
                return
            await self.run_job(*found)
            await self._set_status()

    async def _recover(self) -> None:
        runs = await until_server_is_back("find the runs of the agent's last life", lambda: find_own_runs(self._shop))
        for run in runs:
            self._resume(run)
        await until_server_is_back(
            "give back what was claimed and not started",
            lambda: give_back_orphans(self._shop, self.config.queues, self.holder, self._crew.held),
        )

    async def _is_empty(self) -> bool:
        server = self._shop.session.server
        for queue in self.config.queues:
            if await server.count_items(pool=queue, state_types=[StateType.SCHEDULED]):
                return False
        return True

    def _heard(self, item_id: str) -> None:
        """Act on an event: an item in work may be asked to stop, any other may be a new one."""
        if self._crew.find(item_id) is None:
            self._intake_now.look_again()
            self._wake.ring_twice()
        else:
            self._stops_due = 0.0
            asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, self._wake.ring)

    async def _stop_what_is_cancelled(self) -> None:
        """Stop the items in work that were asked to: when an event told of one, and now and then in case none came."""
        ids = self._crew.held
        if not ids or time.monotonic() < self._stops_due:
            return
        self._stops_due = time.monotonic() + self.config.poll_seconds
        stopping = [StateType.CANCELLING, StateType.CANCELLED]
        for item in await self._shop.session.server.list_items(ids=ids, state_types=stopping):
            tracker = self._crew.find(str(item.id))
            if tracker is not None and not tracker.stop.is_set():
                log.info("%s stop-asked", item.id)
                tracker.stop.set()

    async def _tell_status(self) -> None:
        pause = _VERBOSE_STATUS_SECONDS if self.config.verbosity else _STATUS_SECONDS
        while True:
            self.print_status()
            await asyncio.sleep(pause)

    async def _set_status(self) -> None:
        await self.update_status("RUNNING" if self._crew.thread_ids else "POLLING")

    async def _leave(self) -> None:
        await self._crew.leave()
        try:
            await self.update_status("KILLED")
        except LaunchError as error:
            log.debug("not taken off the list: %s", error)
        log.info("agent %s left", self.config.name)

    @property
    def _intake_now(self) -> Intake:
        if self._intake is None:
            raise LaunchError(
                "The agent is not connected: use it inside 'async with agent.connected():', or run its loop()."
            )
        return self._intake


def is_scheduler(item: Item) -> bool:
    """Whether an item is a sweep's scheduler, which does not count as a job."""
    return str(item.parameters.get("uri") or "").startswith("placeholder")
