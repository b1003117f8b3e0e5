"""The live screen: what it shows, and that a pipe gets it once."""

from __future__ import annotations

import json
import re
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
from prefect_launch.queues.agent_status import AgentInfo, AgentStatus, RunningItemSummary, post_status
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi

GIB = 1024**3


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


def tell(api: InMemoryApi, number: int, **usage: float) -> None:
    """Tell what a run uses, as its agent does."""
    (item,) = api.read_items(names=[f"run-{number}"])
    running = (RunningItemSummary(id=str(item.id), name=item.name, usage=usage),)
    api.call(lambda session: post_status(session.server, AgentStatus(name="box", running=running)))


def test_screen_shows_what_runs_use_where_their_agent_tells_it(api: InMemoryApi) -> None:
    columns = next(line for line in drawn(read_overview(api), 130, 40) if "PRIO" in line)
    assert "CPUS" not in columns

    tell(api, 3, cpus=1.94, memory=3 * GIB, cpus_asked=4, memory_asked_bytes=8 * GIB)
    shown = drawn(read_overview(api), 130, 40)

    assert any(re.search(r" TOOK +CPUS +MEMORY +MESSAGE$", line) for line in shown)
    (line,) = (line for line in shown if "run-3" in line and "On box." in line)
    assert re.search(r" 1\.9 +3\.0 GiB +On box\.$", line)


def test_item_top_shows_what_an_item_uses_once_in_a_pipe(api: InMemoryApi) -> None:
    tell(api, 2, cpus=0.3, memory=GIB, gpu=87, **{"gpu memory": 20 * GIB})

    done = CliRunner().invoke(app, ["item", "top", "run-2", "run-5", "run-3"], env={"COLUMNS": "120"})

    head, first, second, _ = done.stdout.splitlines()
    assert head.split() == ["ID", "NAME", "STATE", "TOOK", "CPUS", "MEMORY", "GPU", "GPU", "MEMORY"]
    assert first.split()[1:3] == ["run-2", "running"]
    assert first.endswith("0.3  1.0 GiB  87 %    20.0 GiB")
    assert second.split()[1:] == ["run-5", "queued"]
    queued, running = done.stderr.splitlines()
    assert re.fullmatch(r"run-5 \(\w+\): it has not started\. 'prefect-launch item show \w+' says why\.", queued)
    assert running.startswith("run-3 (")
    assert "no sample of what it uses is there" in running
    told = CliRunner().invoke(app, ["item", "top", "run-2", "--json"]).stdout
    assert json.loads(told)[0]["usage"]["gpu"] == 87


def test_item_top_of_an_ended_item_shows_its_totals(api: InMemoryApi) -> None:
    (item,) = api.read_items(names=["run-0"])
    totals = {"mean_cpus": 1.5, "peak_memory_bytes": GIB, "cpus_asked": 2}
    ended = State.of(ItemState.COMPLETED).model_copy(update={"data": {"exit_code": 0, "usage": totals}})
    api.call(lambda session: session.server.propose(item.id, ended))

    shown = CliRunner().invoke(app, ["item", "top", "run-0"], env={"COLUMNS": "120"}).stdout.splitlines()

    assert shown[1].split()[2] == "completed"
    assert shown[1].endswith("1.5 of 2  1.0 GiB")
    assert "used      1.0 GiB of memory at most, 1.5 of 2 CPUs on average" in (
        CliRunner().invoke(app, ["item", "show", "run-0"], env={"COLUMNS": "120"}).stdout
    )


def test_item_top_says_which_resource_does_not_tell_what_its_runs_use(api: InMemoryApi) -> None:
    api.create_run_queue("pods", "kubernetes")
    launch_add_many([{"docker": {"docker_image": "busybox:1"}, "name": "pod"}], "pods", api=api)

    done = CliRunner().invoke(app, ["item", "top", "pod"])

    assert "pod (" in done.stderr
    assert "the resource 'kubernetes' does not tell what its runs use." in done.stderr


def test_screen_without_a_server_says_so(api: InMemoryApi) -> None:
    from prefect_launch.cli.top import _shown

    api.server.down()

    assert "does not answer" in str(_shown(api, Console()))
