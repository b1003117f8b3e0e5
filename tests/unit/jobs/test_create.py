"""Making jobs from images, folders and git: what is recorded, what is refused, and that nothing is left then."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.client import create_job as create
from prefect_launch.client.create_job import JobRequest, create_in
from prefect_launch.environments.requirements import read_requirements
from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError, SourceError, SpecError
from prefect_launch.jobs.model import JOB_FILE, GitJobSource, SourceKind
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.sources.fetch import fetch_code
from prefect_launch.sources.git_command import Git
from prefect_launch.testing import InMemoryServer
from tests.support.git_repository import Repository


def _request(path: object, job_type: str, **options: Any) -> JobRequest:
    """Return what `create_job` makes of its arguments."""
    unnamed = dict.fromkeys(("aliases", "runtime", "entrypoint", "schema", "services", *JobRequest.model_fields))
    made: JobRequest = create._request(**{**unnamed, "path": str(path), "job_type": job_type, **options})
    return made


@pytest.fixture(autouse=True)
def _log_of_jobs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the log of jobs come to the root logger, where a test looks: Prefect, once set up, keeps it to itself."""
    for name in ("prefect", "prefect.launch", "prefect.launch.jobs"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


# --- images ---


async def test_image_job_keeps_the_image_and_takes_its_tag_as_alias(registry: JobRegistry) -> None:
    job = (await create_in(registry, _request("host:5000/team/train:1.2", "image"))).job

    assert (job.name, job.image, job.kind) == ("job-host-5000-team-train", "host:5000/team/train:1.2", SourceKind.IMAGE)
    assert (await registry.resolve("job-host-5000-team-train:1.2")).version == 0
    assert job.entry_point == ()


async def test_image_tag_that_looks_like_a_version_becomes_no_alias(registry: JobRegistry) -> None:
    job = (await create_in(registry, _request("train:v7", "image", name="train"))).job

    assert job.aliases == ("latest",)


@pytest.mark.parametrize("image", ["", "UPPER/case", "a b", "-x", "name:tag:tag", "a//b", "x" * 600, "a:../b"])
async def test_image_name_that_is_none_is_refused(registry: JobRegistry, image: str) -> None:
    with pytest.raises(SpecError, match="Invalid image"):
        await create_in(registry, _request(image, "image"))


async def test_image_job_refuses_what_only_code_has(registry: JobRegistry) -> None:
    with pytest.raises(SpecError, match="takes no git_hash"):
        await create_in(registry, _request("train", "image", git_hash="main"))
    with pytest.raises(SpecError, match="takes no base_image"):
        await create_in(registry, _request("train", "image", base_image="python:3.12"))


# --- code ---


async def test_code_job_keeps_entry_point_runtime_schema_and_code(
    registry: JobRegistry, code: Path, tmp_path: Path
) -> None:
    (code / ".python-version").write_text("3.10.4\n")
    schema = {"properties": {"rate": {"type": "number", "default": 0.1}}}
    request = _request(code, "code", entrypoint="python main.py --name 'a b'", schema=schema, description="Digits")

    job = (await create_in(registry, request)).job
    await fetch_code(job, tmp_path / "out", registry, home=tmp_path)

    assert (job.name, job.description, job.runtime) == ("job-digits", "Digits", "3.10")
    assert job.entry_point == ("python", "main.py", "--name", "a b")
    rate = {"type": "number", "default": 0.1, "position": 0}
    assert job.schema == {"properties": {"rate": rate}, "type": "object", "additionalProperties": False}
    assert (tmp_path / "out" / "main.py").read_text() == "print('hello')\n"


async def test_runtime_is_the_argument_then_the_file_then_this_interpreter(registry: JobRegistry, code: Path) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"

    assert (await create_in(registry, _request(code, "code"))).job.runtime == here
    (code / ".python-version").write_text("3.10")
    assert (await create_in(registry, _request(code, "code"))).job.runtime == "3.10"
    (code / "runtime.txt").write_text("python-3.12.1")
    assert (await create_in(registry, _request(code, "code"))).job.runtime == "3.12"
    assert (await create_in(registry, _request(code, "code", runtime="3.13"))).job.runtime == "3.13"


@pytest.mark.parametrize("runtime", ["3", "2.7", "3.11.2", "python3", "3.x"])
async def test_runtime_of_another_form_is_refused(registry: JobRegistry, code: Path, runtime: str) -> None:
    with pytest.raises(SpecError, match=r"write the Python version as '3\.N'"):
        await create_in(registry, _request(code, "code", runtime=runtime))


async def test_entry_point_that_is_not_in_the_code_is_refused_with_the_nearest(
    registry: JobRegistry, code: Path
) -> None:
    with pytest.raises(SourceError, match=r"Unknown entry point file 'mian\.py' .* Did you mean 'main\.py'"):
        await create_in(registry, _request(code, "code", entrypoint="python mian.py"))
    (code / ".launchignore").write_text("main.py\n")
    with pytest.raises(SourceError, match=r"see whether \.launchignore"):
        await create_in(registry, _request(code, "code"))


async def test_entry_point_that_runs_a_module_or_a_program_is_taken(registry: JobRegistry, code: Path) -> None:
    for command in ("python -m digits.train", "make train", ["bash", "-c", "python other.py"], "python -u ./main.py"):
        await create_in(registry, _request(code, "code", entrypoint=command))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"six\n-r more.txt\n", r"requirements.txt:2 names the requirements file 'more.txt'"),
        (b"six\n-e ../other\n", r"requirements.txt:2 names '../other', which lies outside"),
        (b"six  # gr\xf6\xdfer\n", r"'requirements.txt' of the job cannot be read"),
        (b"six\nsix=1\n", r"requirements.txt:2: 'six=1' is no requirement"),
    ],
)
async def test_requirements_that_cannot_be_had_are_refused_when_the_job_is_made(
    registry: JobRegistry, server: InMemoryServer, code: Path, content: bytes, reason: str
) -> None:
    (code / "requirements.txt").write_bytes(content)
    (code / "more.txt").write_text("six\n")
    (code / ".launchignore").write_text("more.txt\n")

    with pytest.raises(SourceError, match=reason):
        await create_in(registry, _request(code, "code"))
    assert server.calls["create_variable"] == server.calls["write_variable"] == 0
    # A Dockerfile or a base image says what the code runs with.
    await create_in(registry, _request(code, "code", base_image="team/train:1"))


