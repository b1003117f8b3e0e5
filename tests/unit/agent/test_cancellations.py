"""Requests to stop: heard of beside the loop's own work, and what a short item costs the server."""

from __future__ import annotations

import asyncio

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Item, ItemChange
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench


async def test_item_is_stopped_though_the_loop_waits_for_a_slow_poll(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=30, max_jobs=2)) as agent:
        await bench.until(item, StateType.RUNNING)
        over = asyncio.Event()

        async def hold_polls(method: str) -> None:
            if method == "poll":
                await over.wait()

        bench.server.before_call = hold_polls
        agent.wake.set()
        await bench.move(item, ItemState.CANCELLING)
        await bench.until(item, StateType.CANCELLED)
        over.set()


async def test_request_that_the_server_has_not_committed_yet_is_confirmed_later(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=30)):
        await bench.until(item, StateType.RUNNING)
        reads = 0

        async def show_old(method: str) -> None:
            nonlocal reads
            if method == "read_item":
                reads += 1
                if reads == 2:
                    await bench.move(item, ItemState.CANCELLING)

        bench.server.before_call = show_old
        _tell(bench, item)
        await bench.until(item, StateType.CANCELLED)


async def test_event_that_comes_to_nothing_stops_nothing(bench: Bench) -> None:
    bench.plays(Script(seconds=0.5))
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=30)):
        await bench.until(item, StateType.RUNNING)
        _tell(bench, item)
        await bench.until(item, StateType.COMPLETED)


async def test_short_item_costs_no_read_of_whose_it_is(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.server.calls["read_states"] == 0


def _tell(bench: Bench, item: Item) -> None:
    """Send an event about an item, as the server does before it commits."""
    for watcher in list(bench.server._store.watchers):
        watcher.notify(ItemChange(str(item.id), QUEUE, StateType.CANCELLING))
