"""`item save-job` and `QueuedRun.save_job`: a job of what an ended item ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefect_launch import launch_add
from prefect_launch.cli.main import app
from prefect_launch.errors import SpecError
from prefect_launch.jobs.model import CODE_FILE
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs

DIGEST = f"sha256:{'a' * 64}"


def ended(**given: Any) -> Any:
    run = launch_add(**given)
    run.cancel()
    return run


def test_job_of_an_item_has_its_code_its_command_and_its_inputs_as_defaults(
    job_api: InMemoryApi, tmp_path: Path
) -> None:
    overrides = {"run_config": {"lr": 0.5}, "args": ["--seed", "7"], "entry_point": ["python", "other.py"]}
    run = ended(job="train", queue_name="cpu", config={"overrides": overrides})

    job = run.save_job(aliases=["best"])

    was = job_api.job("train:v0")
    assert (job.reference, job.aliases) == ("acme/digits/train:v1", ("best", "latest"))
    assert job.entry_point == ("python", "other.py", "--seed", "7")
    assert job.files[CODE_FILE] == was.files[CODE_FILE]
    job_api.call(lambda session: session.jobs.fetch_code(job, tmp_path / "got"))
    assert (tmp_path / "got" / "main.py").read_text() == "print('hello')\n"
    again = launch_add(job="train:best", queue_name="cpu").item.parameters
    assert again["overrides"] == {"run_config": {"lr": 0.5, "epochs": 3, "optimiser": "adam"}}
    assert run.save_job().reference == job.reference


def test_job_of_an_image_has_the_digest_that_was_looked_up(job_api: InMemoryApi) -> None:
    job_api.registry.digests["r.example/team/tool:1"] = DIGEST
    run = ended(docker_image="r.example/team/tool:1", queue_name="gpu", config=inputs(lr=0.5), entry_point=["go"])

    job = run.save_job("tool")

    assert (job.reference, job.image, job.entry_point) == (
        "acme/digits/tool:v0",
        f"r.example/team/tool@{DIGEST}",
        ("go",),
    )
    assert job.schema == {
        "type": "object",
        "additionalProperties": True,
        "properties": {"lr": {"default": 0.5}},
    }


def test_command_makes_the_job_and_tells_its_name(job_api: InMemoryApi) -> None:
    run = ended(job="box", queue_name="gpu", config=inputs(seed=1))

    result = CliRunner().invoke(app, ["item", "save-job", run.id, "-n", "seeded", "-a", "one", "--json"])

    told = json.loads(result.stdout)
    assert (told["job"], told["aliases"]) == ("acme/digits/seeded:v0", ["one", "latest"])
    assert told["metadata"]["item"] == run.id


def test_what_has_no_place_in_a_job_is_named(job_api: InMemoryApi, caplog: pytest.LogCaptureFixture) -> None:
    run = ended(job="train", queue_name="cpu", config={"overrides": {"run_config": {"lr": 0.5}, "working_dir": "."}})

    run.save_job()

    assert "not in the job: overrides.working_dir." in caplog.text


def test_item_that_waits_is_no_job_yet_nor_are_arguments_without_a_command(job_api: InMemoryApi) -> None:
    waiting = launch_add(job="box", queue_name="gpu")
    with pytest.raises(SpecError, match="only one that has ended"):
        waiting.save_job()
    with pytest.raises(SpecError, match="for which a job has no"):
        ended(job="box", queue_name="gpu", config={"overrides": {"args": ["-x"]}}).save_job()
