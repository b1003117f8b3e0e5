"""Heartbeats and status of an agent, and the drain request that it reads from the server.

The status is written only when it has changed, and every few seconds at most: an idle agent writes nothing. It says
what the runs use, as it was seen within the last 15 s: one write for all of them. The drain request is read once a poll
interval, and at an event of the server's.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.agent.base import BaseAgent
from prefect_launch.agent.polling.events import WakeEvent
from prefect_launch.core.supervision import unless_away
from prefect_launch.errors import LaunchError
from prefect_launch.queues.agent_status import (
    AgentStatus,
    RunningItemSummary,
    delete_status,
    end_drain_request,
    post_status,
    read_drain_request,
)
from prefect_launch.queues.presence import Presence, delete_presence, write_presence
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

log = logging.getLogger(__name__)


#: The server calls a worker offline after three intervals.
WORKER_SECONDS: Final = 15
#: A run whose heartbeats stop for three of these is lost.
ITEM_SECONDS: Final = 30
#: After so many heartbeats in a row that failed, others take the agent for offline: the log says so.
_MISSED: Final = 3


async def send_heartbeats(server: Server, presence: Presence, items: Callable[[], Sequence[Item]]) -> None:
    """Beat for the agent every 15 s, and for its presence (which is shown already) and its items every 30 s.

    Never returns.

    Args:
        server: the Prefect server; one that is away is no fault.
        presence: of this life, with the queues that it takes items of.
        items: gives the active items.
    """
    items_due, presence_due = 0.0, time.monotonic() + ITEM_SECONDS
    missed, beats = 0, 0
    while True:
        try:
            for queue in presence.queues:
                await server.beat_worker(queue, presence.holder.agent, WORKER_SECONDS)
            if time.monotonic() >= presence_due:
                beats += 1
                await write_presence(server, presence.beating(beats))
                presence_due = time.monotonic() + ITEM_SECONDS
            alive = items()
            if alive and time.monotonic() >= items_due:
                await server.beat_items(alive)
                items_due = time.monotonic() + ITEM_SECONDS
            missed = 0
        except LaunchError as error:
            missed += 1
            log.log(logging.WARNING if missed == _MISSED else logging.DEBUG, "heartbeat failed: %s", error)
        await anyio.sleep(WORKER_SECONDS)


#: The shortest time between two notices, and how many times longer it gets while the status changes all the time.
WRITE_SECONDS: Final = 4.0
_MOST_TIMES_LONGER: Final = 4
#: From one look at what the runs use to the next: it changes all the time.
USAGE_SECONDS: Final = 15.0
#: Not at once: what it says is no hurry, and while an item starts the server has better to do.
_CHECK_SECONDS: Final = 1.0
#: What the server gets to take the last words of an agent that leaves.
LAST_WORDS_SECONDS: Final = 5.0


class Reporter:
    """Reports on one agent.

    Args:
        agent: connected.
        presence: of this life of the agent.
    """

    def __init__(self, agent: BaseAgent, presence: Presence) -> None:
        self._agent = agent
        self._presence = presence
        self._server: Server = agent.context.session.server
        self._name = agent.config.name
        self._changed = WakeEvent()
        self._usage: dict[UUID, Mapping[str, float]] = {}

    def current_status(self, state: str | None = None) -> AgentStatus:
        """Return how the agent is now."""
        agent = self._agent
        items = agent.running_items.entries
        usual = "draining" if agent.shutdown.draining else "running" if items else "polling"
        return AgentStatus(
            name=self._name,
            host=socket.gethostname(),
            queues=agent.config.queues,
            slots=_finite(agent.config.max_jobs),
            max_schedulers=_finite(agent.config.max_schedulers),
            state=state or usual,
            running=tuple(RunningItemSummary.of(one.item, self._usage.get(one.id, {})) for one in items),
            in_work=agent.num_running_jobs,
            schedulers=agent.num_running_schedulers,
            waits={str(one.item_id): one.reason for one in agent.context.devices.wait_list.waiting},
            devices=agent.context.devices.describe(),
            capacity=agent.context.devices.allocations.capacity.as_data(),
            problems=dict(sorted(agent.context.runner_health.unreachable.items())),
            secure_mode=agent.config.secure_mode,
            pushes_images=agent.config.builder.destination is not None,
        )

    async def post(self) -> None:
        """Post its status whenever it has changed; never returns."""
        posted, due, usage_due, times_longer = None, 0.0, 0.0, 1
        while True:
            if time.monotonic() >= usage_due:
                self._usage = {one.id: one.usage for one in self._agent.running_items.entries}
                usage_due = time.monotonic() + USAGE_SECONDS
            now = self.current_status()
            if now != posted and time.monotonic() >= due:
                # It had changed again before the last pause was over: the next one is longer.
                changes_on = time.monotonic() < due + 2 * _CHECK_SECONDS
                times_longer = min(2 * times_longer, _MOST_TIMES_LONGER) if changes_on else 1
                with unless_away(log, "status not posted"):
                    await post_status(self._server, now)
                    posted = now
                due = time.monotonic() + times_longer * WRITE_SECONDS
            await anyio.sleep(_CHECK_SECONDS)

    async def read_drain_request(self) -> None:
        """Read whether somebody has asked this life of it to drain."""
        request = await read_drain_request(self._server, self._name)
        wanted = request is not None and request.is_for(self._presence)
        self._agent.shutdown.set_drain_request(
            wanted, ends_when_drained=wanted and request is not None and request.ends_shift
        )

    async def watch_drain_request(self) -> None:
        """Read the drain request again and again; never returns."""
        drains = False
        while True:
            with unless_away(log, "drain request not read"):
                await self.read_drain_request()
            if self._agent.shutdown.drain_requested is not drains:
                drains = not drains
                log.info("agent %s %s", self._name, "was asked to drain" if drains else "takes items again")
            await self._changed.wait(self._agent.config.poll_seconds)

    def check_drain_request(self) -> None:
        """Read the drain request soon: an event reports one."""
        self._changed.set_twice()

    async def leave(self, left: AgentStatus) -> None:
        """Delete its status and its presence; when items continue without it, both say so.

        Args:
            left: its status just before it stopped following its runs.
        """
        presence = self._presence
        with unless_away(log, "not taken off the list"):
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await end_drain_request(self._server, self._name, [presence.holder.instance])
                if left.running:
                    await post_status(self._server, left)
                    await write_presence(self._server, presence.leaving())
                else:
                    await delete_status(self._server, self._name)
                    await delete_presence(self._server, presence.holder.instance)
                await self._agent.update_status("KILLED")


def _finite(limit: float) -> int | None:
    return None if math.isinf(limit) else int(limit)
