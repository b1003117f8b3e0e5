"""An agent in secure mode: what it runs, what it refuses, and what is said when an item is queued for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_launch import create_job
from prefect_launch.core.states import StateType
from prefect_launch.queues.session import Session
from tests.support.bench import QUEUE, Bench, eventually

LOCKED: list[tuple[dict[str, Any], str]] = [
    ({"resource_args": {"local-container": {"env": {"LD_PRELOAD": "/x.so"}}}}, '"env" in resource_args'),
    ({"overrides": {"working_dir": "../.."}}, 'the "working_dir" override'),
    ({"overrides": {"args": ["--x"]}}, 'the "args" override'),
]


async def test_secure_agent_runs_a_job_with_inputs_and_refuses_everything_else(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(lambda: create_job("busybox:1", "image", name="box", api=bench.api))
    (plain,) = await bench.add(docker={}, job="box", overrides={"run_config": {"lr": 1}}, name="mine", priority=1)
    refused = [(await bench.add(docker={}, job="box", **spec))[0] for spec, _ in LOCKED]
    assert "secure mode" not in caplog.text  # no agent is online to lock anything
    async with bench.running(bench.agent(secure_mode=True)):
        await bench.until(plain, StateType.COMPLETED)
        for item, (_, words) in zip(refused, LOCKED, strict=True):
            failed = await bench.until(item, StateType.FAILED)
            assert f"This agent is configured to lock {words}" in failed.message


async def test_who_queues_is_told_what_all_agents_of_the_queue_lock(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(lambda: create_job("busybox:1", "image", name="box", api=bench.api))
    async with bench.running(bench.agent("fort", secure_mode=True)):

        async def queued() -> str:
            await bench.api.acall(_forget)
            await bench.add(docker={}, job="box", overrides={"args": ["--x"]})
            return caplog.text

        told = await eventually(queued, lambda text: "secure mode" in text)
    assert 'online for the queue gpu (fort) are in secure mode, which locks the "args" override' in told


async def _forget(session: Session) -> None:
    session._online.pop(QUEUE, None)  # else it is half a minute until the agents are read again
