"""What an agent that is gone has left at work, when another one on the same machine attempts its item again."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.core.states import StateType
from prefect_launch.errors import InfrastructureError
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryRunner
from tests.support.bench import QUEUE, RESOURCE, Bench
from tests.unit.agent.test_lost_agents import left_running, watching


async def lost(bench: Bench) -> Item:
    """An item that waits to be attempted again, while its first attempt runs on and its agent is gone."""
    item = await left_running(bench, retries={"delay": 0})
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    return item


async def test_attempt_that_still_runs_here_is_stopped_before_the_next_one_starts(bench: Bench) -> None:
    item = await lost(bench)
    at_start: list[list[str]] = []

    class Seeing(InMemoryRunner):
        async def start(self, handle: str) -> None:
            at_start.append(self.machine.running)
            await super().start(handle)

    await work_off(bench, Seeing(bench.folder, bench.machine))

    assert at_start == [[]]
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.machine.started == [f"launch-{item.id}-1", f"launch-{item.id}-2"]
    assert bench.machine.runs == {}


async def test_next_attempt_is_not_started_when_the_last_one_cannot_be_stopped(bench: Bench) -> None:
    item = await lost(bench)

    class Stuck(InMemoryRunner):
        async def stop(self, handle: str, grace_seconds: float) -> None:
            raise InfrastructureError("it hangs in the kernel")

    await work_off(bench, Stuck(bench.folder, bench.machine))

    found = await bench.read(item.id)
    assert found.state_type is StateType.CRASHED
    assert "hangs in the kernel" in found.message
    assert bench.machine.started == [f"launch-{item.id}-1"]


async def test_run_that_only_has_the_items_label_is_left_alone(bench: Bench) -> None:
    item = await lost(bench)
    own = bench.machine.runs.pop(f"launch-{item.id}-1")
    bench.machine.runs["somebodys"] = own

    await work_off(bench, InMemoryRunner(bench.folder, bench.machine))

    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.machine.running == ["somebodys"]


async def work_off(bench: Bench, runner: Any) -> None:
    settings = {"name": "other", "queues": [QUEUE], "home": bench.folder, "poll_seconds": 0.05}
    agent = LaunchAgent(bench.api, settings, runners={RESOURCE: runner})
    await asyncio.wait_for(agent.loop(until_empty=True), 60)
