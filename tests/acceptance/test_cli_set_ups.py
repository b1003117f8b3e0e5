"""Training set-ups as strangers' repositories have them, from their folder to their output, by the command line alone.

Each folder of `tests/set_ups` is one: what it is made of, and in `case.json` what its user types and sees.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.support.docker_engine import DockerEngine
from tests.support.forked_cli import ForkedCli
from tests.support.images import PYTHON_IMAGE
from tests.support.prefect_server import PrefectServerProcess, client_settings

SET_UPS = Path(__file__).parents[1] / "set_ups"
#: One agent works off all set-ups.
SECONDS = 500
pytestmark = pytest.mark.timeout(SECONDS + 60)
#: A package index that does not answer in time is no fault of a set-up.
AGAIN = ("--retries", '{"max": 2, "on": ["crashed"]}')
CASES = {file.parent.name: json.loads(file.read_text()) for file in sorted(SET_UPS.glob("*/case.json"))}


@dataclass
class Machine:
    """A user's machine: its folder, and the commands that are typed there."""

    cli: ForkedCli
    folder: Path

    def __call__(self, *arguments: str) -> str:
        ended = self.run(*arguments)
        assert ended.returncode == 0, f"{shlex.join(arguments)}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever it says."""
        return self.cli.run(arguments, cwd=self.folder, environment=os.environ, seconds=SECONDS)

    def make_queue(self, resource: str) -> str:
        """Make a queue; return its name."""
        queue = f"{resource}-{uuid4().hex[:8]}"
        self("queue", "create", queue, "--resource", resource)
        return queue

    def add(self, name: str, queue: str) -> subprocess.CompletedProcess[str]:
        """Make a set-up's job and queue it."""
        case = CASES[name]
        folder = self.folder / name
        if not folder.exists():
            shutil.copytree(SET_UPS / name, folder, ignore=shutil.ignore_patterns("case.json", "__pycache__"))
        job = f"{name}-{queue}"
        command = ["-E", case["entry_point"]] if "entry_point" in case else []
        self("job", "create", "code", str(folder), "-n", job, *command, *case.get("job", ()))
        arguments = ["--", *case["arguments"]] if "arguments" in case else []
        return self.run("add", "-j", job, "-q", queue, *AGAIN, "--json", *arguments)

    def work_off(self, resource: str, names: list[str]) -> dict[str, str]:
        """Queue set-ups and run an agent until all have ended; return the items' ids."""
        queue = self.make_queue(resource)
        items = {}
        for name in names:
            added = self.add(name, queue)
            assert added.returncode == 0, f"{name}\n{added.stdout}\n{added.stderr}"
            items[name] = str(json.loads(added.stdout)["id"])
        self("agent", "start", "-q", queue, "-j", "3", "--until-empty")
        return items


@pytest.fixture(scope="module")
def machine(
    _sqlite_server: PrefectServerProcess, forked_cli: ForkedCli, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("user")
    config = folder / ".config" / "prefect-launch"
    config.mkdir(parents=True)
    (config / "agent.yaml").write_text(yaml.safe_dump({"builder": {"base_image": PYTHON_IMAGE}}))
    with client_settings(_sqlite_server), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("PREFECT_LAUNCH_HOME", str(folder / "home"))
        yield Machine(forked_cli, folder)


def names_for(resource: str, *, refused: bool = False) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if resource in case.get("resources", (resource,)) and ("refused_when_added" in case) is refused
    ]


@pytest.fixture(scope="module")
def processes(machine: Machine) -> dict[str, str]:
    return machine.work_off("local-process", names_for("local-process"))


@pytest.fixture(scope="module")
def containers(machine: Machine, _engine: DockerEngine, _image: Callable[[str], str]) -> Iterator[dict[str, str]]:
    _image("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", _engine.host)
        yield machine.work_off("local-container", names_for("local-container"))


@pytest.mark.parametrize("name", names_for("local-process"))
def test_set_up_runs_as_a_process(machine: Machine, processes: dict[str, str], name: str) -> None:
    check(machine, processes[name], CASES[name])


@pytest.mark.parametrize("name", names_for("local-process", refused=True))
def test_set_up_that_no_process_can_run_is_refused_when_it_is_added(machine: Machine, name: str) -> None:
    added = machine.add(name, machine.make_queue("local-process"))
    assert added.returncode == 1
    assert CASES[name]["refused_when_added"] in " ".join(added.stderr.split())


@pytest.mark.engine
@pytest.mark.parametrize("name", names_for("local-container"))
def test_set_up_runs_as_a_container(machine: Machine, containers: dict[str, str], name: str) -> None:
    check(machine, containers[name], CASES[name])


def check(machine: Machine, item: str, case: dict[str, Any]) -> None:
    """A set-up has run to its end, and has printed what it should; or its agent refuses it in these words."""
    shown = json.loads(machine("item", "show", item, "--json"))
    if "refused" in case:
        assert shown["state"] == "failed"
        assert case["refused"] in " ".join(shown["message"].split())
        return
    assert shown["state"] == "completed", machine("item", "show", item)
    log = machine("item", "logs", item).splitlines()
    assert [line for line in log if line in case["prints"]] == case["prints"], log
