"""Jobs as the command line shows them."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from prefect_launch import create_job
from prefect_launch.cli.job import input_rows
from prefect_launch.cli.main import app
from prefect_launch.testing import InMemoryApi


def test_job_with_a_dockerfile_is_shown_with_it_and_with_whose_command_it_runs(
    job_api: InMemoryApi, tmp_path: Path
) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile.train").write_text("FROM busybox\nCMD date\n")
    create_job(str(tmp_path), "code", name="built", build_context="docker", dockerfile="Dockerfile.train")

    shown = CliRunner().invoke(app, ["job", "show", "built"]).stdout

    rows = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (rows["Dockerfile"], rows["context"], rows["entry"]) == (
        "Dockerfile.train",
        "docker",
        "point  the image's own",
    )


def test_input_is_shown_with_its_meaning_and_its_rules_in_words() -> None:
    rate = {"type": "number", "default": 0.1, "description": "Step size.", "exclusiveMinimum": 0, "maximum": 1}
    kind = {"type": "string", "enum": ["cosine", "linear"]}
    schema = {"properties": {"lr": rate, "schedule": {"properties": {"kind": kind}, "required": ["kind"]}, "free": {}}}

    assert list(input_rows(schema)) == [
        ("lr", "number", "0.1", "Step size; at most 1; above 0"),
        ("schedule.kind", "string", "required", "one of cosine, linear"),
        ("free", "any", "", ""),
    ]
