"""Sweeps begun by flows, on a real server with a real agent: subflows, retries of the flow, and interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.context import FlowRunContext

from prefect_launch import Sweep, asweep, sweep
from prefect_launch.client.api import use_api
from tests.support.live import DEADLINE_SECONDS, Site, until
from tests.support.prefect_server import warm_prefect
from tests.support.processes import ChildProcess

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

QUICK = 'eval "$1"; echo "{\\"loss\\": $x}" > "$LAUNCH_OUTPUT_DIR/outputs.json"'
SLOW = "sleep 600"
CONFIG: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "loss"},
    "parameters": {"x": {"values": [2, 1, 3]}},
    "args": "no_hyphens",
}
# Begins a sweep in a flow, which then waits for it as the first argument says.
PROGRAM = """
import asyncio, sys
from prefect import flow
from prefect_launch import asweep, sweep

@flow
def waits():
    print("sweep", (begun := sweep({config!r}, queue={name!r}, job={name!r}, num_workers=2)).id, flush=True)
    begun.wait()

@flow
async def ends():
    print("sweep", (await asweep({config!r}, queue={name!r}, job={name!r}, num_workers=2)).id, flush=True)

waits() if sys.argv[1] == "waits" else asyncio.run(ends())
"""


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Iterator[Site]:
    """A queue of its name, which sweeps of this process use."""
    site = Site(prefect_server.api_url, tmp_path, unique)
    with use_api(site.api):
        yield site


def subflows(parent: str) -> list[str]:
    """Ids of the flow runs that a flow run has started."""
    wanted = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [parent]}})
    with get_client(sync_client=True) as client:
        return [str(run.id) for run in client.read_flow_runs(flow_run_filter=wanted)]


def own_id() -> str:
    """Id of the flow run around the call."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return str(context.flow_run.id)


def test_sweep_of_a_sync_and_of_an_async_flow_is_a_subflow_that_a_retry_goes_on_with(site: Site) -> None:
    given: dict[str, Any] = {"queue": site.name, "job": site.job(QUICK), "num_workers": 2}
    begun: dict[str, list[str]] = {"sync": [], "async": [], "queued": []}
    idle = Site(site.api_url, site.folder, f"{site.name}-idle").name

    @flow(retries=1)
    def sync_parent() -> tuple[str, int]:
        begun["queued"].append(sweep(CONFIG, **{**given, "queue": idle}, on_agent=True).id)
        here = sweep(CONFIG, **given)
        begun["sync"].append(here.id)
        if len(begun["sync"]) == 1:
            raise RuntimeError("The first try fails.")
        return own_id(), here.wait(DEADLINE_SECONDS).best().number

    @flow(retries=1)
    async def async_parent() -> tuple[str, int]:
        here = await asweep(CONFIG, **given)
        begun["async"].append(here.id)
        if len(begun["async"]) == 1:
            raise RuntimeError("The first try fails.")
        await here.wait_async(DEADLINE_SECONDS)
        return own_id(), (await here.abest()).number

    agent = site.agent_process(jobs=2)
    try:
        ends = {"sync": sync_parent(), "async": asyncio.run(async_parent())}
    finally:
        agent.stop()
    for kind, (parent, best) in ends.items():
        assert best == 1
        (first, second) = begun[kind]
        assert first == second
        assert subflows(parent) == [first]
        found = Sweep.find(first)
        assert (found.state, found.message) == ("completed", "All 3 trials have ended.")
        assert [(run.number, run.tries) for run in found.runs()] == [(1, 1), (0, 1), (2, 1)]
    (waiting,) = set(begun["queued"])
    assert [run.id for run in site.api.items(queue=idle)] == [waiting]
    Sweep.find(waiting).stop()
    assert Sweep.find(waiting).state == "cancelled"


def until_two_trials_run(program: ChildProcess) -> Sweep:
    """Return the sweep that a program has begun, once its trials run."""
    program.wait_until(lambda: "sweep " in program.log.read_text(), DEADLINE_SECONDS)
    told = next(line for line in program.log.read_text().splitlines() if line.startswith("sweep "))
    found = Sweep.find(told.split()[1])
    until(lambda: [run.state for run in found.runs()] == ["running"] * 2)
    return found


def test_interrupted_flow_stops_its_sweep_with_its_trials_whether_it_waits_or_ends(site: Site) -> None:
    site.job(SLOW)
    names = {"LAUNCH_ENTITY": site.api.entity, "LAUNCH_PROJECT": site.api.project}
    environment = {**os.environ, **names, "PREFECT_API_URL": site.api_url}
    code = PROGRAM.format(config=CONFIG, name=site.name)
    programs = {}
    for how in ("waits", "ends"):
        log = site.folder / f"{how}.log"
        process = warm_prefect().start(["-c", code, how], cwd=Path.cwd(), environment=environment, out=log)
        programs[how] = ChildProcess.forked(process, log)
    agent = site.agent_process(jobs=4)
    try:
        sweeps = [until_two_trials_run(program) for program in programs.values()]
        os.kill(programs["waits"].pid, signal.SIGTERM)
        os.kill(programs["ends"].pid, signal.SIGINT)
        codes = {how: program.wait(DEADLINE_SECONDS) for how, program in programs.items()}
    finally:
        agent.stop()
    assert codes == {"waits": 128 + signal.SIGTERM, "ends": -signal.SIGINT}
    for one in sweeps:
        assert one.state == "cancelled"
        assert [(run.state, run.run.state) for run in one.runs()] == [("cancelled", "cancelled")] * 2
