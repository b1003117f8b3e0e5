"""When an agent that runs until its queues are empty is done: what is due or comes back is waited for, nothing else."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

from prefect_launch.core.states import StateType
from prefect_launch.server.values import State
from tests.support.bench import Bench


async def test_item_that_a_schedule_has_planned_for_later_is_not_waited_for(bench: Bench) -> None:
    now, later = await bench.add(2)
    await bench.server.propose(later.id, _due_in(timedelta(days=1), "Scheduled"))
    await asyncio.wait_for(bench.agent().loop(until_empty=True), 60)
    assert (await bench.states(now))[-1] == "Completed"
    assert (await bench.states(later))[-1] == "Scheduled"


async def test_item_that_comes_back_is_waited_for(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.server.propose(item.id, _due_in(timedelta(seconds=0.5), "AwaitingRetry"))
    await asyncio.wait_for(bench.agent(poll_seconds=0.1).loop(until_empty=True), 60)
    assert (await bench.states(item))[-1] == "Completed"


def _due_in(pause: timedelta, name: str) -> State:
    due = (datetime.now(timezone.utc) + pause).isoformat()
    return State(type=StateType.SCHEDULED, name=name, state_details={"scheduled_time": due})
