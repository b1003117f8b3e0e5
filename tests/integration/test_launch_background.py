"""`launch(synchronous=False)`: the call returns, and the run is followed to its end, as Prefect's client sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import docker
import pytest
from prefect import flow
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType

from prefect_launch import AbstractRun, alaunch, launch
from prefect_launch.errors import NotFoundError
from prefect_launch.runners.base import Labels
from tests.support.live import Site, prefect_client
from tests.support.prefect_server import warm_prefect
from tests.support.processes import ChildProcess

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

PROGRAM = """
import asyncio, signal, time

import anyio
from contextlib import suppress
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.states import Cancelling
from prefect_launch import Api, alaunch, launch

api, folder = Api(entity="acme", project="tests"), Path({folder!r})
given = dict({given!r}, synchronous=False)

def plain():
    launch(api, **given)

def plain_deaf():
    launch(api, **given)
    deaf()

def deaf():
    # Other threads still get a SIGINT, which does not wake this one, as one that comes just before it blocks does not.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

@flow(name={inner!r})
def inner():
    launch(api, **given)

@flow(name={outer!r})
def sync_flow():
    inner()
    (folder / "went on").touch()

@flow(name={inner!r})
async def awaited():
    await alaunch(api, **given)

def async_flow():
    asyncio.run(awaited())

@flow(name={inner!r})
async def awaited_and_deaf():
    await alaunch(api, **given)
    deaf()

def async_flow_deaf():
    asyncio.run(awaited_and_deaf())

@flow(name={inner!r})
def sync_flow_at_work():
    launch(api, **given)
    (folder / "returned").write_text("now")
    time.sleep(60)

async def works():
    await alaunch(api, **given)
    await anyio.to_thread.run_sync(str)  # The loop's end must see to the end of this thread.
    (folder / "returned").write_text("now")
    try:
        await asyncio.sleep(60)
    finally:
        (folder / "interrupted").write_text("now")
        await asyncio.sleep(1)

def async_at_work():
    asyncio.run(works())

@flow(name={inner!r})
def cancelled():
    launch(api, **given)
    own = FlowRunContext.get().flow_run.id
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(own, Cancelling())
    raise Abort  # It calls no hook, as the cancelling of a deployment's run does not.

def cut_off():
    with suppress(Abort):
        cancelled()

{call}
(folder / "returned").write_text("now")
{then}
"""


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A queue and a job of its name, to be made."""
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    return Site(prefect_server.api_url, tmp_path, unique)


def program(site: Site, call: str = "plain", *, then: str = "", **given: object) -> ChildProcess:
    """Start a program that launches the site's job, or what is given, and does not wait for it."""
    names = {"inner": f"inner-{site.name}", "outer": f"outer-{site.name}"}
    given = given or {"job": site.name, "config": {"retries": {"max": 1, "on": "failed", "delay": 0}}}
    text = PROGRAM.format(folder=str(site.folder), given=given, call=f"{call}()", then=then, **names)
    environment = {**os.environ, "PREFECT_API_URL": site.api_url, "PREFECT_LAUNCH_HOME": str(site.folder / "home")}
    log = site.folder / "program.log"
    process = warm_prefect().start(["-c", text], cwd=Path.cwd(), environment=environment, out=log)
    return ChildProcess.forked(process, log)


def until_it_waits(process: ChildProcess) -> None:
    process.wait_until(lambda: "Waiting for the end of what launch has started" in process.log.read_text(), 60)


def flow_ends(name: str) -> list[StateType | None]:
    """Types of the states that the runs of a flow are in."""
    with prefect_client() as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter.model_validate({"name": {"any_": [name]}}))
    return [run.state_type for run in runs]


def until_written(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} is not written"
        time.sleep(0.05)
    return path.read_text().strip()


def subflows(parent: str) -> list[UUID]:
    """Ids of the flow runs that a flow run has started, in their order."""
    wanted = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [parent]}})
    with prefect_client() as client:
        found = client.read_flow_runs(flow_run_filter=wanted)
    return [run.id for run in sorted(found, key=lambda run: run.created or datetime.min)]


def containers_of(flow_run_id: UUID) -> list[object]:
    return list(docker.from_env().containers.list(all=True, filters={"label": f"{Labels.ITEM}={flow_run_id}"}))


def end_of(flow_run_id: object) -> tuple[StateType, str]:
    """Type and message of the state that a flow run is in."""
    with prefect_client() as client:
        state = client.read_flow_run(flow_run_id).state  # type: ignore[arg-type]
    assert state is not None
    return state.type, state.message or ""


