"""Deleting a job or a version, and its aliases: what goes, what stays, and what refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prefect_launch import create_job, launch_add
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.core.names import short_id
from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import make_api

Command = Callable[..., Result]
IMAGES = ("one", "two", "three")


@pytest.fixture
def api(tmp_path: Path) -> InMemoryApi:
    """A server with a job `web` of three versions: `v0`, `v1` with the alias `best`, and `v2`."""
    api = make_api(tmp_path)
    for image in IMAGES:
        create_job(image, "image", name="web", api=api, aliases=["best"] if image == "two" else [])
    return api


@pytest.fixture
def command(api: InMemoryApi) -> Command:
    def run(*arguments: str) -> Result:
        with use_api(api):
            return CliRunner().invoke(app, ["job", *arguments], env={"COLUMNS": "80"})

    return run


def versions(api: InMemoryApi) -> dict[str, str | None]:
    """The image of each version and alias that there is."""
    found = {}
    for name in ("v0", "v1", "v2", "v3", "best", "latest"):
        try:
            found[name] = api.job(f"web:{name}").image
        except NotFoundError:
            continue
    return found


def test_version_that_is_deleted_is_gone_with_its_aliases_and_the_others_stay(
    api: InMemoryApi, command: Command
) -> None:
    assert command("delete", "web:best").output == ("Deleted v1 of the job acme/digits/web, with the aliases best.\n")

    assert versions(api) == {"v0": "one", "v2": "three", "latest": "three"}
    (summary,) = [job for job in api.jobs() if job.name == "web"]
    assert (summary.version_count, summary.latest_version) == (2, 2)


def test_latest_means_the_highest_version_that_is_left_and_no_number_is_used_again(
    api: InMemoryApi, command: Command
) -> None:
    assert json.loads(command("delete", "web:v2", "--json").output) == {
        "path": "acme/digits/web",
        "versions": ["v2"],
        "aliases": [],
        "waiting": 0,
    }
    assert versions(api) == {"v0": "one", "v1": "two", "best": "two", "latest": "two"}

    assert create_job("three", "image", name="web", api=api).version == 3
    assert versions(api) == {"v0": "one", "v1": "two", "best": "two", "v3": "three", "latest": "three"}


def test_whole_job_is_deleted_and_made_anew_with_a_new_number(api: InMemoryApi, command: Command) -> None:
    assert "Deleted v0, v1, v2 of the job acme/digits/web, with the aliases best, latest." in command(
        "delete", "web"
    ).output.replace("\n", " ")

    assert versions(api) == {}
    assert [job.name for job in api.jobs()] == ["box", "train"]
    with pytest.raises(NotFoundError):
        api.delete_job("web")
    assert create_job("one", "image", name="web", api=api).version == 3


def test_job_that_waiting_items_name_is_deleted_only_by_force(api: InMemoryApi, command: Command) -> None:
    with use_api(api):
        run = launch_add(job="web:best", queue_name="gpu")
        launch_add(job="box", queue_name="gpu")
    for name in ("web", "web:v1"):
        refused = command("delete", name)
        assert isinstance(refused.exception, LaunchError)
        assert f"The job {name!r} is named by 1 waiting item" in str(refused.exception)
        assert f"would fail: {run.name} ({short_id(run.id)})" in str(refused.exception)
    assert "v1" in versions(api)
    assert command("delete", "web:v0").exit_code == 0

    forced = command("delete", "web", "--force")

    assert "Items that wait for it: 1. An agent without a copy of the job fails them." in forced.output
    assert versions(api) == {}


def test_alias_is_pointed_to_a_version_and_deleted(api: InMemoryApi, command: Command) -> None:
    assert command("alias", "web:v0", "best").output == "best means acme/digits/web:v0 now.\n"
    assert versions(api)["best"] == "one"

    assert command("alias", "web", "best", "--delete").output == "The job acme/digits/web has no alias best any more.\n"
    assert set(versions(api)) == {"v0", "v1", "v2", "latest"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("web:v0", "latest"), InvalidNameError),
        (("web:v0", "v7"), InvalidNameError),
        (("web:v9", "good"), NotFoundError),
        (("web", "latest", "--delete"), InvalidNameError),
        (("web", "worst", "--delete"), NotFoundError),
    ],
)
def test_alias_that_cannot_be_changed_is_refused(
    api: InMemoryApi, command: Command, arguments: tuple[str, ...], error: type[Exception]
) -> None:
    was = versions(api)
    assert isinstance(command("alias", *arguments).exception, error)
    assert versions(api) == was
