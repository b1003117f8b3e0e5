"""`launch_add(uri=…)`: a job is made of a repository, or found, and queued; a refused call leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import LaunchAgent, create_job, explain_launch, launch_add, launch_add_many
from prefect_launch.cli.main import run
from prefect_launch.client.api import use_api
from prefect_launch.errors import InfrastructureError, LaunchError, NotFoundError, SourceError, SpecError
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items, make_api
from tests.support.git_repository import Repository
from tests.support.git_server import GitServer

ENTRY = ["python", "main.py"]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InMemoryApi]:
    """A server in memory with the queues `cpu` and `gpu`."""
    with use_api(make_api(tmp_path)) as made:
        yield made


@pytest.fixture
def repository(git_host: GitServer) -> Repository:
    """A repository on an open host."""
    git_host.password = None
    made = git_host.repository("team/train")
    made.commit(main="print('one')", other="print('other')")
    return made


@pytest.fixture
def uri(git_host: GitServer, repository: Repository) -> str:
    """Its address."""
    return git_host.url("team/train")


def _jobs(api: InMemoryApi) -> list[str]:
    return sorted(f"{job.path}:v{job.latest_version}" for job in api.jobs())


def test_uri_is_pinned_to_its_commit_and_queued_as_a_job(api: InMemoryApi, repository: Repository, uri: str) -> None:
    run = launch_add(uri=uri, queue_name="cpu", entry_point=ENTRY, version="main")

    (item,) = items(api)
    job = api.job(item.parameters["job"])
    commit = repository.git("rev-parse", "HEAD")
    assert item.parameters["job"] == "acme/digits/job-team-train:v0"
    assert item.parameters["git"] == {"repo": uri, "version": commit}
    assert "uri" not in item.parameters
    assert job.document.source.model_dump()["git"] == {"remote": uri, "commit": commit}
    assert job.entry_point == tuple(ENTRY)
    assert run.name.startswith("job-team-train-")


def test_project_of_a_repository_runs_in_its_folder_with_its_requirements(
    api: InMemoryApi, repository: Repository, uri: str, tmp_path: Path
) -> None:
    project = repository.path / "services" / "train"
    project.mkdir(parents=True)
    (project / "requirements.txt").write_text("six\n")
    (project / "run.py").write_text("import os, six; print(os.path.basename(os.getcwd()), six.__name__)")
    (repository.path / "requirements.txt").write_text("no-such-package-of-anybody\n")
    repository.commit()
    create_job(uri, "git", name="part", entrypoint="python run.py", build_context="services/train", api=api)
    with pytest.raises(SourceError, match=r"Unknown entry point file 'main\.py' in the build context"):
        create_job(uri, "git", name="top", entrypoint="python main.py", build_context="services/train", api=api)

    run = launch_add(job="part", queue_name="cpu")
    agent = LaunchAgent(api, {"queues": ["cpu"], "name": "box", "home": tmp_path / "home"})
    asyncio.run(agent.loop(until_empty=True))

    assert run.state == "completed", run.message
    assert "train six" in "\n".join(line.message for line in run.logs())


def test_job_of_a_uri_gets_the_name_the_folder_and_the_base_image_that_are_given_with_it(
    api: InMemoryApi, repository: Repository, uri: str
) -> None:
    (repository.path / "part").mkdir()
    (repository.path / "part" / "run.py").write_text("print('part')")
    repository.commit()
    given = ["add", "-u", uri, "-E", "python run.py", "-q", "gpu", "--build-context", "part"]

    assert run([*given, "-B", "python:3.12-slim", "-J", "mine"]) == 0
    assert run(given) == 0

    mine, other = (api.job(item.parameters["job"]) for item in sorted(items(api), key=lambda item: item.name)[::-1])
    assert (mine.name, mine.build_context, mine.base_image) == ("mine", "part", "python:3.12-slim")
    assert (other.name, other.build_context, other.base_image) == ("job-team-train", "part", None)


def test_same_uri_finds_the_job_that_it_made_and_another_commit_or_entry_point_makes_a_version(
    api: InMemoryApi, repository: Repository, uri: str
) -> None:
    def queue(**more: Any) -> str:
        run = launch_add(uri=uri, queue_name="cpu", **{"entry_point": ENTRY, **more})
        return str(run.item.parameters["job"]).rpartition(":")[2]

    first = repository.git("rev-parse", "HEAD")
    assert [queue(), queue(version="main"), queue(version=first[:10])] == ["v0", "v0", "v0"]
    assert queue(entry_point=["python", "other.py"]) == "v1"
    repository.commit(main="print('two')")
    assert queue() == "v2"
    assert [queue(version=first), queue(entry_point=["python", "other.py"], version=first)] == ["v0", "v1"]
    assert "acme/digits/job-team-train:v2" in _jobs(api)


def test_job_of_a_uri_belongs_to_the_entity_and_project_of_the_call(api: InMemoryApi, uri: str) -> None:
    launch_add(uri=uri, queue_name="cpu", entity="other", project="vision")

    (item,) = items(api)
    assert item.parameters["job"] == "other/vision/job-team-train:v0"


REFUSED: dict[str, tuple[dict[str, Any], type[LaunchError], str]] = {
    "queue": ({"queue_name": "cpuu"}, NotFoundError, "Did you mean 'cpu'"),
    "branch": ({"version": "mian"}, NotFoundError, "Did you mean 'main'"),
    "commit": ({"version": "1" * 40}, NotFoundError, "Unknown branch, tag or commit"),
    "option-like ref": ({"version": "--upload-pack=touch x"}, NotFoundError, "Unknown branch"),
    "file": ({"entry_point": ["python", "mian.py"]}, SourceError, r"'mian.py' in https.*Did you mean 'main.py'"),
    "resource": ({"resource": "local-container"}, SpecError, "runs its items on 'local-process'"),
    "options": ({"resource_args": {"local-process": {"nicee": 1}}}, LaunchError, "nicee"),
    "variable": ({"template_variables": {"gpu": 1}}, NotFoundError, "gpu"),
    "priority": ({"priority": 9}, SpecError, "Invalid priority"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_uri_leaves_neither_item_nor_job(api: InMemoryApi, uri: str, case: str) -> None:
    given, error, words = REFUSED[case]
    before = _jobs(api)

    with pytest.raises(error, match=words):
        launch_add(**{"uri": uri, "queue_name": "cpu", "entry_point": ENTRY, **given})

    assert items(api) == []
    assert _jobs(api) == before


def test_run_id_that_is_taken_is_refused_before_a_job_is_made(api: InMemoryApi, uri: str) -> None:
    launch_add(job="box", queue_name="gpu", run_id="mine")
    before = _jobs(api)

    with pytest.raises(SpecError, match="run_id 'mine' is taken"):
        launch_add(uri=uri, queue_name="cpu", run_id="mine")
    assert _jobs(api) == before


def test_same_uri_under_the_same_run_id_gives_the_same_item(api: InMemoryApi, uri: str) -> None:
    first = launch_add(uri=uri, queue_name="cpu", run_id="mine")

    assert launch_add(uri=uri, queue_name="cpu", run_id="mine").id == first.id
    assert len(items(api)) == 1


def test_list_asks_a_remote_once_and_makes_no_job_when_one_of_its_specs_is_refused(
    api: InMemoryApi, git_host: GitServer, uri: str
) -> None:
    before = _jobs(api)
    with pytest.raises(NotFoundError):
        launch_add_many([{"uri": uri}, {"job": "no-such"}], "cpu", api=api)
    assert _jobs(api) == before

    git_host.asked.clear()
    runs = launch_add_many([{"uri": uri, "overrides": {"run_config": {"seed": n}}} for n in range(20)], "cpu", api=api)

    assert {run.item.parameters["job"] for run in runs} == {"acme/digits/job-team-train:v0"}
    assert len(git_host.asked) < 10


def test_explanation_tells_the_job_that_would_be_made_and_makes_none(api: InMemoryApi, uri: str) -> None:
    before = _jobs(api)

    told = explain_launch(uri=uri, queue_name="cpu", entry_point=ENTRY)

    assert (told.job, told.parameters["git"]["repo"]) == ("acme/digits/job-team-train:v0", uri)
    assert told.creates["command"] == ENTRY
    assert (_jobs(api), items(api)) == (before, [])
    assert launch_add(uri=uri, queue_name="cpu", entry_point=ENTRY).item.parameters["job"] == told.job


def test_host_that_does_not_answer_is_no_fault_of_the_submitter(api: InMemoryApi) -> None:
    with pytest.raises(InfrastructureError, match="Look at the network"):
        launch_add(uri="https://127.0.0.1:1/team/train", queue_name="cpu")
    assert items(api) == []
