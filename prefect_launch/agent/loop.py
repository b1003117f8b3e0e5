"""Agent loop: fill the free slots, wait to be woken.

It is woken by the server's events, by its own finished work, and by the time at which an item that it saw is due; the
next poll is the fallback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.base import BaseAgent
from prefect_launch.agent.housekeeping.housekeeper import Housekeeper
from prefect_launch.agent.item.lifecycle import ItemLifecycle
from prefect_launch.agent.item.ownership import watch_ownership
from prefect_launch.agent.item.preemption import Preemption
from prefect_launch.agent.item.previous_attempts import stop_all_attempts
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.agent.polling.events import listen
from prefect_launch.agent.polling.new_items import NewItems
from prefect_launch.agent.recovery.abandoned_changes import AbandonedChanges
from prefect_launch.agent.recovery.cancellations import CancellationWatcher, OrphanedCancellations
from prefect_launch.agent.recovery.lost_agents import LostAgentDetector
from prefect_launch.agent.recovery.restart import (
    AdoptedRun,
    adopt_lost_run,
    find_own_runs,
    remove_stale_runs,
    settle_orphans,
)
from prefect_launch.agent.recovery.unlistable import UnlistableItems
from prefect_launch.agent.reporting.status import LAST_WORDS_SECONDS, Reporter, send_heartbeats
from prefect_launch.agent.reporting.wait_notes import WaitReasonLogger
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import LaunchError, ServerUnavailableError, UnreachableError
from prefect_launch.queues.agent_status import drain_variable, end_drain_request
from prefect_launch.queues.presence import Presence, delete_presence, read_presences, write_presence
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.server.event_stream import follow
from prefect_launch.server.values import JOB_FLOW, ItemChange
from prefect_launch.spec.item_parameters import is_scheduler

if TYPE_CHECKING:
    from prefect_launch.server.values import Item

log = logging.getLogger(__name__)

_STATUS_SECONDS: Final = 300.0
_VERBOSE_STATUS_SECONDS: Final = 20.0


class Loop:
    """One run of an agent's loop.

    Args:
        agent: connected.
        until_empty: end when the queues hold nothing and all work is done.
        max_runtime_seconds: end after this time.
    """

    def __init__(self, agent: BaseAgent, *, until_empty: bool, max_runtime_seconds: float | None) -> None:
        self._agent = agent
        self._config = agent.config
        self._running_items = agent.running_items
        self._shutdown = agent.shutdown
        self._presence = Presence.of(agent.holder, self._config.queues, is_shift=max_runtime_seconds is not None)
        self._reporter = Reporter(agent, self._presence)
        self._poller = agent.poller
        self._server = agent.context.session.server
        self._orphaned = OrphanedCancellations(self._server, self._config.queues, lambda: self._running_items.held)
        self._until_empty = until_empty
        self._ends_at = float("inf") if max_runtime_seconds is None else time.monotonic() + max_runtime_seconds
        self._stops = CancellationWatcher(self._server, agent.running_items, agent.config.poll_seconds)
        self._unlistable = UnlistableItems(agent.context.session, self._config.queues, agent.holder)
        self._unreachable_at_start: set[str] = set()
        self._may_have_claims = False
        self._scheduler_sought_at = float("-inf")
        self._has_heard = False
        self._new_items = NewItems(agent.poller.fleet, self._poll_for)

    async def run(self) -> None:
        """Run until a stop is requested, until empty, or until the time is up; its runs continue."""
        pool_ids = await retry_until_available("show the queues", self._pool_ids)
        self._shutdown.has_begun = True
        try:
            # Before heartbeats, drain requests and claims: other agents would take what an unseen agent holds.
            await retry_until_available("show this agent", lambda: write_presence(self._server, self._presence))
            async with supervised(self._shutdown.leave) as supervisor:
                supervisor.supervise(*self._tasks_from_the_start(pool_ids))
                await supervisor.work("recovery", self._recover)
                self._stops.check_soon()
                supervisor.supervise(*self._tasks_once_recovered())
                await supervisor.work("poll", self._work)
        finally:
            await self._leave()

    def _tasks_from_the_start(self, pool_ids: list[UUID]) -> list[BackgroundTask]:
        queues, running_items = self._config.queues, self._running_items
        wait_notes = WaitReasonLogger(self._agent.context.session, queues, self._poller.fleet.is_first)
        return [
            BackgroundTask(
                "heartbeat", lambda: send_heartbeats(self._server, self._presence, lambda: running_items.items)
            ),
            BackgroundTask("cancellations", self._stops.watch),
            BackgroundTask("ownership check", lambda: watch_ownership(self._server, lambda: running_items.entries)),
            BackgroundTask("drain request", self._reporter.watch_drain_request),
            # Without these the agent still does its own work, and can be stopped.
            BackgroundTask("events", lambda: listen(self._server, pool_ids, self._on_event), vital=False),
            BackgroundTask("setting events", self._watch_settings, vital=False),
            BackgroundTask("limits", lambda: self._poller.watch_limits(self._poll_again), vital=False),
            BackgroundTask("status", self._reporter.post, vital=False),
            BackgroundTask("unlistable items", self._unlistable.watch, vital=False),
            BackgroundTask("status line", self._log_status, vital=False),
            BackgroundTask("lost agents", self._lost_agent_detector().watch, vital=False),
            BackgroundTask("abandoned changes", AbandonedChanges(self._server, queues).watch, vital=False),
            BackgroundTask("wait reasons", wait_notes.watch, vital=False),
            BackgroundTask("preemption", self._preemption().watch, vital=False),
            BackgroundTask("orphaned cancellations", self._orphaned.watch, vital=False),
        ]

    def _tasks_once_recovered(self) -> list[BackgroundTask]:
        context = self._agent.context
        return [
            BackgroundTask("runner health", lambda: context.runner_health.watch(self._is_back)),
            BackgroundTask("housekeeping", Housekeeper(context, lambda: self._running_items.held).keep, vital=False),
        ]

    def _preemption(self) -> Preemption:
        config, shutdown = self._config, self._shutdown
        session = self._agent.context.session
        return Preemption(
            session,
            config.queues,
            self._running_items,
            lambda: shutdown.draining or shutdown.stopping,
            config.poll_seconds,
        )

    def _lost_agent_detector(self) -> LostAgentDetector:
        context = self._agent.context
        stop_here = partial(stop_all_attempts, context)
        return LostAgentDetector(
            context.session,
            self._agent.holder,
            self._config.queues,
            lost_seconds=context.lost_seconds,
            stop_here=stop_here,
            adopt_lost_run=self._adopt_lost_run,
            on_living=self._poller.fleet.note,
        )

    async def _adopt_lost_run(self, queue: str, item: Item, lost: Collection[str]) -> bool:
        """Adopt the run of a lost agent if it is within reach; whether this or another agent has adopted it."""
        held = self._running_items.find(str(item.id)) is not None
        return held or await adopt_lost_run(self._agent.context, self._resume, queue, item, lost)

    async def _pool_ids(self) -> list[UUID]:
        session = self._agent.context.session
        return [(await session.queue(queue)).pool_id for queue in self._config.queues]

    async def _work(self) -> None:
        """Take items in until it is over; called again when it failed."""
        await retry_until_available("read the queues' limits", self._poller.read_limits)
        await retry_until_available("show the agent's drain request", self._reporter.read_drain_request)
        self._shutdown.at_work = True
        while not self._is_over:
            if self._shutdown.draining:
                # A sweep may last for days, and the trials need an agent that takes items.
                self._running_items.preempt_schedulers()
            try:
                await self._settle_claims()
                self._may_have_claims = True
                await self._fill()
                self._may_have_claims = False
                if self._until_empty and not self._running_items.thread_ids and await self._is_empty():
                    return
            except ServerUnavailableError as error:
                log.warning("server-away %s", error)
            except LaunchError as error:
                # Whatever the server made of one request, the agent continues with its other work.
                log.error("failed %s: %s", type(error).__name__, error)
            left = max(self._ends_at - time.monotonic(), 0.0)
            await self._agent.wake.wait(min(self._config.poll_seconds, left, self._poller.seconds_until_due()))

    @property
    def _is_over(self) -> bool:
        if self._shutdown.stopping or time.monotonic() >= self._ends_at:
            return True
        return self._shutdown.draining and not self._running_items.thread_ids and self._ends_drained

    @property
    def _ends_drained(self) -> bool:
        """Whether it leaves once it has drained. A scheduled run stays: the next would start at once, and drain too."""
        return self._shutdown.ends_when_drained or self._ends_at == float("inf")

    async def _fill(self) -> None:
        await self._fill_schedulers()
        while self._agent.free_slots > 0 and not self._shutdown.stopping:
            found = await self._agent.get_job_and_queue()
            if found is None:
                break
            self._new_items.note_claimed(str(found[0].id))
            await self._agent.run_job(*found)
        await self._agent.update_status("RUNNING" if self._running_items.thread_ids else "POLLING")

    async def _fill_schedulers(self) -> None:
        """Take sweeps, which need no slot of a job; the server is asked for them at most once a poll interval."""
        if time.monotonic() < self._scheduler_sought_at + self._config.poll_seconds:
            return
        while self._agent.takes_schedulers and not self._shutdown.stopping:
            self._scheduler_sought_at = time.monotonic()
            found = await self._poller.pop_scheduler(self._running_items.held)
            if found is None:
                break
            await self._agent.run_job(*found)

    async def _settle_claims(self) -> None:
        """Release items that were claimed and are not active here, when the last poll failed in between."""
        if self._may_have_claims:
            context, held = self._agent.context, self._running_items.held
            await settle_orphans(context, self._config.queues, self._agent.holder, held, self._unreachable_at_start)

    async def _recover(self) -> None:
        """Take up what the last life of this agent has left; called again when it failed."""
        context = self._agent.context
        await retry_until_available("show what cannot be listed", self._unlistable.check_all)
        holder = self._agent.holder
        left = await retry_until_available(
            "show what the last agent of this name left", lambda: find_own_runs(context, holder)
        )
        for run in left.runs:
            self._resume(run)
        await remove_stale_runs(context, left.stale)
        await self._note_unreachable(left.unreachable)
        held = {run.item.id for run in left.runs}
        await retry_until_available(
            "settle what was claimed and does not run",
            lambda: settle_orphans(context, self._config.queues, holder, held, left.unreachable),
        )
        # Also when something could not be seen: its items are this life's to settle, once it can be.
        lives = await retry_until_available("show the other agents", lambda: read_presences(self._server))
        await retry_until_available("forget this agent's earlier lives", lambda: self._delete_earlier_presences(lives))
        self._say_who_shares(lives)

    def _say_who_shares(self, lives: Iterable[Presence]) -> None:
        """Say once that others take items of the queues: the server does not tell whether its database is slow then."""
        holder, queues = self._agent.holder, set(self._config.queues)
        since = datetime.now(timezone.utc) - timedelta(seconds=self._agent.context.lost_seconds)
        living = (one for one in lives if not (one.has_left or one.holder.is_earlier_life_of(holder)))
        shared = {one.holder.agent: queues.intersection(one.queues) for one in living if one.at >= since}
        others = sorted(name for name, common in shared.items() if common)
        if others:
            log.info(
                "shared-queue: other agents take items of %s too: %s. With a server on SQLite, stop this one and raise"
                " the other's max_jobs: several get hardly more done. With PostgreSQL, start as many as you need.",
                ", ".join(sorted({queue for common in shared.values() for queue in common})),
                ", ".join(others),
            )

    async def _delete_earlier_presences(self, lives: Iterable[Presence]) -> None:
        """Delete the presence of earlier lives: all that they held is this one's, or settled."""
        holder = self._agent.holder
        for presence in lives:
            if presence.holder.instance != holder.instance and presence.holder.is_earlier_life_of(holder):
                await end_drain_request(self._server, self._config.name, [presence.holder.instance])
                await delete_presence(self._server, presence.holder.instance)

    async def _note_unreachable(self, unreachable: Mapping[str, str]) -> None:
        """Claim nothing for a resource of the queues until it was seen what is left there."""
        session = self._agent.context.session
        for resource in {(await session.queue(name)).config.resource for name in self._config.queues}:
            if resource in unreachable:
                self._unreachable_at_start.add(resource)
                self._agent.context.runner_health.mark_unseen(resource, unreachable[resource])

    async def _is_back(self, resource: str) -> None:
        """Recover what the last life of this agent left on a resource that was away at the start of this one."""
        context = self._agent.context
        if resource in self._unreachable_at_start:
            left = await find_own_runs(context, self._agent.holder, [resource])
            if left.unreachable:
                raise UnreachableError(left.unreachable[resource])
            for run in left.runs:
                self._resume(run)
            await remove_stale_runs(context, left.stale)
            queues = [
                name for name in self._config.queues if (await context.session.queue(name)).config.resource == resource
            ]
            await settle_orphans(context, queues, self._agent.holder, self._running_items.held)
            self._unreachable_at_start.discard(resource)
        self._agent.wake.set()

    def _resume(self, run: AdoptedRun) -> None:
        """Take up a run that an agent of this name, or a lost one of this home, has left, unless that was done."""
        if self._running_items.find(str(run.item.id)) is not None:
            return
        running_item = RunningItem(
            item=run.item,
            queue=run.queue,
            is_scheduler=is_scheduler(run.item),
            handle=run.handle,
            # While no agent was there, this one may have been called lost: check ownership before trusting it.
            held_at=float("-inf"),
        )
        current = run.item.state_type or StateType.RUNNING
        if current is StateType.CANCELLING:
            running_item.stop.set()
        execution = ItemLifecycle(self._agent.context, running_item)
        work = partial(execution.resume, run.runner, run.plan, run.handle, current)
        self._running_items.begin(running_item, lambda: self._running_items.do(running_item, work))

    async def _is_empty(self) -> bool:
        """Whether nothing is due and nothing comes back; what a schedule has planned for later is not waited for."""
        taken = None if self._config.max_schedulers else JOB_FLOW  # What it never takes is not waited for.
        count = partial(self._server.count_items, state_types=[StateType.SCHEDULED], flow=taken)
        for queue in self._config.queues:
            if await count(pool=queue, due_before=datetime.now(timezone.utc)):
                return False
            if await count(pool=queue, state_names=[ItemState.AWAITING_RETRY.label]):
                return False
        return True

    async def _watch_settings(self) -> None:
        """Act at once on what is set for the agent or its queues; never returns."""
        names = (drain_variable(self._config.name), *self._config.queues)
        await follow(lambda: self._server.watch_settings(*names), self._on_setting)

    def _on_setting(self, name: str) -> None:
        """Act on an event; the first of a stream, without a name, says that some may have been missed."""
        if name not in self._config.queues:
            self._reporter.check_drain_request()
        # The limits were read just before the first stream was opened.
        if name in self._config.queues or (not name and self._has_heard):
            self._poller.check_limits()
        self._has_heard = True

    def _on_event(self, change: ItemChange) -> None:
        """Act on an event; the first of a stream says that it is open, and that some may have been missed."""
        if change.type is None:
            self._stops.check_soon()
            self._poll_again()
        elif change.type is StateType.PENDING:
            self._new_items.note_claimed(change.item_id)
            self._poller.note_claim(change)
        elif change.type is StateType.SCHEDULED:
            if (running_item := self._running_items.find(change.item_id)) is None:
                self._new_items.note_queued(change)
            elif not change.is_new:  # A new one is claimed since: its event comes late.
                self._note_put_back(running_item)
        elif (running_item := self._running_items.find(change.item_id)) is not None:
            self._stops.on_event(running_item)
        else:
            self._orphaned.on_event(change.item_id)

    def _note_put_back(self, running_item: RunningItem) -> None:
        """Note that an active item is in its queue again: poll for it once it is not active here any more."""
        running_item.goes_back = True
        if not running_item.is_ending:
            self._stops.on_put_back(running_item)

    def _poll_for(self, queued: ItemChange) -> None:
        self._poller.note_queued(queued)
        self._agent.wake.set()

    def _poll_again(self) -> None:
        self._poller.poll_again()
        self._agent.wake.set()

    async def _log_status(self) -> None:
        pause = _VERBOSE_STATUS_SECONDS if self._config.verbosity else _STATUS_SECONDS
        while True:
            self._agent.print_status()
            await asyncio.sleep(pause)

    async def _leave(self) -> None:
        if self._shutdown.stops_jobs:
            await self._running_items.stop_jobs(self._config.stopped_run_timeout)
        left = self._reporter.current_status("offline")
        await self._running_items.leave()
        if self._shutdown.stops_jobs:
            await self._give_back({UUID(item.id) for item in left.running})
        await self._reporter.leave(left)
        log.info("agent %s left", self._config.name)

    async def _give_back(self, held: set[UUID]) -> None:
        """Put what was claimed and has not come to run back into its queue; leave what would not end alone."""
        context = self._agent.context
        try:
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await settle_orphans(context, self._config.queues, self._agent.holder, held)
        except LaunchError as error:
            log.warning("not-given-back %s", error)
