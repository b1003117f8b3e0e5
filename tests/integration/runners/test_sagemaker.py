"""SageMaker from the queue to the end: a real server, real agents, AWS's own client, and an account on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch.runners.remote.sagemaker.runner import SageMakerRunner
from tests.support.agent_thread import running
from tests.support.engine_cases import EngineContract, EnginePlace
from tests.support.live import REPORT_LOSS, Site, until
from tests.support.sagemaker import IMAGE, QUEUE, FakeAws, aws_environment, fake_aws

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    """An account; agents in this process ask it more often than AWS would bear."""
    for name in ("poll_seconds", "least_poll_seconds", "log_seconds", "settle_seconds"):
        monkeypatch.setattr(SageMakerRunner, name, 0.2)
    with fake_aws(tmp_path / "aws") as (aws, address):
        for name, value in aws_environment(address).items():
            monkeypatch.setenv(name, value)
        yield aws


@pytest.fixture
def site(prefect_server: PrefectServerProcess, aws: FakeAws, tmp_path: Path, unique: str) -> Site:
    """A queue of training jobs of the test's own."""
    return Site(prefect_server.api_url, tmp_path, unique, resource="sagemaker", config=QUEUE)


def add(site: Site, script: str, **more: Any) -> QueuedRun:
    (run,) = site.add({"docker": {"docker_image": IMAGE}, "overrides": {"entry_point": ["sh", "-c", script]}, **more})
    return run


def test_items_run_to_their_ends_with_logs_outputs_and_exit_codes(site: Site, aws: FakeAws) -> None:
    good = add(site, REPORT_LOSS + 'echo "hello"; printf \'{"accuracy": 0.9}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"')
    bad = add(site, "echo oh; exit 3", retries=0)
    site.work_off()
    assert site.states(good)[-2:] == ["Running", "Completed"]
    assert (site.log(good).splitlines(), good.outputs(), good.metrics().value("loss")) == (
        ["hello"],
        {"accuracy": 0.9},
        0.5,
    )
    assert (site.states(bad)[-1], "exit code 3" in bad.message) == ("Failed", True)
    assert {job.status for job in aws.jobs.values()} == {"Completed", "Failed"}


def test_job_of_an_agent_that_was_killed_goes_on_under_the_next_one(
    site: Site, aws: FakeAws, agents: list[ChildProcess], tmp_path: Path
) -> None:
    run = add(site, f"echo before; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo after")
    agents.append(site.agent_process())
    until(lambda: "before" in site.log(run))
    agents[-1].kill()
    (tmp_path / "go").touch()
    until(lambda: [job.status for job in aws.jobs.values()] == ["Completed"])
    site.work_off()
    assert (site.states(run)[-1], site.log(run).splitlines()) == ("Completed", ["before", "after"])
    assert len(aws.jobs) == 1


def test_item_that_waits_for_capacity_says_so_and_is_cancelled(site: Site, aws: FakeAws) -> None:
    aws.is_full = True
    run = add(site, "echo never")
    with running(site.agent()):
        until(lambda: "Insufficient capacity" in run.message)
        assert site.states(run)[-1] == "Submitted"
        run.cancel()
        until(lambda: run.item.is_terminal)
    assert site.states(run)[-1] == "Cancelled"
    assert [job.status for job in aws.jobs.values()] == ["Stopped"]


@pytest.fixture
def engine_place(prefect_server: PrefectServerProcess, aws: FakeAws, tmp_path: Path, unique: str) -> EnginePlace:
    config = {**QUEUE, "env": {"FOLDER": str(tmp_path), "COUNT": str(tmp_path)}}

    def reach(*, is_away: bool) -> None:
        aws.is_away = is_away

    return EnginePlace(
        prefect_server,
        tmp_path,
        unique,
        "sagemaker",
        config,
        lambda: reach(is_away=True),
        lambda: reach(is_away=False),
        image=IMAGE,
        away_seconds=15.0,
        many=30,
    )


@pytest.mark.soak
class TestEngine(EngineContract):
    """An agent's promises; its processes ask AWS as seldom as real ones, so this takes minutes."""
