"""What wakes an agent: bells, the event stream, and the stream's return after a break."""

from __future__ import annotations

import asyncio
import time

from prefect_launch.agent.polling.events import WakeEvent, listen
from prefect_launch.core.states import StateType
from prefect_launch.server.values import ItemChange
from tests.support.bench import QUEUE, Bench, eventually


async def test_set_event_wakes_at_once_and_is_cleared() -> None:
    wake = WakeEvent()
    wake.set()
    started = time.monotonic()
    await wake.wait(60)
    assert time.monotonic() - started < 30
    await wake.wait(0.05)
    assert time.monotonic() - started >= 0.05


async def test_clock_wakes_when_nobody_sets_the_event() -> None:
    started = time.monotonic()
    await WakeEvent().wait(0.1)
    assert 0.1 <= time.monotonic() - started < 30


async def test_items_that_are_queued_are_heard_of(bench: Bench) -> None:
    heard: list[ItemChange] = []
    pool = await bench.server.read_pool(QUEUE)
    assert pool is not None
    listening = asyncio.create_task(listen(bench.server, [pool.id], heard.append))
    try:
        await _until_heard(heard, ItemChange())
        (item,) = await bench.add()
        await _until_heard(heard, ItemChange(str(item.id), QUEUE, StateType.SCHEDULED, "default", is_new=True))
    finally:
        listening.cancel()


async def test_listening_goes_on_after_the_server_was_away(bench: Bench) -> None:
    heard: list[ItemChange] = []
    pool = await bench.server.read_pool(QUEUE)
    assert pool is not None
    listening = asyncio.create_task(listen(bench.server, [pool.id], heard.append))
    try:
        await _until_heard(heard, ItemChange())
        heard.clear()
        bench.server.down()
        bench.server.up()
        await _until_heard(heard, ItemChange())
        (item,) = await bench.add()
        await _until_heard(heard, ItemChange(str(item.id), QUEUE, StateType.SCHEDULED, "default", is_new=True))
    finally:
        listening.cancel()


async def _until_heard(heard: list[ItemChange], wanted: ItemChange) -> None:
    async def look() -> list[ItemChange]:
        return heard

    await eventually(look, lambda seen: wanted in seen)
