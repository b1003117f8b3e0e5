"""Polls after events: none for an item behind those that are known; a second one when the first came too early."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.server.values import ItemChange
from tests.support.bench import QUEUE, Bench, eventually

#: Nothing is polled for that long but after an event.
LONG_SECONDS = 60.0
SECOND_SECONDS = 0.05


@asynccontextmanager
async def idle_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Run an agent that has polled, and polls only after an event from here on."""
    monkeypatch.setattr("prefect_launch.agent.polling.new_items.SECOND_POLL_SECONDS", LONG_SECONDS)
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS)):
        (first,) = await bench.add()
        await bench.until(first, StateType.COMPLETED)
        monkeypatch.setattr("prefect_launch.agent.polling.new_items.SECOND_POLL_SECONDS", SECOND_SECONDS)
        yield


async def test_item_that_the_first_poll_shows_costs_no_second_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with idle_agent(bench, monkeypatch):
        before = bench.server.calls["poll"]
        (item,) = await bench.add()
        await bench.until(item, StateType.COMPLETED)
        # Timers fire in the order of their times: that of a second poll would have, once this one has.
        await asyncio.sleep(2 * SECOND_SECONDS)
        assert bench.server.calls["poll"] == before + 1


async def test_busy_agent_polls_far_less_than_once_for_each_item_that_is_added_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.polling.candidates.SURE_SECONDS", LONG_SECONDS)
    items = await bench.add(16)
    async with bench.running(bench.agent(poll_seconds=LONG_SECONDS, max_jobs=1)):
        for number in range(16):
            await bench.until(items[number], StateType.COMPLETED)
            items += await bench.add()
        await bench.until(items[-1], StateType.COMPLETED)
        # One for the first sixteen, one for the others, and a few for those that came last, when none was left.
        assert bench.server.calls["poll"] <= 6


async def test_item_that_no_poll_shows_yet_is_asked_for_a_second_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with idle_agent(bench, monkeypatch):
        before = bench.server.calls["poll"]
        for watcher in list(bench.server._store.watchers):
            # As of an item that is not committed yet.
            watcher.notify(ItemChange(str(uuid.uuid4()), QUEUE, StateType.SCHEDULED))

        async def polls() -> int:
            return bench.server.calls["poll"] - before

        assert await eventually(polls, lambda count: count >= 2) == 2
