"""From a folder of code to a run of its image, through a registry with a password, by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from tests.acceptance.conftest import Cli
from tests.support.docker_engine import DockerEngine
from tests.support.docker_registry import PASSWORD, USER, DockerRegistry
from tests.support.git_server import GitServer
from tests.support.images import PYTHON_IMAGE
from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine


@pytest.fixture
def machine(
    closed_registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: object
) -> None:
    """A machine whose operator has named the block of the registry, and what images are built on."""
    from prefect_docker.credentials import DockerRegistryCredentials
    from pydantic import SecretStr

    block = f"registry-{uuid4().hex[:8]}"
    DockerRegistryCredentials(
        username=USER, password=SecretStr(PASSWORD), registry_url=f"http://{closed_registry.host}"
    ).save(block)
    settings = {
        "builder": {"base_image": PYTHON_IMAGE},
        "registries": {closed_registry.host: {"credentials": block}},
    }
    folder = tmp_path / "user" / ".config" / "prefect-launch"
    folder.mkdir(parents=True)
    (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("machine", "python_image")
def test_code_is_built_pushed_queued_and_pulled_by_its_digest(
    launch_cli: Cli, engine: DockerEngine, closed_registry: DockerRegistry, tmp_path: Path
) -> None:
    name = f"built-{uuid4().hex[:8]}"
    repository = f"{closed_registry.host}/team/{name}"
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text("print('from the image')\n")
    launch_cli("queue", "create", name, "--resource", "local-container")
    launch_cli("job", "create", "code", str(code), "--name", name, "-E", "python main.py")

    added = launch_cli("add", "-j", name, "-q", name, "--build", "--repository", repository, "--json")

    assert f"Pushed {repository}@sha256:" in added.stderr
    item = json.loads(added.stdout)
    assert item["job"] == f"default/default/{name}-image:v0"
    assert f"{name}:v0" in launch_cli("job", "show", f"{name}-image").stdout
    client = engine.client()
    for image in client.images.list(repository, filters={"label": "prefect-launch.image"}):
        client.images.remove(image.id, force=True)
    client.close()
    agent = launch_cli("agent", "start", "-q", name, "--until-empty")
    assert launch_cli("item", "logs", item["id"]).stdout == "from the image\n"
    assert json.loads(launch_cli("item", "show", item["id"], "--json").stdout)["state"] == "completed"
    assert PASSWORD not in added.stdout + added.stderr + agent.stdout + agent.stderr


@pytest.mark.usefixtures("machine", "python_image")
def test_code_of_a_git_uri_is_explained_then_built_and_run_without_the_repository(
    launch_cli: Cli, closed_registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"git-{uuid4().hex[:8]}"
    repository = f"{closed_registry.host}/team/{name}"
    host = GitServer(tmp_path / "host")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(host.certificate))
    uri = host.url(f"team/{name}")
    try:
        commit = host.repository(f"team/{name}").commit(main="print('from git')")
        launch_cli("queue", "create", name, "--resource", "local-container")
        add = ("add", "-u", uri, "-E", "python main.py", "-q", name, "--build", "--repository", repository)
        told = launch_cli(*add, "--explain").stdout
        assert f"the code of default/default/job-team-{name}:v0, pushed to {repository}" in " ".join(told.split())
        assert name not in launch_cli("job", "list").stdout
        item = json.loads(launch_cli(*add, "--json").stdout)
    finally:
        host.stop()
    assert item["job"] == f"default/default/job-team-{name}-image:v0"
    described = launch_cli("job", "show", f"job-team-{name}-image", "--json").stdout
    assert f"{uri}@{commit}" in described
    launch_cli("agent", "start", "-q", name, "--until-empty")
    assert launch_cli("item", "logs", item["id"]).stdout == "from git\n"
    jobs = launch_cli("job", "list").stdout.split()
    assert [word for word in jobs if name in word] == [f"default/default/job-team-{name}-image"]


@pytest.mark.usefixtures("machine")
def test_build_without_a_queue_or_a_repository_is_refused(launch_cli: Cli, tmp_path: Path) -> None:
    name = f"built-{uuid4().hex[:8]}"
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text("")
    launch_cli("queue", "create", name, "--resource", "local-container")
    launch_cli("job", "create", "code", str(code), "--name", name, "-E", "python main.py")

    assert "without a queue" in launch_cli("add", "-j", name, "--build", code=1).stderr
    assert "Give repository" in launch_cli("add", "-j", name, "--build", "-q", name, code=1).stderr


def test_job_is_made_with_what_its_image_is_built_of(
    prefect_server: PrefectServerProcess, launch_cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile.train").write_text("FROM scratch\n")
    (tmp_path / "main.py").write_text("")
    name = f"image-{uuid4().hex[:8]}"
    job = ("job", "create", "code", str(tmp_path), "-E", "python main.py", "-n", name)
    refused = launch_cli(*job, "-b", "docker", "-D", "Dockerfile.tran", code=1).stderr
    assert "Unknown Dockerfile 'Dockerfile.tran'" in refused
    assert "Did you mean 'Dockerfile.train'?" in refused
    assert name not in launch_cli("job", "list").stdout
    made = json.loads(launch_cli(*job, "-b", "docker", "-D", "Dockerfile.train", "--json").stdout)
    assert "Dockerfile.train" in json.dumps(made)
    based = json.loads(launch_cli(*job, "-B", "team/base:1", "--json").stdout)
    assert "team/base:1" in json.dumps(based)
