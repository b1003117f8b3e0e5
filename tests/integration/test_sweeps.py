"""A sweep on a real server with a real agent, run by the command line, killed and resumed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Cancelling

from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import StateType
from prefect_launch.server.values import Item, State
from prefect_launch.sweeps.control import ResumedBy, pause_sweep, resume_sweep
from prefect_launch.sweeps.queued import queue_sweep
from tests.support.live import DEADLINE_SECONDS, Site, until

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

TRAIN = """
for given in "$@"; do eval "$given"; done
echo "{\\"loss\\": $(( (x - 2) * (x - 2) + y ))}" > "$LAUNCH_OUTPUT_DIR/outputs.json"
"""
SWEEP: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"x": {"values": [1, 2]}, "y": {"values": [0, 1]}},
    "args": "no_hyphens",
}


def test_grid_whose_scheduler_is_killed_goes_on_when_it_is_resumed_and_tells_the_best_trial(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({**SWEEP, "name": unique}))
    told = tmp_path / "first-life.txt"
    told.touch()
    given = ["-q", unique, "-j", site.job(TRAIN), "--num-workers", "2"]
    life = site.process("sweep", "run", str(file), *given, log=told)
    try:
        # Nobody runs the trials yet: the two of them wait when the scheduler dies.
        until(lambda: "trial 1 waiting" in told.read_text() or not life.running)
        assert "trial 1 waiting" in told.read_text(), told.read_text()
        sweep_id = UUID(told.read_text().partition("sweep: ")[2].split()[0])
        until(lambda: f"sweep-{sweep_id}" in artifacts(site, sweep_id) or not life.running)
    finally:
        life.kill()
    table = artifacts(site, sweep_id)[f"sweep-{sweep_id}"]
    agent = site.agent_process(jobs=2)
    try:
        resumed = site.run("sweep", "run", "--resume", unique)
        shown = site.run("sweep", "show", unique, "--json")
    finally:
        agent.stop()
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert shown.returncode == 0, shown.stderr
    assert "All 4 trials have ended." in resumed.stdout
    assert "best: trial 2 finished, loss 0: x=2, y=0" in resumed.stdout
    seen = json.loads(shown.stdout)
    assert (seen["state"], seen["best"]) == ("completed", 2)
    assert [(trial["number"], trial["metric"]) for trial in seen["trials"]] == [(2, 0), (0, 1), (3, 1), (1, 2)]
    assert {trial["tries"] for trial in seen["trials"]} == {1}
    on_page = artifacts(site, sweep_id)
    assert on_page.keys() == {table["key"], f"sweep-report-{sweep_id}"}, "the next life goes on with the same ones"
    assert on_page[table["key"]]["id"] == table["id"]
    assert [row["trial"] for row in json.loads(on_page[table["key"]]["data"])] == ["2", "0", "3", "1"]
    assert on_page[f"sweep-report-{sweep_id}"]["data"].count("data:image/svg+xml;base64,") == 3


#: Each trial waits for its gate, and writes down that it ran.
GATED = """
echo "$LAUNCH_ITEM_ID" >> "FOLDER/ran"
while [ ! -e "FOLDER/gate" ]; do sleep 0.1; done
""".lstrip()


def test_sweep_on_an_agent_that_is_killed_goes_on_under_the_next_one_with_its_cap_exact(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    job = site.job(GATED.replace("FOLDER", str(tmp_path)) + TRAIN)
    ran = tmp_path / "ran"
    given = {"config": {**SWEEP, "name": unique}, "queue": unique, "job": job, "num_workers": 2, "run_cap": 3}
    sweep_id = asyncio.run(queue_sweep(site.api, given))
    first = site.agent_process(jobs=2)
    try:
        until(lambda: ran.exists() and len(ran.read_text().split()) == 2)
    finally:
        first.kill()
    second = site.agent_process(jobs=2)
    try:
        until(lambda: "adopted" in second.log.read_text())
        (tmp_path / "gate").touch()
        until(lambda: read(site, sweep_id).is_terminal)
    finally:
        second.stop()
    sweep = read(site, sweep_id)
    assert (sweep.state_name, sweep.message) == ("Completed", "All 3 trials have ended.")
    assert sweep.run_count == 1, "the scheduler has outlived its agent, and the next one has followed it"
    trials = site.api.items(queue=unique)
    assert len(trials) == 4, "three trials and the sweep"
    assert {run.item.run_count for run in trials} == {1}
    assert sorted(ran.read_text().split()) == sorted(run.id for run in trials if run.id != str(sweep_id))
    assert "trial 2 finished" in site.log(QueuedRun(site.api, sweep))


def read(site: Site, sweep_id: UUID) -> Item:
    """The sweep as it is now."""
    found = site.api.call(lambda session: session.server.read_item(sweep_id))
    assert found is not None
    return found


def artifacts(site: Site, sweep_id: UUID) -> dict[str, dict[str, Any]]:
    """What the sweep's page shows, by key; each key once."""
    found = site.api.call(lambda session: session.server.list_artifacts(sweep_id))
    assert len({artifact["key"] for artifact in found}) == len(found)
    return {artifact["key"]: artifact for artifact in found}


