"""An agent and the limits of a queue: what comes to it past the queue's own check ends with the same words."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, RESOURCE, Bench

LIMITED: dict[str, Any] = {
    "env": {"LEVEL": "1"},
    "volume": "/data/{{team}}:/data",
    "limits": {"memory": "1g", "timeout": "1h"},
}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"resource_args": {RESOURCE: {"memory": "2g"}}}, "option 'memory' is '2g', and at most '1g' is allowed"),
        ({"resource_args": {RESOURCE: {"env": {"LEVEL": "2"}}}}, "option 'env.LEVEL' is set by the queue"),
        ({"timeout": "2h"}, "The timeout is 2 h, and at most 1 h is allowed on this queue."),
        ({"template_variables": {"team": ".."}}, "Template variable 'team' cannot be '..'"),
    ],
)
async def test_item_that_asks_for_too_much_fails_before_anything_is_made(
    bench: Bench, asked: dict[str, Any], words: str
) -> None:
    team = {"team": {"type": "string", "default": "vision"}}
    await asyncio.to_thread(bench.api.upsert_run_queue, QUEUE, RESOURCE, template_variables=team)
    (item,) = await bench.add(**asked)
    # As if it had come from a form: the queue that took it had other rules.
    await asyncio.to_thread(
        lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, config=LIMITED, template_variables=team)
    )
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.FAILED)
    assert failed.message.startswith("[agent] ")
    assert words.lower() in failed.message.lower()
    assert bench.machine.runs == {}
    assert not (bench.folder / "runs").exists()


async def test_run_gets_the_limits_where_it_would_have_none(bench: Bench) -> None:
    await asyncio.to_thread(lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, config={"limits": LIMITED["limits"]}))
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
        (run,) = bench.machine.runs.values()
        assert (run.plan.options, run.plan.timeout) == ({"memory": "1g"}, 3600)
