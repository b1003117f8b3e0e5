"""A run and a job of a W&B server are queued by their address and name, and run without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefect_launch import LaunchAgent, explain_launch, launch_add, launch_add_many
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.errors import AgentConfigError, LaunchError, NotFoundError
from prefect_launch.sweeps.queued import queue_sweep
from prefect_launch.sweeps.sweep_run import config_of
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import items, make_api
from tests.support.git_repository import Repository
from tests.support.git_server import GitServer
from tests.support.wandb_server import KEY, WandbServer, serving

PROGRAM = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("--seed")
print("seed", parser.parse_args().seed, "config", os.environ["WANDB_CONFIG"], "key", "WANDB_API_KEY" in os.environ)
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InMemoryApi]:
    """A server in memory with the queues `cpu` and `gpu`, and the key as a Secret block."""
    with use_api(make_api(tmp_path)) as made:
        made.secrets["my-key"] = KEY
        yield made


@pytest.fixture
def repository(git_host: GitServer) -> Repository:
    """A repository on an open host."""
    git_host.password = None
    made = git_host.repository("team/wandb")
    made.commit(train=PROGRAM)
    return made


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that this machine's operator has listed."""
    made = WandbServer()
    with serving(made) as address:
        (tmp_path / "wandb.yaml").write_text(yaml.safe_dump({"hosts": {address: "my-key"}}))
        monkeypatch.setenv("PREFECT_LAUNCH_WANDB_CONFIG", str(tmp_path / "wandb.yaml"))
        monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
        yield made


@pytest.fixture
def uri(wandb: WandbServer, git_host: GitServer, repository: Repository) -> str:
    """The address of a run of the repository's commit, with `--seed 7` and a config."""
    git = {"remote": git_host.url("team/wandb"), "commit": repository.git("rev-parse", "HEAD")}
    about = {"program": "train.py", "codePath": "train.py", "args": ["--seed", "7"], "git": git}
    wandb.add_run("team/digits/abc", {"wandb-metadata.json": json.dumps(about)}, {"lr": 0.1, "epochs": 3})
    return f"{wandb.files_at.removesuffix('/files')}/team/digits/runs/abc"


def _run_all(api: InMemoryApi, tmp_path: Path) -> None:
    agent = LaunchAgent(api, {"queues": ["cpu"], "name": "box", "home": tmp_path / "agent"})
    asyncio.run(agent.loop(until_empty=True))


def _jobs(api: InMemoryApi) -> list[str]:
    return sorted(f"{job.path}:v{job.latest_version}" for job in api.jobs())


def test_run_is_queued_by_its_address_and_repeated_with_other_inputs(
    api: InMemoryApi, wandb: WandbServer, uri: str, tmp_path: Path
) -> None:
    again, other = launch_add_many(
        [{"uri": uri}, {"uri": uri, "overrides": {"run_config": {"lr": 0.5}, "args": ["--seed", "8"]}}],
        queue_name="cpu",
    )
    asked = len(wandb.queries)
    _run_all(api, tmp_path)

    assert [item.parameters["job"] for item in items(api)] == ["team/digits/run-abc:v0"] * 2
    assert [again.state, other.state] == ["completed", "completed"], again.message
    logs = ["\n".join(line.message for line in run.logs()) for run in (again, other)]
    assert 'seed 7 config {"epochs":3,"lr":0.1} key False' in logs[0].replace(": ", ":").replace(", ", ",")
    assert "seed 8" in logs[1]
    assert '"lr":0.5' in logs[1].replace(" ", "")
    assert asked == len(wandb.queries) == 2, "a list asks once, and an agent asks nobody"


def test_same_run_makes_one_version_and_a_look_at_it_makes_none(api: InMemoryApi, uri: str) -> None:
    before = _jobs(api)
    explained = explain_launch(uri=uri, queue_name="cpu")
    assert explained.job == "team/digits/run-abc:v0"
    assert _jobs(api) == before

    launch_add(uri=uri, queue_name="cpu")
    launch_add(uri=uri, queue_name="cpu")
    assert _jobs(api) == sorted([*before, "team/digits/run-abc:v0"])
    assert api.job("team/digits/run-abc").metadata["wandb"] == {"run": uri}


def test_job_of_a_server_is_queued_with_inputs_of_the_command_line(api: InMemoryApi, wandb: WandbServer) -> None:
    document = {"source_type": "image", "source": {"image": "team/train:1.2"}, "runtime": "3.11"}
    wandb.add_artifact("team/digits/train", {"wandb-job.json": json.dumps(document)})

    added = CliRunner().invoke(app, ["add", "-j", "team/digits/train:v0", "-q", "gpu", "--set", "lr=0.5"])
    unknown = CliRunner().invoke(app, ["add", "-j", "team/digits/trian:v0", "-q", "gpu", "--set", "lr=0.5"])

    assert added.exit_code == 0, added.exception
    (item,) = items(api)
    assert item.parameters["overrides"]["run_config"] == {"lr": 0.5}
    assert "has no artifact team/digits/trian:v0" in str(unknown.exception)


