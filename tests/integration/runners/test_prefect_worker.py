"""Items handed to work pools that Prefect's own workers serve: of processes, and of containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.masking import MASK
from prefect_launch.errors import QueueError
from prefect_launch.runners.remote.prefect.runner import FLOW
from prefect_launch.server.secrets import reference_to
from tests.support.engine_cases import EngineContract, EnginePlace
from tests.support.live import REPORT_LOSS, Site, until
from tests.support.prefect_worker import PrefectWorkerProcess
from tests.support.requests import send

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

#: Says where it is, and ends at TERM.
WAITS = 'echo "begun $$"; trap "echo ended; exit 5" TERM; sleep 300 & wait'


@pytest.fixture(scope="module")
def processes(_sqlite_server: PrefectServerProcess, session_folder: Path) -> Iterator[PrefectWorkerProcess]:
    """A work pool of processes, and its worker."""
    worker = PrefectWorkerProcess(
        _sqlite_server.api_url, f"processes-{uuid4().hex[:8]}", "process", session_folder / "worker-process"
    )
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def elsewhere(
    prefect_server: PrefectServerProcess, processes: PrefectWorkerProcess, tmp_path: Path, unique: str
) -> Site:
    """A queue of the test's own, whose items go to the work pool of processes."""
    return Site(prefect_server.api_url, tmp_path, unique, resource="prefect", config={"work_pool": processes.pool})


def child_of(site: Site, run: QueuedRun) -> dict[str, Any]:
    """The child flow run of an item's only attempt."""
    wanted = {"flows": {"name": {"any_": [FLOW]}}, "flow_runs": {"tags": {"all_": [f"launch-item-{run.id}"]}}}
    found = send("POST", f"{site.api_url}/flow_runs/filter", json=wanted).json()
    return dict(found[0]) if found else {}


def state_of(site: Site, run: QueuedRun) -> str:
    return str(site.flow_run(run).state_name)


def logged_by(site: Site, run: QueuedRun, text: str) -> bool:
    return text in site.log(run)


def test_items_end_as_their_jobs_in_another_work_pool_did(
    prefect_server: PrefectServerProcess, processes: PrefectWorkerProcess, tmp_path: Path, unique: str
) -> None:
    from prefect.blocks.system import Secret

    secret, value = f"{unique}-token", "t0ken-of-the-test"
    Secret(value=value).save(secret)
    config = {"work_pool": processes.pool, "env": {"TOKEN": reference_to(secret)}}
    site = Site(prefect_server.api_url, tmp_path, unique, resource="prefect", config=config)
    site.job(
        REPORT_LOSS + 'echo "hello $TOKEN"; echo oops >&2; python3 -c "import prefect_launch.inputs";'
        ' printf \'{"accuracy": 0.9}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"; exit ${CODE:-0}'
    )
    done, failed, killed = site.add(
        {},
        {"resource_args": {"prefect": {"env": {"CODE": "3"}}}},
        {"overrides": {"entry_point": ["sh", "-c", "kill -9 $$"]}},
    )
    site.work_off(max_jobs=3)

    assert state_of(site, done) == "Completed"
    assert site.log(done).splitlines() == [f"hello {MASK}", "oops"]
    assert (done.outputs(), done.metrics().value("loss")) == ({"accuracy": 0.9}, 0.5)
    assert (state_of(site, failed), "with exit code 3" in site.api.queued_run(failed.id).item.message) == (
        "Failed",
        True,
    )
    assert (state_of(site, killed), "SIGKILL" in site.api.queued_run(killed.id).item.message) == ("Failed", True)

    child = child_of(site, done)
    assert (child["state_name"], child["state"]["data"]["exit_code"]) == ("Completed", 0)
    assert child["parameters"]["launch_item"].endswith(f"/runs/flow-run/{done.id}")
    [link] = [artifact for artifact in site.artifacts(done) if artifact.key == "launch-elsewhere"]
    assert f"/runs/flow-run/{child['id']}" in link.data
    wanted = {"logs": {"flow_run_id": {"any_": [child["id"]]}}}
    logged = send("POST", f"{site.api_url}/logs/filter", json=wanted).text
    assert f"hello {MASK}" in logged
    assert value not in json.dumps(child) + logged
    assert child_of(site, failed)["state_name"] == "Failed"


