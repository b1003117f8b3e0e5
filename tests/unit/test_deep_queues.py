"""Requests that a call makes beside few and many waiting items: the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from prefect_launch.agent.polling.candidates import Candidates
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.agent.reporting.wait_notes import WaitReasonLogger
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import alaunch_add
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing.server_store import StoredItem
from tests.support.bench import QUEUE, RESOURCE, Bench, holder_called

SHALLOW = 100
DEEP = 10_000
APART = timedelta(milliseconds=1)


async def _fill(bench: Bench, depth: int) -> UUID:
    """Put items on the queue, as copies of the first, and return the last one in line."""
    (first,) = await bench.add()
    assert first.next_scheduled_start_time is not None
    due = first.next_scheduled_start_time - depth * APART
    stored = bench.server._store.items
    for number in range(depth - 1):
        each = due + number * APART
        changes = {
            "id": uuid4(),
            "idempotency_key": f"copy-{number}",
            "next_scheduled_start_time": each,
            "state": State.of(ItemState.QUEUED).model_copy(
                update={"state_details": {"scheduled_time": each.isoformat()}}
            ),
        }
        copy = first.model_copy(update=changes)
        stored[copy.id] = StoredItem(copy, stored[first.id].flow)
    return first.id


async def _add(bench: Bench, last: UUID) -> None:
    with use_api(bench.api):
        await alaunch_add(docker_image="busybox:1", queue_name=QUEUE)


async def _claim(bench: Bench, last: UUID) -> None:
    async with bench.api.open() as session:
        poller = QueuePoller(Session(bench.server, session.jobs, session.digest_cache), [QUEUE], holder_called("box"))
        assert await poller.pop(QUEUE) is not None


async def _poll_idle(bench: Bench, last: UUID) -> None:
    await asyncio.to_thread(bench.api.create_run_queue, "empty", RESOURCE)
    assert await Candidates(bench.server, "empty", ahead_seconds=30.0).next(slots=1, skip=()) is None


async def _pop_scheduler(bench: Bench, last: UUID) -> None:
    async with bench.api.open() as session:
        assert await QueuePoller(session, [QUEUE], holder_called("box")).pop_scheduler() is None


async def _look_for_wait_notes(bench: Bench, last: UUID) -> None:
    async with bench.api.open() as session:
        await WaitReasonLogger(session, [QUEUE]).check(QUEUE)


def _command(*arguments: str) -> Callable[[Bench, UUID], Awaitable[None]]:
    async def call(bench: Bench, last: UUID) -> None:
        def invoke() -> None:
            with use_api(bench.api):
                done = CliRunner().invoke(app, [one.format(last=last) for one in arguments])
            assert done.exit_code == 0, done.output

        await asyncio.to_thread(invoke)

    return call


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(_add, id="add"),
        pytest.param(_claim, id="claim"),
        pytest.param(_poll_idle, id="idle poll"),
        pytest.param(_command("item", "show", "{last}"), id="item show with place"),
        pytest.param(_command("item", "list", "-q", QUEUE), id="item list"),
        pytest.param(_command("queue", "show", QUEUE), id="queue show"),
    ],
)
async def test_call_makes_as_many_requests_beside_ten_thousand_items_as_beside_a_hundred(
    tmp_path: Path, call: Callable[[Bench, UUID], Awaitable[None]]
) -> None:
    requests = []
    for depth in (SHALLOW, DEEP):
        bench = Bench(tmp_path / str(depth))
        last = await _fill(bench, depth)
        before = Counter(bench.server.calls)
        await call(bench, last)
        requests.append(Counter(bench.server.calls) - before)
    assert requests[0] == requests[1]
    assert requests[0]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(_command("item", "show", "{last}"), id="item show with place"),
        pytest.param(_command("queue", "show", QUEUE), id="queue show"),
        pytest.param(_pop_scheduler, id="an agent's look for sweeps"),
        pytest.param(_look_for_wait_notes, id="an agent's look for wait notes"),
    ],
)
async def test_what_waits_is_counted_by_its_due_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Bench, UUID], Awaitable[None]]
) -> None:
    bench = Bench(tmp_path)
    last = await _fill(bench, SHALLOW)
    server, counted = type(bench.server), list[StateType]()
    count_items = server.count_items

    async def count(self: Any, **wanted: Any) -> int:
        counted.extend(wanted.get("state_types") or ())
        return await count_items(self, **wanted)

    monkeypatch.setattr(server, "count_items", count)
    await call(bench, last)
    assert StateType.SCHEDULED not in counted
    assert bench.server.calls["count_due"] > 0
