"""A queue that is paused, resumed or given another limit: its agents act on the event, not at their next poll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from prefect_launch.agent.polling.events import SECOND_POLL_SECONDS
from prefect_launch.core.states import StateType
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench, eventually

if TYPE_CHECKING:
    from prefect_launch.server.values import Item

#: No poll of its own comes in a test.
POLL_SECONDS = 3600


def calls_of(bench: Bench, name: str) -> Callable[[], Awaitable[int]]:
    """What counts the requests of a kind so far."""

    async def count() -> int:
        return bench.server.calls[name]

    return count


async def has_settled(bench: Bench) -> None:
    """Wait until the agent hears of events, and polls no more."""
    for call in ("watch_settings", "watch_pools", "poll"):
        await eventually(calls_of(bench, call), bool)

    async def is_still() -> bool:
        polls = bench.server.calls["poll"]
        await asyncio.sleep(2 * SECOND_POLL_SECONDS)
        return polls == bench.server.calls["poll"]

    await eventually(is_still, bool)


@asynccontextmanager
async def second_that_waits_for_the_limit(bench: Bench) -> AsyncIterator[Item]:
    """The second item of a queue with a limit of one, while an agent with two slots runs the first."""
    bench.plays(Script(seconds=600))
    await bench.server.update_pool(QUEUE, concurrency_limit=1)
    first, second = await bench.add(2)
    async with bench.running(bench.agent(poll_seconds=POLL_SECONDS, max_jobs=2)):
        await bench.until(first, StateType.RUNNING)
        await has_settled(bench)
        assert await bench.states(second) == ["Queued"]
        yield second


async def test_items_of_a_queue_that_is_resumed_start_at_once(bench: Bench) -> None:
    await bench.server.update_pool(QUEUE, is_paused=True)
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=POLL_SECONDS)):
        await has_settled(bench)
        assert await bench.states(item) == ["Queued"]
        await bench.server.update_pool(QUEUE, is_paused=False)
        await bench.until(item, StateType.COMPLETED)


async def test_place_of_a_limit_that_was_raised_is_taken_at_once(bench: Bench) -> None:
    async with second_that_waits_for_the_limit(bench) as second:
        await bench.server.update_pool(QUEUE, concurrency_limit=2)
        await bench.until(second, StateType.RUNNING)


async def test_limit_that_was_raised_while_the_event_stream_was_away_is_read_once_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.polling.queue_poller.LIMITS_SECONDS", POLL_SECONDS)
    async with second_that_waits_for_the_limit(bench) as second:
        bench.server.down()
        bench.server.up()
        await bench.server.update_pool(QUEUE, concurrency_limit=2)
        await bench.until(second, StateType.RUNNING)
