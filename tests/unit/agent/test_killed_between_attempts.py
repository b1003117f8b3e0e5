"""An agent that is killed at any of its calls over an item that comes back: each attempt runs once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefect_launch.core.states import StateType
from prefect_launch.testing import Script
from tests.support.bench import Bench
from tests.unit.agent.test_restart import _BESIDE, _Life


async def test_agent_that_dies_at_any_call_brings_an_item_back_as_its_rule_says(tmp_path: Path) -> None:
    unharmed = await _live(Bench(tmp_path / "unharmed"), None)
    calls = [call for call in unharmed.calls if not call.split()[1].startswith((*_BESIDE, "list_items"))]
    assert {"before record_infrastructure 2", "after create_artifact 1", "before start 2"} <= set(calls)
    for number, call in enumerate(calls):
        await _live(Bench(tmp_path / str(number)), call)


async def _live(bench: Bench, dies_at: str | None) -> _Life:
    """Let an agent run an item twice, or die at one of its calls outside and the next one go on: the end is the
    same."""
    bench.plays(Script(exit_code=3), Script())
    (item,) = await bench.add(retries={"max": 3, "on": ["failed"], "delay": 0})
    life = _Life(bench, dies_at)
    living, died = asyncio.create_task(life.live()), asyncio.create_task(life.died.wait())
    await asyncio.wait({living, died}, return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    if life.died.is_set():
        await life.bury(living)
        await asyncio.wait_for(bench.agent().loop(until_empty=True), 60)
    else:
        await living

    found = await bench.read(item.id)
    told = f"{dies_at}: {await bench.states(item)} {found.message}"
    assert (found.state_type, found.run_count) == (StateType.COMPLETED, 2), told
    assert bench.machine.started == [f"launch-{item.id}-1", f"launch-{item.id}-2"], told
    assert bench.machine.runs == {}, told
    return life
