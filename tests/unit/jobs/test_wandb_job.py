"""What a run or a job of a W&B server becomes in our own store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from prefect_launch.client.wandb_job import draft_of_job, draft_of_run
from prefect_launch.errors import AgentConfigError, LaunchError, NotFoundError, SourceError, SpecError
from prefect_launch.jobs.archive import unpack
from prefect_launch.jobs.model import CodeJobSource, JobDraft, SourceKind
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.wandb_hosts import WandbSettings, run_address
from tests.support.git_repository import Repository
from tests.support.wandb_server import KEY, WandbServer

HOST = "wandb.example.com"
URI = f"https://{HOST}/team/digits/runs/abc"
SETTINGS = WandbSettings(hosts={HOST: "my-key"})
NOT_HERE = NotFoundError("Unknown job.")


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A W&B server."""
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    made = WandbServer()
    with respx.mock(assert_all_called=False) as router:
        router.post(f"https://{HOST}/graphql").mock(
            side_effect=lambda request: httpx.Response(200, json=made.graphql(request.content))
        )
        router.get(url__startswith=made.files_at).mock(
            side_effect=lambda request: httpx.Response(
                200, content=made.file(str(request.url).removeprefix(f"{made.files_at}/"))
            )
        )
        yield made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with a program in a folder."""
    made = Repository(tmp_path / "train")
    made.commit(train="print('one')\n")
    return made


async def _secret(name: str) -> str:
    return {"my-key": KEY}[name]


async def _of_run(**given: Any) -> JobDraft:
    address = run_address(URI)
    assert address is not None
    return await draft_of_run(
        address, given, _secret, settings=SETTINGS, git=Git(allowed_protocols=("file",), read_secret=_secret)
    )


async def _of_job(name: str = "team/digits/train:latest") -> JobDraft:
    git = Git(allowed_protocols=("file",), read_secret=_secret)
    return await draft_of_job(name, NOT_HERE, _secret, settings=SETTINGS, git=git)


def _metadata(repository: Repository | None = None, **more: Any) -> str:
    commit = repository and {"remote": repository.url, "commit": repository.git("rev-parse", "HEAD")}
    about = {"program": "/home/me/train/train.py", "codePath": "train.py", "python": "CPython 3.11.4", "git": commit}
    return json.dumps({**about, "args": ["--lr", "0.1"], **more})


async def _code(draft: JobDraft, folder: Path) -> dict[str, str]:
    source = draft.document.source
    assert isinstance(source, CodeJobSource)
    assert draft.code is not None
    await unpack(draft.code, folder, content_digest=source.content_digest, job="it")
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


async def test_run_of_a_commit_becomes_a_git_job_with_its_arguments_and_its_config_as_defaults(
    server: WandbServer, repository: Repository
) -> None:
    server.add_run("team/digits/abc", {"wandb-metadata.json": _metadata(repository)}, {"lr": 0.1, "net": {"depth": 3}})

    draft = await _of_run()

    assert (draft.entity, draft.project, draft.name) == ("team", "digits", "run-abc")
    assert draft.document.source_type is SourceKind.GIT
    assert draft.document.source.model_dump()["git"]["commit"] == repository.git("rev-parse", "HEAD")
    assert draft.document.source.entrypoint == ("python", "train.py", "--lr", "0.1")
    assert draft.document.runtime == "3.11"
    schema = (draft.document.input_schemas or {})["@wandb.config"]
    assert {name: each["default"] for name, each in schema["properties"].items()} == {"lr": 0.1, "net": {"depth": 3}}
    assert schema["additionalProperties"] is True
    assert draft.metadata["wandb"] == {"run": URI}


async def test_entity_project_and_command_of_the_call_win(server: WandbServer, repository: Repository) -> None:
    server.add_run("team/digits/abc", {"wandb-metadata.json": _metadata(repository)})

    draft = await _of_run(entity="me", project="mine", entrypoint=("python", "train.py", "--lr", "5"))

    assert (draft.entity, draft.project, draft.document.source.entrypoint[-1]) == ("me", "mine", "5")


async def test_repository_without_requirements_gets_those_of_the_run(
    server: WandbServer, repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed = "six==1.16.0\ntorch==2.1.0+cu118\n-e git+https://x/y\nmine @ file:///home/me/mine\n"
    files = {"wandb-metadata.json": _metadata(repository), "requirements.txt": installed}
    server.add_run("team/digits/abc", files)

    code = await _code(await _of_run(), tmp_path / "out")

    assert code == {"train.py": "print('one')\n", "requirements.frozen.txt": "six==1.16.0\ntorch==2.1.0\n"}
    assert "left out: -e git+https://x/y, mine @ file:///home/me/mine" in caplog.text

    (repository.path / "requirements.txt").write_text("six\n")
    repository.commit()
    server.add_run("team/digits/abc", {**files, "wandb-metadata.json": _metadata(repository)})
    assert (await _of_run()).document.source_type is SourceKind.GIT, "the repository says what it needs"


async def test_uncommitted_changes_of_a_run_are_applied_to_its_commit(
    server: WandbServer, repository: Repository, tmp_path: Path
) -> None:
    (repository.path / "train.py").write_text("print('two')\n")
    patch = repository.git("diff") + "\n"
    server.add_run("team/digits/abc", {"wandb-metadata.json": _metadata(repository), "diff.patch": patch})

    draft = await _of_run()

    assert await _code(draft, tmp_path / "out") == {"train.py": "print('two')\n"}
    assert draft.metadata["git"]["changed"] == [" M train.py"]


@pytest.mark.parametrize(
    "patch",
    [
        "--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-print('other')\n+print('x')\n",
        "--- /dev/null\n+++ b/../../up.py\n@@ -0,0 +1 @@\n+print('x')\n",
        "no patch",
    ],
    ids=["of another commit", "out of the folder", "no patch"],
)
async def test_changes_that_do_not_apply_are_refused(server: WandbServer, repository: Repository, patch: str) -> None:
    server.add_run("team/digits/abc", {"wandb-metadata.json": _metadata(repository), "diff.patch": patch})

    with pytest.raises(SourceError, match=r"ran with uncommitted changes .* which do not apply to its commit"):
        await _of_run()


async def test_run_without_git_takes_the_code_that_it_has_saved(server: WandbServer, tmp_path: Path) -> None:
    files = {"wandb-metadata.json": _metadata(), "code/train.py": "print(1)", "code/lib/a.py": "", "output.log": "x"}
    server.add_run("team/digits/abc", files)

    draft = await _of_run()

    assert draft.document.source.entrypoint == ("python", "train.py", "--lr", "0.1")
    assert await _code(draft, tmp_path / "out") == {"train.py": "print(1)", "lib/a.py": ""}


async def test_run_of_an_image_alone_becomes_an_image_job(server: WandbServer) -> None:
    metadata = _metadata(docker="team/train:1.2", program="<python with no main file>", codePath=None)
    server.add_run("team/digits/abc", {"wandb-metadata.json": metadata})

    assert (await _of_run()).document.source.model_dump() == {"image": "team/train:1.2", "entrypoint": ()}


async def test_program_that_was_started_as_a_module_is_started_so(server: WandbServer, repository: Repository) -> None:
    server.add_run("team/digits/abc", {"wandb-metadata.json": _metadata(repository, program="-m train")})

    assert (await _of_run()).document.source.entrypoint == ("python", "-m", "train", "--lr", "0.1")


REFUSED: dict[str, tuple[dict[str, str], type[LaunchError], str]] = {
    "no metadata": ({}, SourceError, "has no wandb-metadata.json"),
    "no JSON": ({"wandb-metadata.json": "{"}, SourceError, "is no JSON"),
    "another form": ({"wandb-metadata.json": '{"args": 3}'}, SourceError, "cannot be read: args"),
    "no code": ({"wandb-metadata.json": _metadata()}, SourceError, "neither a git remote with a commit, nor an image"),
    "a notebook without code": (
        {"wandb-metadata.json": _metadata(program="<python with no main file>", codePath=None)},
        SourceError,
        "which is no file of a repository.*job create code FOLDER",
    ),
    "a remote that is refused": (
        {"wandb-metadata.json": _metadata(git={"remote": "ext::sh -c id", "commit": "1" * 40})},
        SourceError,
        "The W&B run https.* cannot be repeated. Refusing to fetch git remote",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_run_that_cannot_be_repeated_says_why_and_what_next(server: WandbServer, case: str) -> None:
    files, error, words = REFUSED[case]
    server.add_run("team/digits/abc", files)

    with pytest.raises(error, match=words):
        await _of_run()


async def test_commit_that_was_never_pushed_is_told(server: WandbServer, repository: Repository) -> None:
    metadata = _metadata(git={"remote": repository.url, "commit": "1" * 40})
    server.add_run("team/digits/abc", {"wandb-metadata.json": metadata})

    with pytest.raises(NotFoundError, match=r"Unknown branch, tag or commit .* never pushed, push it"):
        await _of_run()


async def test_config_that_cannot_be_stored_is_left_out(
    server: WandbServer, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    server.add_run("team/digits/abc", {"wandb-metadata.json": _metadata(repository)}, {"big": 2**70, "lr": 1})

    schema = ((await _of_run()).document.input_schemas or {})["@wandb.config"]

    assert list(schema["properties"]) == ["lr"]
    assert "these cannot be stored, and are left out: big" in caplog.text


# --- jobs ---


async def test_git_job_keeps_its_commit_command_and_python(server: WandbServer, repository: Repository) -> None:
    git = {"remote": repository.url, "commit": repository.git("rev-parse", "HEAD")}
    source = {"git": git, "entrypoint": ["/usr/bin/python3.10", "train.py"], "notebook": False}
    document = {"_version": "v0", "source_type": "repo", "source": source, "runtime": "3.10.2"}
    server.add_artifact("team/digits/train", {"wandb-job.json": json.dumps(document)})

    draft = await _of_job()

    assert (draft.entity, draft.project, draft.name) == ("team", "digits", "train-wandb")
    assert draft.document.source.entrypoint == ("python", "train.py")
    assert draft.document.runtime == "3.10"
    assert draft.metadata["wandb"] == {"host": HOST, "job": "team/digits/train:latest"}


async def test_code_job_takes_the_artifact_that_it_names(server: WandbServer, tmp_path: Path) -> None:
    code = server.add_artifact("team/digits/code", {"train.py": "print(1)", "lib/a.py": ""})
    source = {"artifact": f"wandb-artifact://_id/{code.id}", "entrypoint": ["python", "train.py"]}
    document = json.dumps({"source_type": "artifact", "source": source})
    files = {"wandb-job.json": document, "requirements.frozen.txt": "six==1.16.0\n"}
    server.add_artifact("team/digits/train", files)

    taken = await _code(await _of_job("team/digits/train:v0"), tmp_path / "out")

    assert taken == {"train.py": "print(1)", "lib/a.py": "", "requirements.frozen.txt": "six==1.16.0\n"}


async def test_image_job_keeps_its_image(server: WandbServer) -> None:
    document = {"source_type": "image", "source": {"image": "team/train:1.2"}, "runtime": "3.9"}
    server.add_artifact("team/digits/train", {"wandb-job.json": json.dumps(document)})

    assert (await _of_job()).document.source.model_dump() == {"image": "team/train:1.2", "entrypoint": ()}


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"model.pt": ""}, SourceError, "has no wandb-job.json: it is no job"),
        ({"wandb-job.json": '{"source": {}}'}, SourceError, "neither a git commit, nor a code artifact, nor an image"),
        (
            {"wandb-job.json": '{"source": {"image": "x"}, "services": {"db": "always"}}'},
            SpecError,
            r"needs the services \['db'\]",
        ),
        (
            {"wandb-job.json": '{"source": {"artifact": "wandb-artifact://_id/gone", "entrypoint": ["a.py"]}}'},
            NotFoundError,
            "artifact of the id 'gone': it may be deleted",
        ),
    ],
)
async def test_job_that_cannot_be_taken_over_says_why(
    server: WandbServer, files: dict[str, str], error: type[LaunchError], words: str
) -> None:
    server.add_artifact("team/digits/train", files)

    with pytest.raises(error, match=words):
        await _of_job()


async def test_name_is_looked_for_on_each_listed_server_and_the_error_names_all_places(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = WandbSettings(hosts={HOST: "my-key", "wandb.ai": None})
    with pytest.raises(NotFoundError, match=f"^Unknown job. The W&B server '{HOST}' has no artifact a/b/c:v3;"):
        await _of_job("a/b/c:v3")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(
        AgentConfigError, match=f"^Unknown job.*'{HOST}' has no.*no API key of the W&B server 'wandb.ai'"
    ):
        await draft_of_job("a/b/c:v3", NOT_HERE, _secret, settings=both)


@pytest.mark.parametrize(("name", "settings"), [("train", SETTINGS), ("a/b/c", WandbSettings())])
async def test_short_name_and_a_machine_without_servers_ask_nobody(
    server: WandbServer, name: str, settings: WandbSettings
) -> None:
    with pytest.raises(NotFoundError) as refused:
        await draft_of_job(name, NOT_HERE, _secret, settings=settings)
    assert refused.value is NOT_HERE
    assert server.queries == []


# --- which servers ---


@pytest.mark.parametrize(
    ("uri", "host", "run_id"),
    [
        ("https://wandb.ai/team/digits/runs/abc?nw=x", "wandb.ai", "abc"),
        ("https://api.wandb.ai/team/digits/runs/abc/overview", "wandb.ai", "abc"),
        ("https://W.example.com:443/team/my%20digits/runs/abc/", "w.example.com", "abc"),
        ("http://localhost:8080/team/digits/runs/abc", "http://localhost:8080", "abc"),
        ("https://wandb.ai@evil.example/team/digits/runs/abc", "evil.example", "abc"),
        ("https://wandb.ai/team/digits/sweeps/abc", None, None),
        ("git@wandb.ai:team/digits/runs/abc", None, None),
    ],
)
def test_address_of_a_run_names_its_host(uri: str, host: str | None, run_id: str | None) -> None:
    found = run_address(uri)
    assert (found and found.host, found and found.run_id) == (host, run_id)


async def test_key_is_read_for_a_listed_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WandbSettings(hosts={"api.wandb.ai": None, "W.example.com": "my-key"})
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(AgentConfigError, match=r"no API key .* 'wandb\.ai' in the variable WANDB_API_KEY"):
        await settings.key_of("wandb.ai", _secret)
    monkeypatch.setenv("WANDB_API_KEY", "env-key")

    keys = [(await settings.key_of(host, _secret)).get_secret_value() for host in ("wandb.ai", "w.example.com")]

    assert keys == ["env-key", KEY]
    for other in ("evil.example", "http://w.example.com", "w.example.com:8443"):
        with pytest.raises(AgentConfigError, match=r"lists wandb\.ai, w\.example\.com\. If you trust it"):
            await settings.key_of(other, _secret)


@pytest.mark.parametrize("host", ["https://wandb.ai", "wandb.ai/team", "user@wandb.ai", ""])
def test_entry_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="must be a host or host:port"):
        WandbSettings(hosts={host: None})
