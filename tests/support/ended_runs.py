"""Runs that have ended with results, on an in-memory server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect_launch.client.api import use_api
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.metrics import Metrics, Series
from prefect_launch.core.states import ItemState
from prefect_launch.queues.session import Session
from prefect_launch.server.metrics import write_metrics
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi


def queues() -> Iterator[InMemoryApi]:
    """The Api of calls that name none, with two queues; a fixture."""
    api = InMemoryApi()
    for queue in ("gpu", "other"):
        api.create_run_queue(queue, "local-container")
    with use_api(api):
        yield api


def end(api: InMemoryApi, run: QueuedRun, folder: Path, outputs: dict[str, Any], loss: float) -> None:
    """Let a run start and complete, with results and a metric."""
    folder.mkdir()
    (folder / "outputs.json").write_text(json.dumps(outputs))

    async def call(session: Session) -> None:
        item = UUID(run.id)
        for state in (ItemState.CLAIMED, ItemState.RUNNING):
            assert (await session.server.propose(item, State.of(state))).accepted
        series = Series()
        series.add(1, loss)
        await write_metrics(session.server, item, Metrics(1, {"loss": series}))
        await session.jobs.put_outputs(run.id, 1, folder)
        assert (await session.server.propose(item, State.of(ItemState.COMPLETED))).accepted

    api.call(call)
