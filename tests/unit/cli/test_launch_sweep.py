"""`prefect-launch launch-sweep`: W&B's command, which is `sweep create` and `sweep resume`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID, opened

# As W&B's documentation has it.
CONFIG: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": GRID,
    "job": "train",
    "launch": {"queue": "cpu"},
    "scheduler": {"num_workers": 3},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep file."""
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(CONFIG))
    return path


def launch_sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["launch-sweep", *arguments])


def sweeps(api: InMemoryApi) -> list[QueuedRun]:
    return [run for run in api.items() if run.item.flow == "launch-sweep"]


def test_file_of_a_launch_sweep_becomes_an_item_of_its_queue(job_api: InMemoryApi, file: Path) -> None:
    made = launch_sweep(str(file), "-p", "digits", "-e", "acme")
    assert made.exit_code == 0, made.output
    (run,) = sweeps(job_api)
    assert run.id in made.stdout
    assert run.url in made.stdout
    given = {name: value for name, value in run.item.parameters.items() if value is not None}
    assert given == {"config": CONFIG, "job": "acme/digits/train:v0", "project": "digits", "entity": "acme"}


def test_options_have_both_spellings_and_win_over_the_file(job_api: InMemoryApi, tmp_path: Path) -> None:
    async def earlier() -> str:
        async with opened(job_api) as old, old.agent():
            await old.run()
            return str(old.id)

    path = tmp_path / "sweep.json"
    space = {"lr": {"min": 0.0, "max": 1.0}}
    path.write_text(json.dumps({**CONFIG, "method": "bayes", "parameters": space, "launch": {"queue": "gpu"}}))
    prior = asyncio.run(earlier())
    for spelling in ("--prior_run", "--prior-run", "-R"):
        made = launch_sweep(str(path), "--queue", "cpu", spelling, prior, "--json")
        assert made.exit_code == 0, str(made.exception)
        run = job_api.queued_run(json.loads(made.stdout)["id"])
        assert (run.queue_name, run.item.parameters["prior_runs"]) == ("cpu", [prior])


def test_resumed_sweep_goes_on_with_what_the_file_and_the_options_give(
    job_api: InMemoryApi, file: Path, tmp_path: Path
) -> None:
    launch_sweep(str(file))
    (run,) = sweeps(job_api)
    job_api.call(lambda session: session.server.propose(UUID(run.id), State.of(ItemState.CANCELLED), force=True))
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps({**CONFIG, "run_cap": 7, "scheduler": {"num_workers": 5}}))
    resumed = launch_sweep(str(again), "--resume_id", run.id[-8:], "-p", "other")
    assert resumed.exit_code == 0, str(resumed.exception)
    assert "waits to continue, as a run of the queue cpu" in resumed.stdout
    (item,) = [run.item for run in sweeps(job_api)]
    assert item.state_type is StateType.SCHEDULED
    given = {name: item.parameters[name] for name in ("num_workers", "run_cap", "project", "config")}
    assert given == {"num_workers": 5, "run_cap": 7, "project": "other", "config": CONFIG}


def test_sweep_is_not_resumed_with_a_file_that_tries_something_else(
    job_api: InMemoryApi, file: Path, tmp_path: Path
) -> None:
    launch_sweep(str(file))
    (run,) = sweeps(job_api)
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({**CONFIG, "parameters": {"lr": {"values": [0.5]}}}))
    refused = launch_sweep(str(other), "-r", run.id)
    assert "continues with its own parameters" in str(refused.exception)
    assert sweeps(job_api)[0].item.parameters == run.item.parameters


def test_launch_sweep_without_a_file_and_a_sweep_is_refused(job_api: InMemoryApi) -> None:
    assert "or --resume_id" in str(launch_sweep().exception)
    assert "There is no sweep" in str(launch_sweep("-r", "nothing").exception)
    assert job_api.items() == []