def test_item_that_is_cancelled_ends_its_job_in_the_other_pool(elsewhere: Site, agents: list[ChildProcess]) -> None:
    site = elsewhere
    site.job(WAITS)
    [run] = site.add()
    agents.append(site.agent_process())
    until(lambda: logged_by(site, run, "begun"))
    run.cancel()
    until(lambda: state_of(site, run) == "Cancelled")
    assert child_of(site, run)["state_name"] == "Cancelled"
    assert site.log(run).splitlines()[-1] == "ended"


def test_item_is_told_when_its_child_is_cancelled_in_the_ui(elsewhere: Site, agents: list[ChildProcess]) -> None:
    site = elsewhere
    site.job(WAITS)
    [run] = site.add()
    agents.append(site.agent_process())
    until(lambda: logged_by(site, run, "begun"))
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    send("POST", f"{site.api_url}/flow_runs/{child_of(site, run)['id']}/set_state", json=body)
    until(lambda: state_of(site, run) == "Cancelled")
    assert "exit code 5" in str(site.flow_run(run).state and site.flow_run(run).state.message)  # type: ignore[union-attr]


@pytest.fixture
def engine_place(
    prefect_server: PrefectServerProcess, processes: PrefectWorkerProcess, tmp_path: Path, unique: str
) -> EnginePlace:
    config = {"work_pool": processes.pool, "env": {"FOLDER": str(tmp_path), "COUNT": str(tmp_path)}}
    return EnginePlace(
        prefect_server, tmp_path, unique, "prefect", config, processes.kill, processes.start, many=10, slots=16
    )


class TestEngine(EngineContract):
    """An agent's promises, kept by a real worker."""

    def test_silent_item_is_stopped(self, engine_place: EnginePlace) -> None:
        super().test_silent_item_is_stopped(engine_place)


def test_item_waits_for_a_worker_and_says_so_and_outlives_one_that_is_killed(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, agents: list[ChildProcess]
) -> None:
    worker = PrefectWorkerProcess(prefect_server.api_url, f"{unique}-pool", "process", tmp_path / "worker")
    site = Site(prefect_server.api_url, tmp_path, unique, resource="prefect", config={"work_pool": worker.pool})
    site.job("echo begun; sleep 5; echo ended")
    [run] = site.add()
    agents.append(site.agent_process())
    until(lambda: state_of(site, run) == "Submitted")
    told = site.flow_run(run).state
    assert told is not None
    assert f"the work pool '{worker.pool}' has no worker online" in str(told.message)
    worker.start()
    until(lambda: logged_by(site, run, "begun"))
    worker.kill()
    until(lambda: state_of(site, run) in ("Completed", "Crashed"))
    assert (state_of(site, run), site.log(run).splitlines()) == ("Completed", ["begun", "ended"])


def test_queue_of_a_wrong_pool_is_refused_with_what_to_do(
    prefect_server: PrefectServerProcess, processes: PrefectWorkerProcess, tmp_path: Path, unique: str
) -> None:
    def site(name: str, pool: str) -> Site:
        config = {"work_pool": pool}
        return Site(prefect_server.api_url, tmp_path / name, f"{unique}-{name}", resource="prefect", config=config)

    with pytest.raises(QueueError, match="There is no work pool 'no-such-pool'"):
        site("none", "no-such-pool")
    right = site("right", processes.pool)
    with pytest.raises(QueueError, match="is a queue of prefect-launch itself"):
        site("loop", right.name)


def test_containers_of_a_work_pool_run_images_and_say_when_one_has_no_python(
    prefect_server: PrefectServerProcess,
    engine: DockerEngine,
    python_image: str,
    shell_image: str,
    tmp_path: Path,
    unique: str,
) -> None:
    worker = PrefectWorkerProcess(prefect_server.api_url, f"{unique}-docker", "docker", tmp_path / "worker")
    worker.start()
    try:
        config = {"work_pool": worker.pool, "job_variables": {"auto_remove": True, "image_pull_policy": "Never"}}
        site = Site(prefect_server.api_url, tmp_path, unique, resource="prefect", config=config)
        command = ["sh", "-c", "echo in-a-container; exit 4"]
        image, bare = site.add(
            {"docker": {"docker_image": python_image}, "overrides": {"entry_point": command}},
            {"docker": {"docker_image": shell_image}, "overrides": {"entry_point": command}, "retries": {"max": 0}},
        )
        site.work_off(max_jobs=2)
        assert (state_of(site, image), site.log(image)) == ("Failed", "in-a-container")
        assert "with exit code 4" in site.api.queued_run(image.id).item.message
        assert state_of(site, bare) == "Crashed"
        assert "python3" in site.api.queued_run(bare.id).item.message
    finally:
        worker.stop()
