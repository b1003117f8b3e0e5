"""Items that the server has taken and cannot send in a list: an integer beyond 64 bits in them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.agent.item.finish import unsendable_part
from prefect_launch.agent.recovery import unlistable
from prefect_launch.core.states import StateType
from prefect_launch.errors import ServerFailedError
from prefect_launch.server.values import Item, Maker, State
from tests.support.bench import QUEUE, Bench, eventually

HUGE = 2**70


async def plant(bench: Bench, *, later: bool = False, **changes: Any) -> Item:
    """An item with values that our own client refuses."""
    (item,) = await bench.add()
    if later:
        due = datetime.now(timezone.utc) + timedelta(days=3)
        details = {"scheduled_time": due.isoformat()}
        await bench.server.propose(
            item.id, State(type=StateType.SCHEDULED, name="Scheduled", state_details=details), force=True
        )
    stored = bench.server._store.items[item.id]
    wrong = {"parameters": {**item.parameters, "overrides": {"run_config": {"lr": [HUGE, 0.1]}}}}
    stored.item = stored.item.model_copy(update={**wrong, **changes})
    return item


@pytest.mark.parametrize("later", [False, True])
async def test_item_that_cannot_be_listed_fails_and_is_repaired_also_before_it_is_due(
    bench: Bench, later: bool
) -> None:
    item = await plant(bench, later=later)
    (good,) = await bench.add()
    with pytest.raises(ServerFailedError):
        await bench.server.list_items(pool=QUEUE)
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.FAILED)
        await bench.until(good, StateType.COMPLETED)
    assert f"[agent] parameters.overrides.run_config.lr[0] is {HUGE}, which Prefect's server cannot" in failed.message
    assert (await bench.read(item.id)).parameters["overrides"]["run_config"] == {"lr": [str(HUGE), 0.1]}
    assert len(await bench.server.list_items(pool=QUEUE)) == 2


async def test_item_that_comes_while_an_agent_runs_is_found_before_it_is_due(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unlistable, "CHECK_SECONDS", 0.05)
    async with bench.running(bench.agent()):
        await eventually(lambda: bench.server.read_states(uuid4()), lambda _: bench.server.watching == 1)
        await bench.server.update_pool(QUEUE, is_paused=True)  # It is due for a moment: the agent would run it.
        item = await plant(bench, later=True)
        await bench.server.update_pool(QUEUE, is_paused=False)
        await bench.until(item, StateType.FAILED)
    assert len(await bench.server.list_items(pool=QUEUE)) == 1


async def test_item_that_is_due_fails_by_its_claim_and_is_repaired(bench: Bench) -> None:
    async with bench.running(bench.agent()):
        item = await plant(bench, labels={"x": HUGE})
        await bench.until(item, StateType.FAILED)
        await eventually(lambda: bench.read(item.id), lambda found: found.labels["x"] == str(HUGE))
    [listed] = await bench.server.list_items(pool=QUEUE)
    assert listed.labels["x"] == str(HUGE)


async def test_schedule_that_makes_what_cannot_be_listed_is_deactivated(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = Maker(id=uuid4(), type="SCHEDULE")
    first = await plant(bench, later=True, created_by=schedule)
    second = await plant(bench, later=True, created_by=schedule)
    async with bench.running(bench.agent()):
        await bench.until(first, StateType.FAILED)
        await eventually(lambda: bench.read(first.id), lambda found: unsendable_part(found) is None)
    assert bench.server.calls["deactivate_schedule"] == 1
    assert await bench.server.read_item(second.id) is None
    assert f"schedule-deactivated {schedule.id}" in caplog.text
    assert [item.id for item in await bench.server.list_items(pool=QUEUE)] == [first.id]
