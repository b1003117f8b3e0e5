"""The live screen: what it shows, and that a pipe gets it once."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from rich.console import Console
from typer.testing import CliRunner

from prefect_launch.cli.main import app
from prefect_launch.cli.top import Overview, read_overview, screen
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import ItemState
from prefect_launch.queues.agent_status import AgentInfo
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    api.create_run_queue("gpu", "local-container", concurrency=8)
    image = {"docker": {"docker_image": "busybox:1"}}
    runs = launch_add_many([{**image, "name": f"run-{number}"} for number in range(6)], "gpu", api=api)

    async def start(session: Session) -> None:
        for run in runs[:5]:
            await session.server.propose(UUID(run.id), State.of(ItemState.CLAIMED))
            await session.server.propose(UUID(run.id), State.of(ItemState.RUNNING, "On box."))

    api.call(start)
    with use_api(api):
        yield api


def drawn(overview: Overview, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height)
    with console.capture() as captured:
        console.print(screen(overview, width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_pipe_gets_queues_agents_and_active_runs_once(api: InMemoryApi) -> None:
    shown = CliRunner().invoke(app, ["top"], env={"COLUMNS": "120"}).stdout.splitlines()

    assert shown[1].split() == ["gpu", "local-container", "open", "1", "5", "8", "0"]
    assert "There is no agent." in shown
    assert [line.split()[1] for line in shown[-5:]] == [f"run-{number}" for number in (4, 3, 2, 1, 0)]
    assert shown[-1].endswith("On box.")


def test_screen_shows_who_holds_the_devices_and_as_many_runs_as_fit(api: InMemoryApi) -> None:
    overview = read_overview(api)
    agent = AgentInfo(
        name="box", host="box", queues=("gpu",), slots=8, state="running", devices="GPU 0: run-4, GPU 1: -"
    )
    busy = Overview(overview.queues, [agent], overview.runs)

    tall, low = drawn(busy, 110, 40), drawn(busy, 110, 13)

    assert "box: GPU 0: run-4, GPU 1: -" in tall
    assert sum("On box." in line for line in tall) == 5
    assert sum("On box." in line for line in low) == 2
    assert len(low) <= 13
    assert low[-1] == "… and 3 more"
    assert all(len(line) <= 110 for line in tall)


def test_screen_without_a_server_says_so(api: InMemoryApi) -> None:
    from prefect_launch.cli.top import _shown

    api.server.down()

    assert "does not answer" in str(_shown(api, Console()))
