"""Options under the names of W&B's command, which hands and scripts know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from prefect_launch import create_job
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.spec.item_parameters import spec_of
from prefect_launch.testing import InMemoryApi


@pytest.fixture
def api(tmp_path: Any) -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    variables = {"memory": {"type": "string", "enum": ["2g", "4g"], "default": "2g"}}
    api.create_run_queue("box", "local-container", config={"memory": "{{memory}}"}, template_variables=variables)
    (tmp_path / "main.py").write_text("print(1)\n")
    (tmp_path / "Dockerfile.big").write_text("FROM scratch\n")
    with use_api(api):
        create_job(str(tmp_path), "code", name="train", entrypoint=["python", "main.py"])
        yield api


def test_item_is_added_with_the_options_of_wandb_launch(api: InMemoryApi) -> None:
    given = ["add", "-j", "train", "-q", "box", "--set-var", "memory=4g", "-D", "Dockerfile.big"]
    result = CliRunner().invoke(app, given)

    assert result.exit_code == 0, result.output
    (run,) = api.items(queue="box")
    spec = spec_of(run.item)
    assert (spec.template_variables, spec.overrides.dockerfile) == ({"memory": "4g"}, "Dockerfile.big")


def test_git_version_is_the_git_ref(api: InMemoryApi) -> None:
    result = CliRunner().invoke(app, ["add", "-j", "train", "-q", "box", "--git-version", "v9"])

    assert "'v9'" in str(result.exception)


def test_run_that_returns_at_once_is_an_item_of_the_default_queue(api: InMemoryApi) -> None:
    result = CliRunner().invoke(app, ["run", "-j", "train", "--async", "--json"])

    (run,) = api.items(queue="default")
    assert json.loads(result.stdout)["id"] == run.id
    assert "prefect-launch agent start -q default" in result.stderr


def test_run_that_returns_at_once_takes_the_template_variables_of_the_default_queue(api: InMemoryApi) -> None:
    variables = {"memory": {"type": "string", "pattern": "^[0-9]g$"}}
    api.create_run_queue("default", "local-container", config={"memory": "{{memory}}"}, template_variables=variables)
    result = CliRunner().invoke(app, ["run", "-j", "train", "--async", "--set-var", "memory=4g"])

    assert result.exit_code == 0, result.output
    (run,) = api.items(queue="default")
    assert spec_of(run.item).template_variables == {"memory": "4g"}


def test_run_here_refuses_a_template_variable(api: InMemoryApi) -> None:
    result = CliRunner().invoke(app, ["run", "-j", "train", "--set-var", "memory=4g"])

    assert "'memory=4g' is one of a queue" in str(result.exception)
    assert not api.items()


def test_services_of_a_job_are_refused_with_the_next_step(api: InMemoryApi) -> None:
    result = CliRunner().invoke(app, ["job", "create", "image", "busybox", "-s", "tensorboard=always"])

    assert "nothing here starts additional services" in str(result.exception)
    assert "tensorboard" in str(result.exception)


@pytest.mark.parametrize("command", ["add", "run"])
def test_help_has_one_name_for_each_option(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).stdout

    assert "--template-variable" in shown
    assert "--repository" in shown
    assert "--set-var" not in shown
    assert "--git-version" not in shown