def test_job_of_a_server_is_queued_by_its_name_and_own_jobs_come_first(
    api: InMemoryApi, wandb: WandbServer, tmp_path: Path
) -> None:
    def add(text: str) -> None:
        code = wandb.add_artifact("team/digits/code", {"main.py": f"print({text!r})"})
        source = {"artifact": f"wandb-artifact://_id/{code.id}", "entrypoint": ["python3.11", "main.py"]}
        document = json.dumps({"source_type": "artifact", "source": source})
        wandb.add_artifact("team/digits/train", {"wandb-job.json": document})

    add("first")
    first = launch_add(job="team/digits/train:latest", queue_name="cpu")
    add("second")
    second = launch_add(job="team/digits/train", queue_name="cpu")
    old = launch_add(job="team/digits/train:v0", queue_name="cpu")
    _run_all(api, tmp_path)

    runs = [first, second, old]
    assert [run.item.parameters["job"].rpartition("/")[2] for run in runs] == [
        "train-wandb:v0",
        "train-wandb:v1",
        "train-wandb:v0",
    ]
    logs = ["\n".join(line.message for line in run.logs()) for run in runs]
    assert ["first" in logs[0], "second" in logs[1], "first" in logs[2]] == [True, True, True]

    asked = len(wandb.queries)
    launch_add_many([{"job": "team/digits/train"}] * 5, queue_name="cpu")
    assert len(wandb.queries) == asked + 4, "a list asks once"

    asked = len(wandb.queries)
    launch_add(job="acme/digits/box:v0", queue_name="gpu")
    assert len(wandb.queries) == asked, "a job of our own store is not looked for elsewhere"


@pytest.mark.parametrize("source", ["job", "uri"])
def test_sweep_names_a_run_or_a_job_of_a_server_and_its_trials_are_of_one_version(
    api: InMemoryApi, wandb: WandbServer, uri: str, source: str
) -> None:
    wandb.add_artifact("team/digits/train", {"wandb-job.json": '{"source": {"image": "busybox:1"}}'})
    named = {"job": "team/digits/train:latest", "uri": uri}[source]
    sweep = {"method": "grid", "parameters": {"lr": {"values": [0.1, 0.2]}}, "launch": {source: named}}

    asyncio.run(queue_sweep(api, {"config": sweep, "queue": "gpu" if source == "job" else "cpu"}))

    (item,) = items(api)
    pinned = {"job": "team/digits/train-wandb:v0", "uri": "team/digits/run-abc:v0"}[source]
    assert config_of(item).job == pinned
    assert api.job(pinned).reference == pinned


REFUSED: dict[str, tuple[dict[str, Any], type[LaunchError], str]] = {
    "run": ({"uri": "{host}/team/digits/runs/nope"}, NotFoundError, "has no run 'nope' in the project team/digits"),
    "job": ({"job": "team/digits/nope:v1"}, NotFoundError, "Unknown job.*The W&B server.*has no artifact"),
    "file": ({"uri": "{uri}", "entry_point": ["python", "mian.py"]}, LaunchError, "Unknown entry point file 'mian.py'"),
    "queue": ({"uri": "{uri}", "queue_name": "cpuu"}, NotFoundError, "Did you mean 'cpu'"),
    "version": ({"uri": "{uri}", "version": "main"}, LaunchError, "Leave version out"),
    "host": (
        {"uri": "https://wandb.ai/team/digits/runs/abc"},
        AgentConfigError,
        "'wandb.ai' is not one that this machine may ask.*lists http://127.0.0.1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_call_leaves_nothing_behind(api: InMemoryApi, wandb: WandbServer, uri: str, case: str) -> None:
    given, error, words = REFUSED[case]
    before = _jobs(api)
    host = wandb.files_at.removesuffix("/files")
    call: dict[str, Any] = {"queue_name": "cpu", **given}
    call |= {key: call[key].format(uri=uri, host=host) for key in ("uri", "job") if key in call}

    with pytest.raises(error, match=words):
        launch_add(**call)

    assert items(api) == []
    assert _jobs(api) == before


def test_key_is_sent_with_queries_alone(api: InMemoryApi, wandb: WandbServer, uri: str) -> None:
    launch_add(uri=uri, queue_name="cpu")

    assert {path for path, key in wandb.requests if key is not None} == {"/graphql"}
    assert {key for path, key in wandb.requests if path != "/graphql"} == {None}