async def test_what_is_not_read_of_the_codes_files_is_said_when_the_job_is_made(
    registry: JobRegistry, code: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (code / "requirements.txt").rename(code / "poetry.lock")

    with caplog.at_level("WARNING"):
        await create_in(registry, _request(code, "code", entrypoint="python main.py"))
    assert [record.getMessage() for record in caplog.records] == [
        "poetry.lock is not read, and nothing is installed: export it to a requirements.txt, which is."
    ]


@pytest.mark.parametrize("kind", ["code", "git"])
async def test_what_a_job_installs_takes_the_place_of_its_codes_requirements(
    registry: JobRegistry, tmp_path: Path, kind: str
) -> None:
    repository = Repository(tmp_path / "remote")
    for path, text in {"part/req/train.txt": "six\n", "part/requirements.txt": "numpy\n", "part/main.py": ""}.items():
        (repository.path / path).parent.mkdir(parents=True, exist_ok=True)
        (repository.path / path).write_text(text)
    repository.commit()
    place = repository.url if kind == "git" else repository.path
    git = Git(allowed_protocols=("file",))
    install = ["-r req/train.txt", "toolz"]
    request = _request(place, kind, build_context="part", install=install)

    job = (await create_in(registry, request, git=git)).job
    await fetch_code(job, tmp_path / "out", registry, home=tmp_path / "home", git=git)

    found = read_requirements(tmp_path / "out" / "part")
    assert found.files[JOB_FILE].decode().splitlines() == [*install]
    assert set(found.files) == {JOB_FILE, "req/train.txt"}
    assert (job.install, found.notes) == (tuple(install), ())
    assert not (repository.path / "part" / JOB_FILE).exists()
    wrong = _request(place, kind, build_context="part", install=["-r requirements/tain.txt"])
    with pytest.raises(SourceError, match=r"launch\.txt:1 names the requirements file 'requirements/tain\.txt'"):
        await create_in(registry, wrong, git=git)


async def test_what_brings_its_own_environment_takes_no_install(registry: JobRegistry, code: Path) -> None:
    for option in ("dockerfile", "base_image"):
        with pytest.raises(SpecError, match=f"and {option} .'team/train:1'. brings its own"):
            await create_in(registry, _request(code, "code", install=["six"], **{option: "team/train:1"}))
    with pytest.raises(SpecError, match="An image job takes no install"):
        await create_in(registry, _request("train", "image", install=["six"]))


async def test_entry_point_may_lie_in_the_build_context(registry: JobRegistry, code: Path) -> None:
    (code / "image").mkdir()
    (code / "image" / "train.py").write_text("")
    (code / "image" / "Dockerfile").write_text("FROM python:3.12\n")
    options: dict[str, Any] = {"build_context": "image", "dockerfile": "Dockerfile", "base_image": "python:3.12"}

    job = (await create_in(registry, _request(code, "code", entrypoint="python train.py", **options))).job

    written = job.document.model_dump(by_alias=True, mode="json")
    assert written["_version"] == "0.17.0"
    assert {key: written["source"][key] for key in options} == options


async def test_command_of_a_dockerfiles_job_is_the_images_own_or_runs_a_file_that_it_may_copy_from_anywhere(
    registry: JobRegistry, code: Path
) -> None:
    (code / "trainer").mkdir()
    (code / "trainer" / "fit.py").write_text("")
    (code / "Dockerfile").write_text('FROM python:3.12\nCOPY trainer/ /app\nENTRYPOINT ["python", "/app/fit.py"]\n')

    own = (await create_in(registry, _request(code, "code", dockerfile="Dockerfile"))).job
    given = (await create_in(registry, _request(code, "code", dockerfile="Dockerfile", entrypoint="python fit.py"))).job

    assert (own.entry_point, given.entry_point) == ((), ("python", "fit.py"))
    with pytest.raises(SourceError, match=r"Known: main\.py, trainer/fit\.py"):
        await create_in(registry, _request(code, "code", dockerfile="Dockerfile", entrypoint="python fitt.py"))
    with pytest.raises(SourceError, match=r"Unknown entry point file 'fit\.py'"):
        await create_in(registry, _request(code, "code", entrypoint="python fit.py"))


async def test_entry_point_outside_of_the_build_context_is_refused(registry: JobRegistry, code: Path) -> None:
    (code / "services" / "train").mkdir(parents=True)
    (code / "services" / "train" / "run.py").write_text("")
    wrong = _request(code, "code", entrypoint="python services/train/run.py", build_context="services/train")

    with pytest.raises(SourceError, match=r"in the build context 'services/train' .* Known: run\.py"):
        await create_in(registry, wrong)


async def test_misspelt_build_context_is_reported_before_its_entry_point(registry: JobRegistry, code: Path) -> None:
    (code / "services" / "train").mkdir(parents=True)
    (code / "services" / "train" / "run.py").write_text("")
    wrong = _request(code, "code", entrypoint="python run.py", build_context="services/trian")

    said = r"Unknown build context 'services/trian' in .* Did you mean 'services/train'\?.* a folder of the job's code"
    with pytest.raises(SourceError, match=said):
        await create_in(registry, wrong)


async def test_python_of_the_build_context_comes_first(registry: JobRegistry, code: Path) -> None:
    (code / "inside").mkdir()
    (code / "inside" / "run.py").write_text("")
    (code / ".python-version").write_text("3.10\n")
    request = _request(code, "code", entrypoint="python run.py", build_context="inside")
    assert (await create_in(registry, request)).job.runtime == "3.10"
    (code / "inside" / ".python-version").write_text("3.12\n")
    assert (await create_in(registry, request)).job.runtime == "3.12"


async def test_folder_of_a_work_tree_records_commit_and_changes(registry: JobRegistry, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    commit = repository.commit(main="print(1)")
    repository.git("remote", "add", "origin", "https://me:token@example.com/team/repo")

    clean = (await create_in(registry, _request(repository.path, "code"))).job
    (repository.path / "main.py").write_text("print(2)")
    changed = (await create_in(registry, _request(repository.path, "code"))).job

    assert clean.metadata["git"] == {"commit": commit, "dirty": False, "remote": "https://example.com/team/repo"}
    (repository.path / "new file.py").write_text("")
    more = (await create_in(registry, _request(repository.path, "code"))).job

    told = changed.metadata["git"]
    assert (told["dirty"], told["changed"], told["changed_count"]) == (True, [" M main.py"], 1)
    assert more.metadata["git"]["changed"] == [" M main.py", "?? new file.py"]


async def test_same_folder_twice_makes_one_version_and_a_change_a_second(registry: JobRegistry, code: Path) -> None:
    first = await create_in(registry, _request(code, "code"))
    second = await create_in(registry, _request(code, "code", description="other words", aliases=["best"]))
    (code / "main.py").write_text("print('bye')\n")
    third = await create_in(registry, _request(code, "code"))

    assert [each.outcome.value for each in (first, second, third)] == ["Created", "No changes detected for", "Updated"]
    assert third.job.version == 1


# --- git ---


async def test_git_remote_that_is_refused_is_refused_before_git_is_run(registry: JobRegistry) -> None:
    for remote in ("file:///etc", "ext::sh -c x", "--upload-pack=x", "/srv/repo"):
        with pytest.raises(SourceError, match="Refusing to fetch git remote"):
            await create_in(registry, _request(remote, "git", entrypoint="python main.py"))


@pytest.mark.parametrize("gives_single_files", [True, False])
async def test_requirements_of_a_commit_are_looked_at_when_the_job_is_made(
    registry: JobRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture, gives_single_files: bool
) -> None:
    repository = Repository(tmp_path / "remote")
    for option in ("allowFilter", "allowAnySHA1InWant"):
        repository.git("config", f"uploadpack.{option}", str(gives_single_files).lower())
    (repository.path / "requirements.txt").write_bytes("-r reqs/base.txt\n-r other.txt\n".encode("utf-16"))
    (repository.path / "reqs").mkdir()
    (repository.path / "reqs/base.txt").write_text("six\n-e libs/common\n")
    (repository.path / "other.txt").write_text("six\n")
    (repository.path / "poetry.lock").write_text("")
    repository.commit(main="1")
    request, git = _request(repository.url, "git", entrypoint="python main.py"), Git(allowed_protocols=("file",))

    with pytest.raises(SourceError, match=r"reqs/base.txt:2 names 'libs/common', which is no file and no project"):
        await create_in(registry, request, git=git)
    (repository.path / "reqs/base.txt").write_text("six\n")
    repository.commit()
    await create_in(registry, request, git=git)
    assert "poetry.lock is not read" in caplog.text


async def test_link_of_a_commit_that_leaves_it_is_not_read(registry: JobRegistry, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret=1\n")
    repository = Repository(tmp_path / "remote")
    (repository.path / "requirements.txt").symlink_to(tmp_path / "secret")
    repository.commit(main="1")
    request = _request(repository.url, "git", entrypoint="python main.py")

    await create_in(registry, request, git=Git(allowed_protocols=("file",)))
    with pytest.raises(SourceError, match="lies outside"):
        read_requirements(repository.path)


async def test_git_entry_point_that_leaves_the_code_is_refused(registry: JobRegistry) -> None:
    with pytest.raises(SpecError, match=r"leaves the job's code with '\.\.'"):
        await create_in(registry, _request("https://example.com/d", "git", entrypoint="python ../main.py"))


async def test_forged_commit_that_is_an_option_is_no_commit() -> None:
    with pytest.raises(ValueError, match="commit"):
        GitJobSource.model_validate({"git": {"remote": "https://example.com/d", "commit": "--upload-pack=x"}})


# --- all kinds ---


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"job_type": "docker"}, SpecError),
        ({"path": "gone"}, SourceError),
        ({"name": "a/b"}, InvalidNameError),
        ({"name": "a..b"}, InvalidNameError),
        ({"name": "x" * 300}, InvalidNameError),
        ({"name": "a\x07b"}, InvalidNameError),
        ({"aliases": ["v1"]}, InvalidNameError),
        ({"aliases": "best"}, SpecError),
        ({"entrypoint": "python 'main.py"}, SpecError),
        ({"entrypoint": ""}, SpecError),
        ({"entrypoint": ["python", 3]}, SpecError),
        ({"build_context": "../x"}, SpecError),
        ({"dockerfile": "/etc/passwd"}, SpecError),
        ({"services": {"tensorboard": "sometimes"}}, SpecError),
        ({"schema": "nothing:Here"}, SpecError),
        ({"git_hash": "main"}, SpecError),
        ({"description": "half \ud800"}, SpecError),
        ({"entrypoint": ["python", "\ud800"]}, SpecError),
        ({"schema": {"type": "object", "properties": {"\ud800": {"type": "string"}}}}, SpecError),
    ],
)
async def test_bad_request_gives_one_clear_error_and_leaves_nothing(
    registry: JobRegistry, server: InMemoryServer, code: Path, options: dict[str, Any], error: type[LaunchError]
) -> None:
    given = dict(options)
    with pytest.raises(error):
        await create_in(registry, _request(given.pop("path", code), given.pop("job_type", "code"), **given))

    assert server.calls["create_variable"] == server.calls["write_variable"] == 0
    assert await registry.list() == []


async def test_unknown_job_type_is_answered_with_the_known_ones(registry: JobRegistry) -> None:
    with pytest.raises(SpecError, match=r"^Unknown job type 'imagee'. Did you mean 'image'.*code, git, image"):
        await create_in(registry, _request("train", "imagee"))


async def test_nothing_stored_yet_is_said_so(registry: JobRegistry) -> None:
    with pytest.raises(NotFoundError, match="There is no job yet"):
        await registry.resolve("train")


async def test_job_that_is_named_by_its_folder_is_told_its_whole_name(registry: JobRegistry, code: Path) -> None:
    made = await create_in(registry, _request(str(code), "code", entrypoint="python main.py"))
    assert made.job.name == "job-digits"
    with pytest.raises(NotFoundError, match=r"Unknown job 'digits'.*Did you mean 'job-digits'"):
        await registry.resolve("digits")
