"""The other ways to start an agent: served as a deployment on a schedule, and as a Prefect worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch.queues.agent_status import read_drain_request
from tests.support.live import Site, until
from tests.support.prefect_server import warm_prefect
from tests.support.processes import ChildProcess
from tests.support.requests import send

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

#: A shift takes some seconds to start: a Python process with Prefect in it.
SHIFT_SECONDS = 90.0


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    return Site(prefect_server.api_url, tmp_path, unique)


def environment(site: Site) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_API_URL": site.api_url,
        "PREFECT_LAUNCH_HOME": str(site.folder / "home"),
    }


def shifts(site: Site, *states: str) -> list[dict[str, Any]]:
    """The runs of the served agent in these states (of all when none is named), as the API gives them."""
    body = {"deployments": {"name": {"any_": [site.name]}}, "flows": {"name": {"any_": ["launch-agent"]}}}
    found: list[dict[str, Any]] = send("POST", f"{site.api_url}/flow_runs/filter", json=body).json()
    return [run for run in found if not states or run["state_type"] in states]


def task_runs(site: Site, shift: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"flow_runs": {"id": {"any_": [shift["id"]]}}}
    found: list[dict[str, Any]] = send("POST", f"{site.api_url}/task_runs/filter", json=body).json()
    return found


def shift_process(service: int) -> int:
    """The id of the process of the shift that is on."""
    listed = subprocess.run(
        ["pgrep", "-P", str(service), "-f", "prefect.engine"], capture_output=True, text=True, check=True
    )
    return int(listed.stdout.split()[0])


def serve(site: Site, log: str = "serve.log") -> ChildProcess:
    command = ["agent", "serve", "-q", site.name, "--name", site.name, "--interval", "60"]
    return site.process(*command, log=site.folder / log)


def catches(number: signal.Signals, process: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_served_agent_works_in_shifts_and_drains_at_a_signal_right_after_a_crash(site: Site) -> None:
    site.job('echo started; while [ ! -e "$0.go" ]; do sleep 0.1; done; echo ended; exit 0\n')
    service = serve(site)
    try:
        (run,) = site.add()
        run.wait_until_started(SHIFT_SECONDS)
        (waits,) = site.add()
        (first,) = shifts(site, "RUNNING")
        until(lambda: [each["name"] for each in task_runs(site, first)] == [run.name])

        os.kill(shift_process(service.pid), signal.SIGKILL)
        os.kill(service.pid, signal.SIGTERM)  # No shift is on: the next one takes up the run, and drains.
        until(lambda: [each for each in shifts(site, "RUNNING") if each["id"] != first["id"]], SHIFT_SECONDS)
        assert run.state == "running"
        (go,) = (site.folder / "home" / "runs" / run.id).glob("*/code")
        (go / "run.sh.go").touch()
        run.wait_until_finished(SHIFT_SECONDS)
        assert site.log(run).split() == ["started", "ended"]
        assert service.wait(SHIFT_SECONDS) == 128 + signal.SIGTERM
    finally:
        service.stop()

    assert "has drained" in service.tail()
    assert waits.state == "queued"
    ends = Counter(each["state_type"] for each in shifts(site))
    assert ends["CRASHED"] == 1
    assert ends["CANCELLED"] <= 1
    assert set(ends) <= {"CRASHED", "CANCELLED", "COMPLETED"}, "no run is left waiting, late or running"


def test_service_that_is_started_again_after_a_kill_and_stopped_at_once_drains_the_shift_that_goes_on(
    site: Site,
) -> None:
    site.job('echo started; while [ ! -e "$0.go" ]; do sleep 0.1; done; echo ended; exit 0\n')
    killed = again = serve(site)
    shift = 0
    try:
        (run,) = site.add()
        run.wait_until_started(SHIFT_SECONDS)
        (waits,) = site.add()
        (first,) = shifts(site, "RUNNING")
        shift = shift_process(killed.pid)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(SHIFT_SECONDS)

        again = serve(site, "again.log")
        until(lambda: catches(signal.SIGTERM, again.pid))
        os.kill(again.pid, signal.SIGTERM)
        until(lambda: "continues in the run" in again.tail(), SHIFT_SECONDS)
        assert run.state == "running"
        assert [each["id"] for each in shifts(site, "RUNNING")] == [first["id"]], "its process goes on, and it says so"
        (code,) = (site.folder / "home" / "runs" / run.id).glob("*/code")
        (code / "run.sh.go").touch()
        run.wait_until_finished(SHIFT_SECONDS)
        assert again.wait(SHIFT_SECONDS) == 128 + signal.SIGTERM
        until(lambda: not Path(f"/proc/{shift}").exists())
    finally:
        again.stop()
        if shift:
            with contextlib.suppress(ProcessLookupError):
                os.kill(shift, signal.SIGKILL)

    assert "has drained" in again.tail()
    assert site.log(run).split() == ["started", "ended"]
    assert waits.state == "queued"
    # The server may plan runs once more while the service pauses its schedule; the next start deletes them.
    ends = [(each["state_type"], each["state"]["message"]) for each in shifts(site) if each["start_time"]]
    assert [state for state, _ in ends] == ["COMPLETED"], ends
    assert site.api.call(lambda session: read_drain_request(session.server, site.name)) is None


def test_prefect_worker_of_the_type_runs_what_is_queued(site: Site) -> None:
    site.job("echo worked\n")
    (run,) = site.add()
    command = ["worker", "start", "--type", "launch", "-p", site.name, "--run-once", "--name", site.name]
    done = warm_prefect().run(command, cwd=site.folder, environment=environment(site), seconds=120)
    assert done.returncode == 0, done.stderr
    assert run.state == "completed"
    assert site.log(run) == "worked"
