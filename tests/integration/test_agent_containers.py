"""Items that are containers, from the queue to the end, on a real server and a real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, until

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine


@pytest.fixture
def site(prefect_server: PrefectServerProcess, engine: DockerEngine, tmp_path: Path, unique: str) -> Site:
    """A queue of containers of the test's own."""
    return Site(prefect_server.api_url, tmp_path, unique, resource="local-container")


def container(image: str, script: str) -> dict[str, object]:
    return {"docker": {"docker_image": image}, "overrides": {"entry_point": ["sh", "-c", script]}}


def test_container_runs_to_completed_with_its_log_and_outputs(site: Site, shell_image: str) -> None:
    metric = 'echo \'::launch-metric {"step": 3, "loss": 0.25}\''
    script = f'{metric}; echo "hello $WANDB_NAME"; echo "{{\\"accuracy\\": 0.9}}" > "$LAUNCH_OUTPUT_DIR/outputs.json"'
    (run,) = site.add(container(shell_image, script), name="box")
    site.work_off()
    assert site.states(run)[-2:] == ["Running", "Completed"]
    assert site.log(run) == "hello box"
    metrics = run.metrics()
    assert (metrics.series["loss"].points(), metrics.outputs) == ([(3, 0.25)], {"accuracy": 0.9})
    assert any("0.9" in str(artifact.data) for artifact in site.artifacts(run))


def test_container_that_fails_tells_its_exit_code(site: Site, shell_image: str) -> None:
    (run,) = site.add(container(shell_image, "echo badly; exit 9"))
    site.work_off()
    assert site.states(run)[-1] == "Failed"
    assert "exit code 9" in run.message
    assert site.log(run) == "badly"


def test_container_makes_place_for_a_critical_item_and_resumes(site: Site, shell_image: str) -> None:
    site.api.edit_run_queue(replace(site.queue.options, preempt=True))
    script = """
saved="$LAUNCH_OUTPUT_DIR/saved"
if [ -e "$saved" ]; then echo resumed; exit 0; fi
trap 'touch "$saved"; exit 0' TERM
echo begun
while true; do sleep 0.1; done
"""
    with running(site.agent(max_jobs=1, poll_seconds=0.5, stopped_run_timeout=20)):
        (low,) = site.add(container(shell_image, script), priority="low", resumable=True)
        until(lambda: "begun" in site.log(low))
        (urgent,) = site.add(container(shell_image, "true"), priority="critical")
        for run in (urgent, low):
            run.wait_until_finished(timeout=DEADLINE_SECONDS)
    assert site.log(low).split() == ["begun", "resumed"]
    assert [name for name in site.states(low) if name != "Pending"] == [
        *("Queued", "Running", "Queued", "Running", "Completed")
    ]


def test_image_that_cannot_be_pulled_crashes_the_item_with_the_reason(site: Site) -> None:
    (run,) = site.add({"docker": {"docker_image": "127.0.0.1:1/no/such:1"}})
    site.work_off()
    assert site.states(run) == ["Queued", "Pending", "Pulling", "Crashed"]
    assert "127.0.0.1:1/no/such:1" in run.message


def test_link_that_a_job_left_in_a_bind_opens_no_other_folder_of_the_host(
    prefect_server: PrefectServerProcess, engine: DockerEngine, tmp_path: Path, unique: str, shell_image: str
) -> None:
    data, secret = tmp_path / "data", tmp_path / "secret"
    for folder in (data / "vision", secret):
        folder.mkdir(parents=True)
    site = Site(
        prefect_server.api_url,
        tmp_path,
        unique,
        resource="local-container",
        config={"volume": [f"{data}/{{{{team}}}}:/d"]},
        template_variables={"team": {"type": "string", "pattern": "[a-z]+(/[a-z]+)?"}},
    )
    link = container(shell_image, f"ln -s {secret} /d/l")
    (first,) = site.add(link, template_variables={"team": "vision"})
    site.work_off()
    assert site.states(first)[-1] == "Completed"
    (second,) = site.add(container(shell_image, "touch /d/written"), template_variables={"team": "vision/l"})
    site.work_off()

    assert (data / "vision" / "l").is_symlink()
    assert site.states(second)[-1] == "Failed"
    assert f"below '{data}'" in second.message
    assert "symbolic link" in second.message
    assert list(secret.iterdir()) == []


@pytest.mark.parametrize("deaf", [False, True])
def test_container_that_is_cancelled_is_stopped_even_when_it_ignores_term(
    site: Site, engine: DockerEngine, shell_image: str, deaf: bool
) -> None:
    trap = "trap '' TERM" if deaf else "trap 'exit 3' TERM"
    (run,) = site.add(container(shell_image, f"{trap}; echo up; while true; do sleep 0.1; done"))
    with running(site.agent(stopped_run_timeout=1)):
        until(lambda: "up" in site.log(run))
        assert run.cancel() == "Cancelling"
        until(lambda: run.item.state_type is StateType.CANCELLED)
    assert run.message.startswith("Stopped after")
    client = engine.client()
    try:
        mine = {"label": f"prefect-launch.item={run.id}"}
        assert client.containers.list(all=True, filters=mine) == []
    finally:
        client.close()
