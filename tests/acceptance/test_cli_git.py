"""From the address of a private repository to the log of its run, through the command line alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.git_server import USER, GitServer
from tests.support.prefect_server import PrefectServerProcess

PASSWORD = f"token-{uuid4().hex}"
TRAIN = """
import json, os, sys
print("seed", json.loads(os.environ["LAUNCH_CONFIG"])["seed"], "at", sys.argv[1:], flush=True)
print("token", any("token-" in value for value in os.environ.values()), flush=True)
"""


@pytest.fixture
def host(prefect_server: PrefectServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    """A private host, whose password is in a Secret block that the machine's settings name."""
    from prefect.blocks.system import Secret

    secret = f"git-{uuid4().hex[:8]}"
    Secret(value=PASSWORD).save(secret)
    server = GitServer(tmp_path / "host", password=PASSWORD)
    settings = {"credentials": {f"{server.host}/team": {"token": secret, "username": USER}}}
    (tmp_path / "git.yaml").write_text(json.dumps(settings))
    monkeypatch.setenv("PREFECT_LAUNCH_GIT_CONFIG", str(tmp_path / "git.yaml"))
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_SSL_CAINFO", str(server.certificate))
    yield server
    server.stop()


def test_private_repository_is_queued_by_its_uri_and_run_by_an_agent(
    launch_cli: Cli, host: GitServer, prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    name = f"git-{uuid4().hex[:8]}"
    repository = host.repository(f"team/{name}")
    commit = repository.commit(train=TRAIN)
    repository.git("tag", "v1.2")
    repository.commit(train="raise SystemExit('not this one')")
    launch_cli("queue", "create", name)

    def add(*options: str) -> dict[str, object]:
        more = ("-u", host.url(f"team/{name}"), "-g", "v1.2", "-q", name, "--set", "seed=7", "--json")
        added: dict[str, object] = json.loads(launch_cli("add", *more, *options).stdout)
        return added

    first = add("-E", "python train.py 'a b'")
    again = add("-E", "python train.py 'a b'")
    agent = launch_cli("agent", "start", "-q", name, "--until-empty")

    assert (first["job"], again["job"]) == (f"default/default/job-team-{name}:v0",) * 2
    for added in (first, again):
        assert launch_cli("item", "logs", str(added["id"])).stdout == "seed 7 at ['a b']\ntoken False\n"
        shown = json.loads(launch_cli("item", "show", str(added["id"]), "--json").stdout)
        assert shown["state"] == "completed"
    described = launch_cli("job", "show", f"job-team-{name}").stdout
    assert f"{host.url(f'team/{name}')} at {commit[:12]}" in described
    assert PASSWORD not in agent.stdout + agent.stderr
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_repository_runs_here_and_now_and_a_refused_one_leaves_no_job(launch_cli: Cli, host: GitServer) -> None:
    name = f"git-{uuid4().hex[:8]}"
    host.repository(f"team/{name}").commit(main="print('ran', 6 * 7)")
    url = host.url(f"team/{name}")

    refused = launch_cli("run", "-u", url, "-R", '{"local-process": {"nicee": 1}}', code=1)
    unknown = launch_cli("add", "-u", url, "-g", "mian", "-q", "default", code=1)
    stranger = launch_cli("add", "-u", url.replace("/team/", "/other/"), "-q", "default", code=1)
    jobs = launch_cli("job", "list", "--json").stdout
    done = launch_cli("run", "-u", url)

    assert "nicee" in refused.stderr
    assert "Did you mean 'main'" in unknown.stderr
    assert "does not let this machine in" in stranger.stderr
    assert name not in jobs
    assert "ran 42" in done.stdout


def test_notebook_runs_from_a_folder_and_from_a_repository(launch_cli: Cli, host: GitServer, tmp_path: Path) -> None:
    cells = ["%matplotlib inline\nimport json, os", "!nvidia-smi\nconfig = json.loads(os.environ['LAUNCH_CONFIG'])"]
    cells += ["%%time\nfor epoch in range(config['epochs']):\n    print('epoch', epoch)"]
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [
            {"cell_type": "code", "metadata": {}, "source": cell, "outputs": [], "execution_count": None}
            for cell in cells
        ],
    }
    name = f"book-{uuid4().hex[:8]}"
    repository = host.repository(f"team/{name}")
    (repository.path / "train.ipynb").write_text(json.dumps(notebook))
    repository.commit()

    launch_cli("job", "create", "code", str(repository.path), "-n", name, "-E", "train.ipynb")
    from_folder = launch_cli("run", "-j", name, "--set", "epochs=2").stdout
    from_git = launch_cli("run", "-u", host.url(f"team/{name}"), "-E", "train.ipynb", "--set", "epochs=2").stdout

    assert "left out of the notebook: !nvidia-smi\nepoch 0\nepoch 1\n" in from_folder
    assert from_git == from_folder


STRANGERS = {
    "requirements.txt": "a-package-that-nobody-has-published\n",
    "requirements/train.txt": "six==1.17.0\nclip @ git+{clip}@v1\n",
    "setup.py": "from setuptools import setup\n\nsetup(name='waves', version='1', py_modules=['waves'])\n",
    "waves.py": "HEIGHT = 3\n",
    "scripts/train.py": """
import pathlib, sys
import clip, six, waves
top = next(folder for folder in pathlib.Path(__file__).resolve().parents if (folder / ".git").exists())
sys.path.append(str(top / "inner"))
import points
print(waves.HEIGHT, clip.NAME, points.POINTS, six.__version__, *sys.argv[1:])
""",
}


def test_strangers_repository_with_a_submodule_runs_with_what_its_readme_installs(
    prefect_server: PrefectServerProcess, launch_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"waves-{uuid4().hex[:8]}"
    host = GitServer(tmp_path / "host")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(host.certificate))
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    clip, inner, outer = (host.repository(f"team/{each}") for each in ("clip", "inner", name))
    clip.commit(clip="NAME = 'clip'", setup="from setuptools import setup\nsetup(name='clip', py_modules=['clip'])")
    clip.git("tag", "v1")
    inner.commit(points="POINTS = [1, 2]")
    for path, text in STRANGERS.items():
        (outer.path / path).parent.mkdir(parents=True, exist_ok=True)
        (outer.path / path).write_text(text.replace("{clip}", host.url("team/clip")))
    outer.git("submodule", "--quiet", "add", inner.url, "inner")
    outer.git("config", "--file", ".gitmodules", "submodule.inner.url", "../inner")
    outer.commit()
    launch_cli("queue", "create", name)
    try:
        install = ("--install", "-r requirements/train.txt", "--install", "-e .")
        add = ("add", "-u", host.url(f"team/{name}"), "-E", "python scripts/train.py", "-q", name, *install)
        added = json.loads(launch_cli(*add, "--json", "--", "--lr", "0.5").stdout)
        launch_cli("agent", "start", "-q", name, "--until-empty")
    finally:
        host.stop()

    assert launch_cli("item", "logs", added["id"]).stdout == "3 clip [1, 2] 1.17.0 --lr 0.5\n"
    assert "-r requirements/train.txt, -e ." in launch_cli("job", "show", added["job"]).stdout
