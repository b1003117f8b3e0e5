"""The loop of an agent: fill the free slots, stop what is to be stopped, wait to be woken.

It is woken by the server's events and by its own finished work; the clock is the fallback.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect_launch.agent.execution import Execution
from prefect_launch.agent.heartbeat import beat
from prefect_launch.agent.moves import log, until_server_is_back
from prefect_launch.agent.recover import Adopted, find_own_runs, settle_orphans
from prefect_launch.agent.tracker import JobTracker, is_scheduler
from prefect_launch.agent.wake import SECOND_LOOK_SECONDS, listen
from prefect_launch.errors import LaunchError, ServerUnavailableError
from prefect_launch.states import StateType

if TYPE_CHECKING:
    from prefect_launch.agent.agent import LaunchAgent

_STATUS_SECONDS: Final = 300.0
_VERBOSE_STATUS_SECONDS: Final = 20.0


class Loop:
    """One run of an agent's loop.

    Args:
        agent: connected.
        until_empty: end when the queues hold nothing and all work is done.
        max_runtime_seconds: end after this time.
    """

    def __init__(self, agent: LaunchAgent, *, until_empty: bool, max_runtime_seconds: float | None) -> None:
        self._agent = agent
        self._config = agent.config
        self._crew = agent.crew
        self._intake = agent.intake
        self._server = agent.shop.session.server
        self._until_empty = until_empty
        self._ends_at = float("inf") if max_runtime_seconds is None else time.monotonic() + max_runtime_seconds
        self._stops_due = 0.0

    async def run(self) -> None:
        """Run until told to stop, until empty, or until the time is up; then let go of what runs."""
        pool_ids = await until_server_is_back("show the queues", self._pool_ids)
        background = [
            asyncio.create_task(beat(self._server, self._config.name, self._config.queues, lambda: self._crew.items)),
            asyncio.create_task(listen(self._server, pool_ids, self._heard)),
            asyncio.create_task(self._intake.watch_limits()),
            asyncio.create_task(self._tell_status()),
        ]
        try:
            await self._recover()
            await until_server_is_back("read the queues' limits", self._intake.read_limits)
            await self._work()
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await self._leave()

    async def _pool_ids(self) -> list[UUID]:
        session = self._agent.shop.session
        return [(await session.queue(queue)).pool_id for queue in self._config.queues]

    async def _work(self) -> None:
        while not self._agent.stopping and time.monotonic() < self._ends_at:
            try:
                await self._fill()
                await self._stop_what_is_cancelled()
                if self._until_empty and not self._crew.thread_ids and await self._is_empty():
                    return
            except ServerUnavailableError as error:
                log.warning("server-away %s", error)
            except LaunchError as error:
                # Whatever the server made of one request, the agent's other work goes on.
                log.error("failed %s: %s", type(error).__name__, error)
            left = max(self._ends_at - time.monotonic(), 0.0)
            await self._agent.wake.wait(min(self._config.poll_seconds, left))

    async def _fill(self) -> None:
        while self._agent.free_slots > 0 and not self._agent.stopping:
            found = await self._agent.get_job_and_queue()
            if found is None:
                break
            await self._agent.run_job(*found)
        await self._agent.update_status("RUNNING" if self._crew.thread_ids else "POLLING")

    async def _recover(self) -> None:
        shop = self._agent.shop
        left = await until_server_is_back("show what the last agent of this name left", lambda: find_own_runs(shop))
        for run in left.runs:
            self._resume(run)
        held = {run.item.id for run in left.runs}
        await until_server_is_back(
            "settle what was claimed and does not run",
            lambda: settle_orphans(shop, self._config.queues, self._agent.holder, held, left.unseen),
        )

    def _resume(self, run: Adopted) -> None:
        """Take up a run that an agent of this name has left."""
        tracker = JobTracker(item=run.item, queue=run.queue, is_scheduler=is_scheduler(run.item), handle=run.handle)
        current = run.item.state_type or StateType.RUNNING
        if current is StateType.CANCELLING:
            tracker.stop.set()
        execution = Execution(self._agent.shop, tracker)
        work = partial(execution.resume, run.runner, run.plan, run.handle, current)
        self._crew.begin(tracker, lambda: self._crew.do(tracker, work))

    async def _is_empty(self) -> bool:
        for queue in self._config.queues:
            if await self._server.count_items(pool=queue, state_types=[StateType.SCHEDULED]):
                return False
        return True

    def _heard(self, item_id: str) -> None:
        """Act on an event: an item in work may be asked to stop, any other may be a new one.

        The first event of a stream has no id: it says that the stream is open, and that some may have been missed.
        """
        if not item_id:
            self._stops_due = 0.0
        if self._crew.find(item_id) is None:
            self._look()
            asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, self._look)
        else:
            self._stops_due = 0.0
            asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, self._agent.wake.ring)

    def _look(self) -> None:
        self._intake.look_again()
        self._agent.wake.ring()

    async def _stop_what_is_cancelled(self) -> None:
        """Stop the items in work that were asked to: when an event told of one, and now and then in case none came."""
        ids = self._crew.held
        if not ids or time.monotonic() < self._stops_due:
            return
        self._stops_due = time.monotonic() + self._config.poll_seconds
        stopping = [StateType.CANCELLING, StateType.CANCELLED]
        for item in await self._server.list_items(ids=ids, state_types=stopping):
            tracker = self._crew.find(str(item.id))
            if tracker is not None and not tracker.stop.is_set():
                log.info("%s stop-asked", item.id)
                tracker.stop.set()

    async def _tell_status(self) -> None:
        pause = _VERBOSE_STATUS_SECONDS if self._config.verbosity else _STATUS_SECONDS
        while True:
            self._agent.print_status()
            await asyncio.sleep(pause)

    async def _leave(self) -> None:
        await self._crew.leave()
        try:
            await self._agent.update_status("KILLED")
        except LaunchError as error:
            log.debug("not taken off the list: %s", error)
        log.info("agent %s left", self._config.name)
