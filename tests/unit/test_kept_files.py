"""`keep` of a job: on the command line, in its document, in its runs, and refused where it has no effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefect_launch import create_job, launch_add
from prefect_launch.cli.main import app
from prefect_launch.errors import SpecError
from prefect_launch.testing import InMemoryApi


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "main.py").write_text("pass")
    return tmp_path / "beside"


def test_patterns_are_of_the_job_and_a_job_without_has_the_digest_that_it_always_had(
    job_api: InMemoryApi, code: Path
) -> None:
    plain = create_job(code, "code", name="plain", runtime="3.11", entrypoint="python main.py")
    create = ["job", "create", "code", str(code), "-n", "keeps", "-r", "3.11", "-E", "python main.py"]

    made = CliRunner().invoke(app, [*create, "--keep", "checkpoints/**", "--keep", "*.csv", "--json"])

    assert json.loads(made.stdout)["keep"] == ["checkpoints/**", "*.csv"]
    assert job_api.job("keeps").document.keep == ("checkpoints/**", "*.csv")
    assert "keep         checkpoints/**, *.csv\n" in CliRunner().invoke(app, ["job", "describe", "keeps"]).stdout
    assert json.loads(CliRunner().invoke(app, [*create, "--json"]).stdout)["digest"] == plain.digest
    assert b"keep" not in plain.document.dump()


@pytest.mark.parametrize("keep", [["!x"], [""], "*.pt"])
def test_keep_that_matches_nothing_or_is_no_list_is_refused(
    job_api: InMemoryApi, code: Path, keep: list[str] | str
) -> None:
    with pytest.raises(SpecError, match="keep"):
        create_job(code, "code", keep=keep)
    assert "keeps" not in [job.name for job in job_api.jobs()]


def test_image_job_has_no_code_folder_to_keep_files_of(job_api: InMemoryApi) -> None:
    with pytest.raises(SpecError, match=r"takes no keep \(\['\*.pt'\]\): it has no code folder"):
        create_job("busybox:1", "image", keep=["*.pt"])


def test_job_that_keeps_files_is_refused_on_a_queue_whose_runs_keep_none(job_api: InMemoryApi, code: Path) -> None:
    job_api.create_run_queue("box", "local-process")
    job_api.create_run_queue("cluster", "ray")
    create_job(code, "code", name="keeps", keep=["*.pt"], entrypoint="python main.py")

    with pytest.raises(
        SpecError, match=r"keeps:v0 keeps '\*.pt' of its code folder, which the resource 'ray' does not"
    ):
        launch_add(job="keeps", queue_name="cluster")
    with pytest.raises(SpecError, match=r"keeps '\*.pt' of its code folder, and an image job has none"):
        launch_add(job="keeps", queue_name="gpu", build=True)
    assert launch_add(job="keeps", queue_name="box").state == "queued"
