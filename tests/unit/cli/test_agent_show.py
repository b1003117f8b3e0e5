"""`agent show`: one agent, as `agent list` knows it, at full length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.errors import NotFoundError
from prefect_launch.queues.agent_status import AgentStatus, RunningItemSummary, post_status
from prefect_launch.testing import InMemoryApi

ITEM = "0198b2a4-0000-7000-8000-000000000001"
Command = Callable[..., Result]


@pytest.fixture
def command() -> Iterator[Command]:
    api = InMemoryApi()
    for queue in ("cpu", "gpu"):
        api.create_run_queue(queue, "local-process")
        api.call(lambda session, queue=queue: session.server.beat_worker(queue, "box", 30))  # type: ignore[misc]
    status = AgentStatus(
        name="box",
        host="vm",
        queues=("cpu", "gpu"),
        slots=2,
        state="running",
        in_work=1,
        running=(RunningItemSummary(id=ITEM, name="train"),),
        waits={ITEM: "Needs 2 GPUs."},
        problems={"local-container": "The engine is down."},
    )
    api.call(lambda session: post_status(session.server, status))
    with use_api(api):
        yield lambda *arguments: CliRunner().invoke(app, ["agent", "show", *arguments], env={"COLUMNS": "80"})


def test_agent_is_shown_with_what_it_runs_and_what_keeps_items_from_it(command: Command) -> None:
    shown = [line.split(maxsplit=1) for line in command("box").output.splitlines()]

    assert ["host", "vm"] in shown
    assert ["queues", "cpu, gpu"] in shown
    assert ["slots", "1/2"] in shown
    assert ["runs", "train (00000001)"] in shown
    assert ["items", "wait  00000001: Needs 2 GPUs."] in shown
    assert ["takes", "none  local-container: The engine is down."] in shown
    assert json.loads(command("box", "--json").output)["in_work"] == 1


def test_agent_that_is_not_there_is_refused_with_the_nearest_name(command: Command) -> None:
    refused = command("bx").exception

    assert isinstance(refused, NotFoundError)
    assert "Did you mean 'box'?" in str(refused)
