"""What the idle agents of a queue ask the server for when a new item comes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.polling.share import Fleet
from prefect_launch.agent.recovery import cancellations
from prefect_launch.core.states import StateType
from prefect_launch.queues.presence import Presence, read_presences
from tests.support.bench import QUEUE, Bench, eventually, holder_called

#: Nothing is polled for that long but after an event.
LONG_SECONDS = 600.0
#: Longer than all turns after an event.
QUIET_SECONDS = 0.6


@asynccontextmanager
async def idle_agents(bench: Bench, count: int) -> AsyncIterator[list[LaunchAgent]]:
    """Run agents that know each other, and have asked for all that they ask for at their start."""
    agents = [bench.agent(f"box-{number}", poll_seconds=LONG_SECONDS) for number in range(count)]
    async with AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(bench.running(agent))
        await eventually(lambda: asyncio.sleep(0, bench.server.watching), lambda watching: watching == count)
        lives = await read_presences(bench.server)
        for agent in agents:
            agent.poller.fleet.note(lives)
        await polls_stand_still(bench)
        yield agents


async def polls_stand_still(bench: Bench) -> int:
    """Wait until no agent has polled for a while; return how many polls there were."""

    async def more() -> int:
        before = bench.server.calls["poll"]
        await asyncio.sleep(QUIET_SECONDS)
        return bench.server.calls["poll"] - before

    await eventually(more, lambda count: count == 0)
    return bench.server.calls["poll"]


async def test_new_item_costs_idle_agents_one_poll_among_them(bench: Bench) -> None:
    async with idle_agents(bench, 4):
        before = await polls_stand_still(bench)
        for _ in range(6):
            (item,) = await bench.add()
            await bench.until(item, StateType.COMPLETED)
        assert await polls_stand_still(bench) - before == 6


async def test_item_whose_owner_takes_nothing_starts_on_another_agent_soon(bench: Bench) -> None:
    async with idle_agents(bench, 2) as agents:
        lives = [Presence.of(holder_called("full"), (QUEUE,)), *await read_presences(bench.server)]
        for agent in agents:
            agent.poller.fleet.note(lives)
        for _ in range(9):  # Of nine items, one or more is that one's: all but once in 38 runs.
            (item,) = await bench.add()
            await bench.until(item, StateType.COMPLETED)


def test_agents_agree_on_the_turns_for_an_item() -> None:
    lives = [Presence.of(holder_called(name), (QUEUE,)) for name in ("box", "bay", "bin")]
    elsewhere = Presence.of(holder_called("other"), ("second",))
    fleets = [Fleet(life.holder.instance) for life in lives]
    for fleet in fleets:
        fleet.note([*lives, elsewhere])
    for item in map(str, range(20)):
        assert sorted(fleet.turn(QUEUE, item) for fleet in fleets) == [0, 1, 2]


async def test_new_items_ask_for_no_cancellations(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "GATHER_SECONDS", 0.01)
    async with idle_agents(bench, 2):
        calls: Counter[str] = Counter()

        async def note(method: str) -> None:
            calls[method] += 1

        bench.server.before_call = note
        for _ in range(3):
            (item,) = await bench.add()
            await bench.until(item, StateType.COMPLETED)
        await polls_stand_still(bench)
        assert calls["list_items"] == 0