def test_process_that_does_not_wait_blocks_at_its_exit_until_its_run_has_ended(site: Site) -> None:
    item = site.folder / "item"
    site.job(f'echo "$LAUNCH_ITEM_ID" > {item}; sleep 2; echo "late $LAUNCH_ATTEMPT"; exit $((8 + LAUNCH_ATTEMPT))')
    process = program(site)
    run = site.api.queued_run(until_written(item))
    until_written(site.folder / "returned")
    assert end_of(run.id)[0] is StateType.RUNNING
    assert process.wait(60) == 0
    state, message = end_of(run.id)
    assert state is StateType.FAILED
    assert "with exit code 10." in message
    assert site.log(run) == "late 1\nlate 2"
    assert process.log.read_text().count("late 2") == 1
    assert "after shutdown" not in process.log.read_text()  # Prefect's own services have not ended before the run.
    assert any(artifact.key.startswith("failure-report-") for artifact in site.artifacts(run))


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("call", "sent", "code"),
    [
        ("plain", [TERM], -TERM),
        ("plain", [INT, INT], -INT),
        ("plain_deaf", [INT], 128 + INT),
        ("sync_flow", [TERM], 128 + TERM),
        ("sync_flow", [INT, INT], -INT),
        ("async_flow", [TERM, TERM], 128 + TERM),
        ("async_flow", [INT, INT], -INT),
        ("async_flow_deaf", [INT], -INT),
        ("sync_flow_at_work", [TERM], 128 + TERM),
        ("async_at_work", [TERM, TERM], 128 + TERM),
        ("cut_off", [], 0),
    ],
)
def test_interrupted_process_ends_the_run_that_it_started(
    site: Site, call: str, sent: list[signal.Signals], code: int
) -> None:
    item = site.folder / "item"
    site.job(f'trap "echo caught; exit 3" TERM; echo "$LAUNCH_ITEM_ID" > {item}; sleep 60 & wait')
    process = program(site, call)
    run_id = until_written(item)
    if call in ("sync_flow_at_work", "async_at_work", "cut_off"):
        until_written(site.folder / "returned")
    else:
        until_it_waits(process)
    for number in sent:
        os.kill(process.pid, number)
        if call == "async_at_work":
            until_written(site.folder / "interrupted")  # The second one comes while the loop ends.
    assert process.wait(120) == code, process.tail()
    state, message = end_of(run_id)
    assert state is StateType.CANCELLED, process.tail()
    assert "exit code 3" in message
    assert site.log(site.api.queued_run(run_id)) == "caught"
    assert "after shutdown" not in process.log.read_text()
    assert not (site.folder / "went on").exists()
    inner = {
        "plain": [],
        "plain_deaf": [],
        "async_at_work": [],
        "sync_flow_at_work": [StateType.CRASHED],
        "cut_off": [StateType.CANCELLING],
    }
    assert flow_ends(f"inner-{site.name}") == inner.get(call, [StateType.COMPLETED])
    assert flow_ends(f"outer-{site.name}") == ([StateType.CRASHED] if call == "sync_flow" else [])


@pytest.mark.engine
def test_interrupted_flow_ends_and_removes_the_container_that_it_started(site: Site, shell_image: str) -> None:
    command = ["sh", "-c", "trap 'exit 3' TERM; sleep 60 & wait"]
    process = program(site, "async_flow", docker_image=shell_image, entry_point=command, run_id=site.name)
    until_it_waits(process)
    named = {"label": f"{Labels.RUN_ID}={site.name}"}
    (container,) = docker.from_env().containers.list(filters=named)
    os.kill(process.pid, INT)
    assert process.wait(60) == -INT, process.tail()
    assert end_of(UUID(container.labels[Labels.ITEM]))[0] is StateType.CANCELLED, process.tail()
    assert not docker.from_env().containers.list(all=True, filters=named)


@pytest.mark.engine
def test_sync_flow_waits_for_the_container_that_it_started(site: Site, shell_image: str) -> None:
    told: list[AbstractRun] = []

    @flow
    def parent() -> str:
        from prefect.context import get_run_context

        command = ["sh", "-c", "sleep 1; echo inside; exit 7"]
        told.append(launch(site.api, docker_image=shell_image, entry_point=command, synchronous=False))
        assert told[0].get_status_sync() == "running"
        return str(get_run_context().flow_run.id)  # type: ignore[union-attr]

    (child,) = subflows(parent())
    assert told[0].status == "failed"
    assert told[0].wait_sync() is False
    state, message = end_of(child)
    assert (state, "with exit code 7." in message) == (StateType.FAILED, True)
    assert site.log(site.api.queued_run(child)) == "inside"
    assert not containers_of(child)


async def test_async_flow_waits_for_a_run_and_can_cancel_another(site: Site) -> None:
    site.job('sleep "$1"; echo "slept $1"')

    @flow
    async def parent() -> str:
        from prefect.context import get_run_context

        _, long = [
            await alaunch(site.api, job=site.name, config={"overrides": {"args": [seconds]}}, synchronous=False)
            for seconds in ("1", "60")
        ]
        await long.cancel()
        assert long.status == "stopped"
        assert await long.wait() is False
        return str(get_run_context().flow_run.id)  # type: ignore[union-attr]

    children = await asyncio.to_thread(subflows, await parent())
    ends = [await asyncio.to_thread(end_of, child) for child in children]
    assert [state for state, _ in ends] == [StateType.COMPLETED, StateType.CANCELLED]
    assert "with exit code 0." in ends[0][1]


def test_run_that_cannot_start_is_told_to_its_caller(site: Site) -> None:
    with pytest.raises(NotFoundError, match="Unknown job"):
        launch(site.api, job="no-such-job", synchronous=False)
