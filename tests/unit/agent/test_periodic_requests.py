"""What agents ask the server for again and again, while nothing waits, and while their status changes all the time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from prefect_launch.agent.reporting.status import Reporter
from prefect_launch.agent.runner_health import Part
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.queues.presence import Presence
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually
from tests.support.virtual_time import virtual_time

#: Until all agents know each other; between two beats of every period, since what is asked on an edge counts by chance.
SETTLED_SECONDS = 62.5
#: A multiple of all periods.
MINUTES = 5


async def requests_of_idle_agents(bench: Bench, count: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what so many agents ask for in five minutes in which nothing happens."""
    agents = [bench.agent(f"box-{number}", poll_seconds=10) for number in range(count)]
    async with AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(bench.running(agent))
        await eventually(lambda: asyncio.sleep(0, [agent.shutdown.at_work for agent in agents]), all)
        with virtual_time(monkeypatch):
            await asyncio.sleep(SETTLED_SECONDS)
            before = Counter(bench.server.calls)
            await asyncio.sleep(MINUTES * 60)
            return bench.server.calls - before


async def test_idle_agent_makes_45_requests_a_minute(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = await requests_of_idle_agents(bench, 1, monkeypatch)
    assert requests == {
        "poll": 30 + 10,  # for items, and for what cannot be listed
        "count_due": 30 + 20,  # for sweeps, and for wait notes
        "read_variable": 30,  # its drain request
        "beat_worker": 20,
        "write_variable": 10,  # its presence
        "list_variables": 20,  # the presences of others
        "list_workers": 20,
        "read_pool": 12,  # limits
        "list_queues": 12,
        "list_items": 5 + 5,  # requests to stop, and changes, that nobody carries out
    }
    assert requests.total() / MINUTES == pytest.approx(45, abs=0.5)


async def test_four_idle_agents_make_four_times_as_many_but_for_the_wait_notes_of_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await requests_of_idle_agents(bench, 1, monkeypatch)
    four = await requests_of_idle_agents(bench, 4, monkeypatch)
    assert Counter({name: 4 * count for name, count in one.items()}) - four == {"count_due": 3 * 20}
    assert four.total() / MINUTES == pytest.approx(167, abs=0.5)


async def test_status_that_changes_all_the_time_is_written_every_16_seconds_and_one_that_stands_still_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []

    async def note(method: str) -> None:
        if method == "write_variable":
            written.append(time.monotonic())

    bench.server.before_call = note
    async with bench.agent().connected() as agent, OwnedTasks() as tasks:
        health = agent.context.runner_health
        with virtual_time(monkeypatch):
            tasks.start("status", Reporter(agent, Presence.of(agent.holder, (QUEUE,))).post)
            for second in range(80):
                health.mark_down(Part(RESOURCE), f"It is away for {second} s.")
                await asyncio.sleep(1)
            assert [round(after - before) for before, after in pairwise(written)] == [4, 8, 16, 16, 16, 16]
            written.clear()
            await asyncio.sleep(600)
            assert len(written) == 1  # the last change
            health.mark_down(Part(RESOURCE), "It is away for good.")
            await asyncio.sleep(2)
            assert len(written) == 2
