"""What an agent says at its start about other agents of its queues."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.queues.presence import Presence, write_presence
from tests.support.bench import QUEUE, Bench, eventually, holder_called


async def _started(bench: Bench, agent: LaunchAgent) -> None:
    async with bench.running(agent):
        await eventually(lambda: asyncio.sleep(0, agent.shutdown.at_work), bool)


async def test_second_agent_of_a_queue_says_once_what_that_means_on_sqlite(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with bench.running(bench.agent("first")) as first:
        await eventually(lambda: asyncio.sleep(0, first.shutdown.at_work), bool)
        assert "shared-queue" not in caplog.text
        await _started(bench, bench.agent("second"))
    assert caplog.text.count("shared-queue: other agents take items of gpu too: first.") == 1
    assert caplog.text.count("shared-queue") == 1
    assert "With a server on SQLite, stop this one and raise the other's max_jobs" in caplog.text


async def test_agent_does_not_name_those_of_other_queues_and_those_that_are_gone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone = Presence.of(holder_called("gone"), (QUEUE,))
    for life in (
        Presence.of(holder_called("elsewhere"), ("cpu",)),
        Presence.of(holder_called("left"), (QUEUE,)).leaving(),
        gone.model_copy(update={"at": gone.at - timedelta(hours=1)}),
    ):
        await write_presence(bench.server, life)
    await _started(bench, bench.agent())
    assert "shared-queue" not in caplog.text
