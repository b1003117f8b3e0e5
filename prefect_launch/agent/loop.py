"""The loop of an agent: fill the free slots, wait to be woken.

It is woken by the server's events, by its own finished work, and by the time at which an item that it saw is due; the
next poll is the fallback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.housekeeping.housekeeper import Housekeeper
from prefect_launch.agent.item.lifecycle import Execution
from prefect_launch.agent.item.ownership import stop_what_is_not_held
from prefect_launch.agent.item.previous_attempts import stop_all_attempts
from prefect_launch.agent.item.running_items import JobTracker, is_scheduler
from prefect_launch.agent.item.transitions import log, until_server_is_back
from prefect_launch.agent.polling.events import SECOND_LOOK_SECONDS, listen
from prefect_launch.agent.recovery.cancellations import StopRequests, StrayStops
from prefect_launch.agent.recovery.lost_agents import LostWatch
from prefect_launch.agent.recovery.restart import Adopted, clear_away, find_own_runs, go_on, settle_orphans
from prefect_launch.agent.reporting.status import LAST_WORDS_SECONDS, Reporter, beat
from prefect_launch.agent.reporting.wait_notes import WaitTeller
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import LaunchError, ServerUnavailableError, UnreachableError
from prefect_launch.queues.presence import Presence, delete_presence, post_presence, read_presences

if TYPE_CHECKING:
    from prefect_launch.agent.agent import LaunchAgent
    from prefect_launch.server.values import Item

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
        self._orders = agent.orders
        self._reporter = Reporter(agent)
        self._intake = agent.intake
        self._server = agent.shop.session.server
        self._strays = StrayStops(self._server, self._config.queues, lambda: self._crew.held)
        self._until_empty = until_empty
        self._ends_at = float("inf") if max_runtime_seconds is None else time.monotonic() + max_runtime_seconds
        self._stops = StopRequests(self._server, agent.crew, agent.config.poll_seconds)
        self._unseen: set[str] = set()
        self._presence = Presence.of(agent.holder, self._config.queues)

    async def run(self) -> None:
        """Run until told to stop, until empty, or until the time is up; then let go of what runs."""
        pool_ids = await until_server_is_back("show the queues", self._pool_ids)
        self._orders.has_begun = True
        try:
            async with supervised(self._orders.leave) as supervisor:
                supervisor.supervise(*self._tasks_from_the_start(pool_ids))
                await self._recover()
                self._stops.look_again()
                supervisor.supervise(*self._tasks_once_recovered())
                # Before the first claim: what nobody can see to be alive would be nobody's.
                await until_server_is_back("show this agent", lambda: post_presence(self._server, self._presence))
                await until_server_is_back("read the queues' limits", self._intake.read_limits)
                await until_server_is_back("show the agent's orders", self._reporter.read_orders)
                await self._work()
        finally:
            await self._leave()

    def _tasks_from_the_start(self, pool_ids: list[UUID]) -> list[BackgroundTask]:
        name, queues, crew = self._config.name, self._config.queues, self._crew
        tell_waits = WaitTeller(self._agent.shop.session, name, queues)
        return [
            BackgroundTask("heartbeat", lambda: beat(self._server, self._presence, lambda: crew.items)),
            BackgroundTask("stop requests", self._stops.watch),
            BackgroundTask("ownership check", lambda: stop_what_is_not_held(self._server, lambda: crew.trackers)),
            BackgroundTask("orders", self._reporter.watch_orders),
            # Without these the agent still does its own work, and can be told to stop.
            BackgroundTask("events", lambda: listen(self._server, pool_ids, self._heard), vital=False),
            BackgroundTask("order events", self._reporter.listen, vital=False),
            BackgroundTask("limits", self._intake.watch_limits, vital=False),
            BackgroundTask("notice", self._reporter.post, vital=False),
            BackgroundTask("status line", self._tell_status, vital=False),
            BackgroundTask("lost agents", self._lost_watch().watch, vital=False),
            BackgroundTask("wait reasons", tell_waits.watch, vital=False),
            BackgroundTask("stray stops", self._strays.watch, vital=False),
        ]

    def _tasks_once_recovered(self) -> list[BackgroundTask]:
        shop = self._agent.shop
        return [
            BackgroundTask("reach", lambda: shop.reach.watch(self._is_back)),
            BackgroundTask("housekeeping", Housekeeper(shop, lambda: self._crew.held).keep, vital=False),
        ]

    def _lost_watch(self) -> LostWatch:
        shop = self._agent.shop
        stop_here = partial(stop_all_attempts, shop)
        return LostWatch(
            shop.session,
            self._config.name,
            self._config.queues,
            holder=self._agent.holder,
            lost_seconds=shop.lost_seconds,
            stop_here=stop_here,
            go_on=self._go_on,
        )

    async def _go_on(self, queue: str, item: Item, lost: Collection[str]) -> bool:
        """Report from here on on a run of a lost agent that is within reach; whether this or another agent does."""
        held = self._crew.find(str(item.id)) is not None
        return held or await go_on(self._agent.shop, self._resume, queue, item, lost)

    async def _pool_ids(self) -> list[UUID]:
        session = self._agent.shop.session
        return [(await session.queue(queue)).pool_id for queue in self._config.queues]

    async def _work(self) -> None:
        self._orders.at_work = True
        while not self._is_over:
            try:
                await self._fill()
                if self._until_empty and not self._crew.thread_ids and await self._is_empty():
                    return
            except ServerUnavailableError as error:
                log.warning("server-away %s", error)
            except LaunchError as error:
                # Whatever the server made of one request, the agent's other work goes on.
                log.error("failed %s: %s", type(error).__name__, error)
            left = max(self._ends_at - time.monotonic(), 0.0)
            await self._agent.wake.wait(min(self._config.poll_seconds, left, self._intake.due_in()))

    @property
    def _is_over(self) -> bool:
        if self._orders.stopping or time.monotonic() >= self._ends_at:
            return True
        return self._orders.draining and not self._crew.thread_ids and self._ends_drained

    @property
    def _ends_drained(self) -> bool:
        """Whether it leaves once it has drained: the shift after one that does would come at once, and drain too."""
        return self._orders.ends_shift or self._ends_at == float("inf")

    async def _fill(self) -> None:
        while self._agent.free_slots > 0 and not self._orders.stopping:
            found = await self._agent.get_job_and_queue()
            if found is None:
                break
            await self._agent.run_job(*found)
        await self._agent.update_status("RUNNING" if self._crew.thread_ids else "POLLING")

    async def _recover(self) -> None:
        shop = self._agent.shop
        holder = self._agent.holder
        left = await until_server_is_back(
            "show what the last agent of this name left", lambda: find_own_runs(shop, holder)
        )
        for run in left.runs:
            self._resume(run)
        await clear_away(shop, left.stale)
        await self._note_unseen(left.unseen)
        held = {run.item.id for run in left.runs}
        await until_server_is_back(
            "settle what was claimed and does not run",
            lambda: settle_orphans(shop, self._config.queues, holder, held, left.unseen),
        )
        # Also when something could not be seen: its items are this life's to settle, once it can be.
        await until_server_is_back("forget this agent's earlier lives", self._forget_earlier_lives)

    async def _forget_earlier_lives(self) -> None:
        """Take down the presence of earlier lives: all that they held is this one's, or settled."""
        holder = self._agent.holder
        for presence in await read_presences(self._server):
            if presence.holder.instance != holder.instance and presence.holder.is_earlier_life_of(holder):
                await delete_presence(self._server, presence.holder.instance)

    async def _note_unseen(self, unseen: Collection[str]) -> None:
        """Claim nothing for a resource of the queues until it was seen what is left there."""
        session = self._agent.shop.session
        for resource in {(await session.queue(name)).config.resource for name in self._config.queues} & set(unseen):
            self._unseen.add(resource)
            self._agent.shop.reach.lost(resource, "What runs there could not be seen.")

    async def _is_back(self, resource: str) -> None:
        """See what the last life of this agent has left on a resource that was away when this one began."""
        shop = self._agent.shop
        if resource in self._unseen:
            left = await find_own_runs(shop, self._agent.holder, [resource])
            if left.unseen:
                raise UnreachableError(f"What runs on {resource} could not be seen.")
            for run in left.runs:
                self._resume(run)
            await clear_away(shop, left.stale)
            queues = [
                name for name in self._config.queues if (await shop.session.queue(name)).config.resource == resource
            ]
            await settle_orphans(shop, queues, self._agent.holder, self._crew.held)
            self._unseen.discard(resource)
        self._agent.wake.ring()

    def _resume(self, run: Adopted) -> None:
        """Take up a run that an agent of this name, or a lost one of this home, has left."""
        tracker = JobTracker(
            item=run.item,
            queue=run.queue,
            is_scheduler=is_scheduler(run.item),
            handle=run.handle,
            # While no agent was there, this one may have been called lost: to be looked at before it is trusted.
            held_at=float("-inf"),
        )
        current = run.item.state_type or StateType.RUNNING
        if current is StateType.CANCELLING:
            tracker.stop.set()
        execution = Execution(self._agent.shop, tracker)
        work = partial(execution.resume, run.runner, run.plan, run.handle, current)
        self._crew.begin(tracker, lambda: self._crew.do(tracker, work))

    async def _is_empty(self) -> bool:
        """Whether nothing is due and nothing comes back; what a schedule has planned for later is not waited for."""
        count = partial(self._server.count_items, state_types=[StateType.SCHEDULED])
        for queue in self._config.queues:
            if await count(pool=queue, due_before=datetime.now(timezone.utc)):
                return False
            if await count(pool=queue, state_names=[ItemState.AWAITING_RETRY.label]):
                return False
        return True

    def _heard(self, item_id: str) -> None:
        """Act on an event: an item in work may be asked to stop, any other may be a new one.

        The first event of a stream has no id: it says that the stream is open, and that some may have been missed.
        """
        if not item_id:
            self._stops.look_again()
        tracker = self._crew.find(item_id)
        if tracker is None:
            if item_id:
                self._strays.heard(item_id)
            self._look()
            asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, self._look)
        else:
            self._stops.heard(tracker)

    def _look(self) -> None:
        self._intake.look_again()
        self._agent.wake.ring()

    async def _tell_status(self) -> None:
        pause = _VERBOSE_STATUS_SECONDS if self._config.verbosity else _STATUS_SECONDS
        while True:
            self._agent.print_status()
            await asyncio.sleep(pause)

    async def _leave(self) -> None:
        if self._orders.stops_jobs:
            await self._crew.stop_jobs(self._config.stopped_run_timeout)
        left = self._reporter.notice("offline")
        drained = self._orders.drains_from_afar and not left.running and self._ends_drained
        await self._crew.leave()
        if self._orders.stops_jobs:
            await self._give_back({UUID(item.id) for item in left.running})
        await self._reporter.leave(left, self._presence, drained=drained)
        log.info("agent %s left", self._config.name)

    async def _give_back(self, held: set[UUID]) -> None:
        """Put what was claimed and has not come to run back into its queue; leave what would not end alone."""
        shop = self._agent.shop
        try:
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await settle_orphans(shop, self._config.queues, self._agent.holder, held)
        except LaunchError as error:
            log.warning("not-given-back %s", error)
