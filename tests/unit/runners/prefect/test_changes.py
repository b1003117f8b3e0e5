"""Changes of child flow runs, as the server's events tell of them, before it has committed them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.runners.remote.jobs import JobChange
from prefect_launch.runners.remote.prefect import runner as prefect_runner
from prefect_launch.server.values import State
from tests.unit.runners.prefect.test_wrapper import LIMIT_SECONDS, child_of, start
from tests.unit.runners.prefect.world import PrefectWorld


def changes_of(runner: prefect_runner.PrefectRunner) -> AsyncGenerator[JobChange, None]:
    return cast("AsyncGenerator[JobChange, None]", runner.changes())


async def test_many_changes_at_once_are_told_with_no_pause_between_them(
    world: PrefectWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_runner, "_COMMIT_SECONDS", 2 * LIMIT_SECONDS)
    world.fill()
    runner = world.runner()
    children = [child_of(await start(runner, world.plan("echo never"))) for _ in range(5)]
    async with aclosing(changes_of(runner)) as changes:
        assert (await anext(changes)).handle is None
        for child in children:
            await world.server.propose(child, State(type=StateType.PENDING, name="Submitting"))
        told = [await asyncio.wait_for(anext(changes), LIMIT_SECONDS) for _ in children]
    assert [change.handle for change in told] == [str(child) for child in children]


async def test_change_is_looked_at_again_once_the_server_has_committed_it(
    world: PrefectWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill()
    runner, looked = world.runner(), asyncio.Event()
    child = child_of(await start(runner, world.plan("echo never")))
    monkeypatch.setattr(runner._part(str(child)).poller, "wake", looked.set)
    async with aclosing(changes_of(runner)) as changes:
        await anext(changes)
        await world.server.propose(child, State(type=StateType.PENDING, name="Submitting"))
        assert (await anext(changes)).handle == str(child)
        assert not looked.is_set()
        again = asyncio.ensure_future(anext(changes))
        await asyncio.wait_for(looked.wait(), LIMIT_SECONDS)
        again.cancel()
        await asyncio.wait({again})
