"""Checks of whose the items in work are: how long one is good for, and items whose end is being written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_launch.agent.item import ownership
from prefect_launch.agent.item.ownership import check_ownership
from prefect_launch.core.states import StateType
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import Bench, eventually


async def test_item_that_was_listed_before_a_slow_read_is_not_taken_for_seen_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.plays(Script(seconds=600))
    first, second = await bench.add(2)
    time = 1_000.0
    monkeypatch.setattr(ownership, "now", lambda: time)

    async def slow(method: str) -> None:
        nonlocal time
        if method == "read_states":
            time += 600.0

    async with bench.running(bench.agent(max_jobs=2)) as agent:
        for item in (first, second):
            await bench.until(item, StateType.RUNNING)
        moved, unmoved = agent.running_items.entries
        await check_ownership(bench.server, [moved, unmoved])
        moved.held_in = None
        bench.server.before_call = slow
        listed_at = time
        await check_ownership(bench.server, [moved, unmoved])
        bench.server.before_call = None
        assert time > listed_at
        assert unmoved.held_at == listed_at
        bench.machine.finish()
        for item in (first, second):
            await bench.until(item, StateType.COMPLETED)


async def test_item_whose_run_is_still_being_removed_is_not_taken_for_another_agents(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    removing, may_go_on = asyncio.Event(), asyncio.Event()
    remove = InMemoryRunner.remove

    async def held(self: InMemoryRunner, handle: str) -> None:
        removing.set()
        await may_go_on.wait()
        await remove(self, handle)

    monkeypatch.setattr(InMemoryRunner, "remove", held)
    (item,) = await bench.add()
    async with bench.running(bench.agent()) as agent:
        await asyncio.wait_for(removing.wait(), 60)
        assert (await bench.read(item.id)).state_type is StateType.COMPLETED
        (entry,) = agent.running_items.entries
        await check_ownership(bench.server, [entry])
        assert not entry.stop.is_set()
        may_go_on.set()

        async def left() -> Any:
            return agent.running_items.entries

        await eventually(left, lambda entries: not entries)
    assert "ownership-lost" not in caplog.text