def test_pause_resume_and_cancel_of_prefects_ui_and_client_do_what_the_commands_do(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    file, log = tmp_path / "sweep.json", tmp_path / "sweep.txt"
    file.write_text(json.dumps({**SWEEP, "name": unique}))
    options = ("-q", unique, "-j", site.job(TRAIN), "--num-workers", "2")
    log.touch()
    # Nobody runs its trials: they wait.
    process = site.process("sweep", "run", str(file), *options, log=log)
    try:
        told = told_in(log, process)
        told("trial 1 waiting")
        sweep_id = UUID(log.read_text().split("sweep: ")[1].split()[0])
        # As the button of the UI does it, whose time limit would fail the sweep.
        past = (datetime.now(timezone.utc) - timedelta(seconds=1)).isoformat()
        details = {"pause_timeout": past, "pause_reschedule": True}
        suspended = State(type=StateType.PAUSED, name="Suspended", state_details=details)
        site.api.call(lambda session: session.server.propose(sweep_id, suspended, force=True))
        told("The sweep is paused")
        until(lambda: state_of(site, sweep_id) == "Paused")
        with get_client(sync_client=True) as client:
            assert client.resume_flow_run(sweep_id).status is SetStateStatus.ACCEPT
        told("The sweep continues.")
        asyncio.run(pause_sweep(site.api, sweep_id, now=True))
        told("trial 1 held")
        assert {run.state for run in site.api.items(queue=unique)} == {"cancelled"}
        resumed = resume_sweep(site.api, sweep_id, {"num_workers": 1}, answer_seconds=DEADLINE_SECONDS)
        assert asyncio.run(resumed) is ResumedBy.PROCESS
        told("trial 0 (try 2) waiting")
        with get_client(sync_client=True) as client:
            assert client.set_flow_run_state(sweep_id, Cancelling()).status is SetStateStatus.ACCEPT
        told("The sweep was stopped.")
        until(lambda: state_of(site, sweep_id) == "Cancelled")
        runs = site.api.items(queue=unique)
        assert (len(runs), {run.state for run in runs}) == (3, {"cancelled"})
    finally:
        process.stop()


def told_in(log: Path, process: ChildProcess) -> Callable[[str], None]:
    """Return what waits until a process has told of something."""

    def wait(words: str) -> None:
        until(lambda: words in log.read_text() or not process.running)
        assert words in log.read_text(), log.read_text()

    return wait


def state_of(site: Site, item_id: UUID) -> str | None:
    """Name of the state of a flow run."""
    found: Item | None = site.api.call(lambda session: session.server.read_item(item_id))
    return None if found is None else found.state_name
