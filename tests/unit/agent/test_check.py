"""What `agent check` finds of an agent's surroundings, and how the command shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefect_launch.agent.check import check_agent
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Credentials, Registry
from prefect_launch.runners.base import Finding, Runner
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.settings.agent_config import AgentConfig, parse_agent_config
from prefect_launch.testing import InMemoryApi, InMemoryCluster, InMemoryRemoteRunner
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine
from tests.support.clouds import KEY, SECRET, USER, FakeCloud, be_nobody

DESTINATION = "registry.example:5000/team/train"


class _Registry(Registry):
    def __init__(self, error: str = "") -> None:
        self.error = error

    async def digest_of(self, reference: str) -> str | None:
        if self.error:
            raise RegistryError(self.error)
        return None

    async def credentials_for(self, reference: str) -> Credentials | None:
        return Credentials("robot", "secret")


class Bench:
    """An agent that is to run containers and processes, and what it finds here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = InMemoryApi()
        self.api.create_run_queue("gpu", "local-container")
        self.api.create_run_queue("cpu", "local-process")
        self.docker = InMemoryDocker()
        self.registry = _Registry()
        self.runners: dict[str, Runner] = {"local-container": LocalContainerRunner(folder, InMemoryEngine(self.docker))}

    def config(self, **settings: Any) -> AgentConfig:
        given = {"queues": ["gpu", "cpu"], "home": self.folder, "builder": {"destination": DESTINATION}}
        return parse_agent_config({**given, **settings})

    async def found(self, **settings: Any) -> dict[tuple[str, str], Finding]:
        """What is found, by where and what."""
        config = self.config(**settings)
        checks = await check_agent(self.api, config, runners=self.runners, registry=self.registry)
        return {(one.where, one.finding.name): one.finding for one in checks}

    async def missing(self, **settings: Any) -> dict[tuple[str, str], str]:
        """What is missing, in words."""
        return {key: one.detail for key, one in (await self.found(**settings)).items() if not one.is_ok}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_check_of_an_agent_that_has_all_it_needs_finds_nothing_missing(bench: Bench) -> None:
    found = await bench.found()
    assert all(one.is_ok for one in found.values()), found
    assert list(found) == [
        ("server", "reachable"),
        ("server", "clock"),
        ("queue gpu", "queue"),
        ("queue gpu", "Docker Engine"),
        ("queue cpu", "queue"),
        ("queue cpu", "uv"),
        ("home", "writable"),
        ("machine", "open files"),
        ("registry", "login"),
    ]
    assert found["registry", "login"].detail == f"{DESTINATION}, as robot"


async def test_check_reports_an_engine_that_is_away_and_goes_on(bench: Bench) -> None:
    bench.docker.reachable = False
    missing = await bench.missing()
    assert list(missing) == [("queue gpu", "Docker Engine")]
    assert missing["queue gpu", "Docker Engine"] == "The Docker Engine does not answer. Start it."


async def test_check_reports_a_server_that_does_not_answer_and_still_looks_at_the_home(bench: Bench) -> None:
    bench.api.server.down()
    found = await bench.found()
    assert not found["server", "reachable"].is_ok
    assert found["home", "writable"].is_ok


async def test_check_reports_a_clock_that_differs_from_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    now = datetime.now(timezone.utc) + timedelta(minutes=2)
    monkeypatch.setattr(bench.api.server._store, "now", lambda: now)
    assert "The clocks differ by 1" in (await bench.missing(queues=["cpu"]))["server", "clock"]


async def test_check_reports_a_queue_that_is_not_there_and_one_that_is_paused(bench: Bench) -> None:
    await bench.api.server.update_pool("cpu", is_paused=True)
    missing = await bench.missing(queues=["cpu", "gpus"])
    assert "gpu" in missing["queue gpus", "queue"]
    assert "queue resume cpu" in missing["queue cpu", "queue"]


async def test_check_reports_a_home_that_cannot_be_written(bench: Bench) -> None:
    (bench.folder / "file").touch()
    missing = await bench.missing(home=bench.folder / "file" / "home")
    assert "cannot be written" in missing["home", "writable"]
    assert [path.name for path in bench.folder.iterdir()] == ["file"]


async def test_check_reports_a_registry_that_refuses_its_login(bench: Bench) -> None:
    bench.registry.error = "The registry refuses the credentials of robot."
    assert "refuses the credentials" in (await bench.missing())["registry", "login"]


async def test_resource_is_asked_with_the_options_of_its_queue_and_hides_no_other_by_failing(bench: Bench) -> None:
    class Cluster(InMemoryRemoteRunner):
        async def diagnose(self, options: Mapping[str, Any]) -> list[Finding]:
            raise ZeroDivisionError(f"{options} for {self.agent}")

    bench.runners["local-process"] = Cluster(bench.folder, InMemoryCluster())
    bench.api.create_run_queue(
        "nice", "local-process", config={"env": {"A": "{{b}}"}}, template_variables={"b": {"type": "string"}}
    )
    missing = await bench.missing(queues=["nice", "gpu"], name="box")
    assert list(missing.items()) == [(("queue nice", "local-process"), "{'env': {'A': '{{b}}'}} for box")]


async def test_runner_that_says_no_more_is_reported_by_whether_it_answers(bench: Bench) -> None:
    cluster = InMemoryCluster()
    bench.runners["local-process"] = InMemoryRemoteRunner(bench.folder, cluster)
    assert (await bench.found())["queue cpu", "reachable"].is_ok
    cluster.reachable = False
    assert "does not answer" in (await bench.missing())["queue cpu", "reachable"]


@pytest.mark.parametrize(("queue", "code"), [("cpu", 0), ("none", 1)])
def test_command_exits_with_one_when_something_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, queue: str, code: int
) -> None:
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(bench.folder))
    with use_api(bench.api):
        shown = CliRunner().invoke(app, ["agent", "check", "-q", queue])
        data = CliRunner().invoke(app, ["agent", "check", "-q", queue, "--json"])
    assert (shown.exit_code, data.exit_code) == (code, code)
    assert ("Nothing is missing." if code == 0 else "1 thing is missing") in shown.output
    found = json.loads(data.stdout)
    assert {"where", "name", "is_ok", "detail"} == set(found[0])
    assert any(not one["is_ok"] for one in found) is bool(code)


async def test_check_of_a_resource_whose_command_hangs_gives_the_commands_last_words(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.api.create_run_queue("hpc", "slurm")
    for program in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
        path = tmp_path / program
        path.write_text("#!/bin/sh\necho 'error: no route to node0, retrying' >&2\nexec sleep 300\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("prefect_launch.agent.check._ANSWER_SECONDS", 2.0)
    missing = await bench.missing(queues=["hpc"])
    assert "no route to node0, retrying" in missing["queue hpc", "controller"]


async def test_check_says_who_the_agent_is_in_the_clouds_of_its_config(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_nobody(tmp_path, monkeypatch)
    keys = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\nregion = eu-west-1\n"
    (tmp_path / "aws-config").write_text(f"[profile training]\n{keys}")
    async with FakeCloud() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
        found = await bench.found(clouds={"aws": {"profile": "training"}, "gcp": {"project": "team-ml"}})

    assert found["clouds", "AWS"] == Finding(name="AWS", is_ok=True, detail=f"as {USER}")
    assert not found["clouds", "Google Cloud"].is_ok
    assert "gcloud auth application-default login" in found["clouds", "Google Cloud"].detail
