"""What an agent clears away and settles at its start: all of it, and at once."""

from __future__ import annotations

import asyncio

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.item.ownership import items_in_work
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, holder_called


async def test_runs_that_are_slow_to_stop_are_stopped_at_once_and_keep_no_other_waiting(bench: Bench) -> None:
    bench.plays(Script(seconds=60), Script(seconds=60), Script(seconds=60))
    *ended, kept = await bench.add(3)
    await bench.leave_running(bench.agent(max_jobs=3), *ended, kept)
    for item in ended:
        await bench.server.propose(item.id, State.of(ItemState.CRASHED), force=True)
    stopping: list[str] = []
    both = asyncio.Event()

    class Slow(InMemoryRunner):
        async def stop(self, handle: str, grace_seconds: float) -> None:
            stopping.append(handle)
            if len(stopping) == len(ended):
                both.set()
            await both.wait()
            await super().stop(handle, grace_seconds)

    settings = {"name": "box", "queues": [QUEUE], "home": bench.folder, "poll_seconds": 0.05, "max_jobs": 3}
    agent = LaunchAgent(bench.api, settings, runners={RESOURCE: Slow(bench.folder, bench.machine)})
    await asyncio.wait_for(agent.loop(max_runtime_seconds=0.5), 60)

    assert sorted(stopping) == sorted(f"launch-{item.id}-1" for item in ended)
    assert list(bench.machine.runs) == [f"launch-{kept.id}-1"]


async def test_item_that_is_deleted_while_it_is_settled_keeps_no_agent_from_its_start(bench: Bench) -> None:
    agent = bench.agent()
    other, gone = await bench.add(2)
    for item in (gone, other):
        await bench.server.propose(item.id, agent.holder.claimed_state())
    deleted: list[Item] = []

    async def delete_first(method: str) -> None:
        if method == "propose" and not deleted:
            deleted.append(gone)
            await bench.server.delete_item(gone.id)

    bench.server.before_call = delete_first
    await asyncio.wait_for(agent.loop(until_empty=True), 60)
    assert deleted
    assert (await bench.read(other.id)).state_type is StateType.COMPLETED


async def test_items_in_work_are_listed_beyond_one_page(bench: Bench) -> None:
    items = await bench.add(205)
    for item in items:
        await bench.server.propose(item.id, holder_called("box").claimed_state())
    assert {item.id for item in await items_in_work(bench.server, QUEUE)} == {item.id for item in items}
