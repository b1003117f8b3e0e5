"""Files and folders that an item names and its job's code does not have: refused at the queue, or else on the agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefect_launch import create_job, explain_launch, launch_add, launch_add_many
from prefect_launch.cli.main import app
from prefect_launch.client.create_job import JobRequest, create_in, draft_job
from prefect_launch.errors import SourceError, SpecError, SubmitterError
from prefect_launch.jobs.model import MAX_LISTING_BYTES, CodeListing
from prefect_launch.planning.plan import Request, local_config, make_plan
from prefect_launch.queues.session import Session
from prefect_launch.runners.base import RunPlan
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.sources.git_command import Git
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items
from tests.support.git_repository import Repository

REFUSED: list[tuple[str, dict[str, Any], type[SubmitterError], str]] = [
    ("cpu", {"entry_point": ["python", "trian.py"]}, SourceError, "entry point file 'trian.py'.*mean 'train.py'"),
    ("cpu", {"entry_point": ["python", "../train.py"]}, SourceError, r"entry point file '\.\./train.py'"),
    ("cpu", {"working_dir": "srcc"}, SpecError, "working directory 'srcc'.*Did you mean 'src'"),
    ("cpu", {"working_dir": "/tmp"}, SpecError, "working directory '/tmp'"),
    ("cpu", {"working_dir": ".."}, SpecError, r"working directory '\.\.'"),
    ("cpu", {"working_dir": "conf"}, SourceError, "'train.py' in the working directory 'conf'"),
    ("cpu", {"files": {"conf/modle.yaml": {"a": 1}}}, SourceError, "file 'conf/modle.yaml'.*mean 'conf/model.yaml'"),
    ("gpu", {"entry_point": ["python", "trian.py"]}, SourceError, "mean 'train.py'"),
    ("gpu", {"working_dir": "srcc"}, SpecError, "Did you mean 'src'"),
    ("gpu", {"dockerfile": "Dockerfil"}, SourceError, "Unknown Dockerfile 'Dockerfil'.*Did you mean 'Dockerfile'"),
]
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("cpu", {"entry_point": ["python", "./src/inner.py", "nope.py"]}),
    ("cpu", {"entry_point": ["python", "-m", "trian"]}),
    ("cpu", {"entry_point": ["bash", "-c", "trian.sh"]}),
    ("cpu", {"entry_point": ["python", "/opt/trian.py"]}),
    ("cpu", {"entry_point": ["python", "linked/inner.py"]}),
    ("cpu", {"entry_point": ["python", "inner.py"], "working_dir": "src"}),
    ("cpu", {"entry_point": ["python", "../train.py"], "working_dir": "src"}),
    ("cpu", {"files": {"conf/model.yaml": {"a": 1}}}),
    ("gpu", {"entry_point": ["python", "-m", "trian"], "working_dir": "/data"}),
    ("gpu", {"dockerfile": "Dockerfile", "working_dir": "anywhere"}),
]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for path in ("train.py", "src/inner.py", "conf/model.yaml", "Dockerfile"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")
    (folder / "linked").symlink_to("src")
    return folder


@pytest.fixture
def api(job_api: InMemoryApi, code: Path) -> InMemoryApi:
    create_job(str(code), "code", name="project", entrypoint="python train.py", api=job_api)
    return job_api


def put_without_listing(api: InMemoryApi, code: Path) -> None:
    """Store the job as an earlier version of this library did."""

    async def put(session: Session) -> None:
        draft, _ = await draft_job(
            JobRequest(path=str(code), job_type="code", name="old", entrypoint=("python", "train.py"))
        )
        await session.jobs.put(replace(draft, listing=None))

    api.call(put)


def planned(api: InMemoryApi, spec: LaunchSpec, home: Path) -> RunPlan:
    """Plan a run as an agent does, which has the code."""
    request = Request(spec=spec, item_id="item", config=local_config("local-process"))
    return api.call(lambda session: make_plan(request, MachineSettings(home=home), session.jobs, session.read_secret))


@pytest.mark.parametrize("entry", [launch_add, explain_launch])
@pytest.mark.parametrize(("queue", "overrides", "error", "words"), REFUSED)
def test_file_or_folder_that_the_code_lacks_is_refused_and_nothing_is_queued(
    api: InMemoryApi,
    entry: Callable[..., Any],
    queue: str,
    overrides: dict[str, Any],
    error: type[SubmitterError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        entry(job="project", queue_name=queue, config={"overrides": overrides})
    assert items(api) == []


@pytest.mark.parametrize(("queue", "overrides"), TAKEN)
def test_what_the_code_has_or_only_the_run_can_tell_is_queued(
    api: InMemoryApi, queue: str, overrides: dict[str, Any]
) -> None:
    launch_add(job="project", queue_name=queue, config={"overrides": overrides})
    assert len(items(api)) == 1


def test_many_specs_with_one_bad_command_queue_nothing(api: InMemoryApi) -> None:
    good, bad = ({"job": "project", "overrides": {"entry_point": ["python", name]}} for name in ("train.py", "nope.py"))
    with pytest.raises(SourceError, match=r"'nope\.py'"):
        launch_add_many([good, bad], "cpu")
    assert items(api) == []


def test_command_line_refuses_a_misspelt_command_with_the_nearest(api: InMemoryApi) -> None:
    refused = CliRunner().invoke(app, ["add", "-j", "project", "-q", "cpu", "-E", "python trian.py"])
    assert isinstance(refused.exception, SourceError) or "Did you mean 'train.py'" in refused.output
    assert refused.exit_code != 0
    assert items(api) == []


@pytest.mark.parametrize(("queue", "overrides", "error", "words"), [row for row in REFUSED if row[0] == "cpu"])
def test_job_without_a_listing_is_queued_and_refused_by_the_agent_in_the_same_words(
    api: InMemoryApi,
    code: Path,
    tmp_path: Path,
    queue: str,
    overrides: dict[str, Any],
    error: type[SubmitterError],
    words: str,
) -> None:
    put_without_listing(api, code)
    launch_add(job="old", queue_name=queue, config={"overrides": overrides})
    (item,) = items(api)
    with pytest.raises(error, match=words):
        planned(api, parse_spec(item.parameters), tmp_path / "home")


def test_same_code_stored_again_keeps_its_version(api: InMemoryApi, code: Path) -> None:
    put_without_listing(api, code)
    again = create_job(str(code), "code", name="old", entrypoint="python train.py", api=api)
    assert again.version == 0


def test_job_of_very_much_code_is_stored_without_a_listing(api: InMemoryApi, code: Path) -> None:
    paths = tuple(f"data/{'x' * 100}/{number}.bin" for number in range(MAX_LISTING_BYTES // 100))

    async def listed(session: Session) -> CodeListing | None:
        draft, _ = await draft_job(
            JobRequest(path=str(code), job_type="code", name="big", entrypoint=("python", "train.py"))
        )
        put = await session.jobs.put(replace(draft, listing=CodeListing(files=paths)))
        return await session.jobs.list_code(put.job)

    assert api.call(listed) is None
    launch_add(job="big", queue_name="cpu", entry_point=["python", "nope.py"])


def test_path_that_is_no_utf_8_does_not_hinder_the_listing(api: InMemoryApi, code: Path) -> None:
    (code / "odd\udcff.py").write_text("")
    create_job(str(code), "code", name="odd", entrypoint="python train.py", api=api)
    with pytest.raises(SourceError, match=r"'nope\.py'"):
        launch_add(job="odd", queue_name="cpu", entry_point=["python", "nope.py"])


def test_git_job_is_checked_by_what_was_listed_when_it_was_made(api: InMemoryApi, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "remote")
    for option in ("allowFilter", "allowAnySHA1InWant"):
        repository.git("config", f"uploadpack.{option}", "true")
    repository.commit(main="1")
    request = JobRequest(path=repository.url, job_type="git", name="of-git", entrypoint=("python", "main.py"))
    api.call(lambda session: create_in(session.jobs, request, git=Git(allowed_protocols=("file",))))
    with pytest.raises(SourceError, match=r"'mian\.py'.*Did you mean 'main\.py'"):
        launch_add(job="of-git", queue_name="cpu", entry_point=["python", "mian.py"])
    with pytest.raises(SpecError, match="working directory 'src'"):
        launch_add(job="of-git", queue_name="cpu", config={"overrides": {"working_dir": "src"}})
    assert items(api) == []
    launch_add(job="of-git", queue_name="cpu", entry_point=["python", "main.py", "--fast"])
