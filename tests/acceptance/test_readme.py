"""Every block of code in the README runs, in its order, as a reader would run it.

`bash` blocks share one shell's environment; `python` and `yaml` blocks are saved under the name in their first line.
What cannot be run as it stands here (another address, a program that does not end) is in a table, line by line; a line
of the table that the README no longer has fails the test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.forked_programs import ForkedPrograms
from tests.support.postgres import PostgresServer
from tests.support.prefect_server import PrefectServerProcess
from tests.support.processes import ChildProcess

PROJECT = Path(__file__).resolve().parents[2]
README = PROJECT / "README.md"
BLOCK_SECONDS = 240
SEVERAL_MACHINES = "Several machines"
#: The line that leaves something running in a terminal of its own.
AGENT = "prefect-launch agent start -q gpu -j 2"


class Block(NamedTuple):
    """A fenced block of the README."""

    section: str
    language: str
    text: str


class Reader:
    """Someone who does what the README says, in a folder with the examples and in a home of their own.

    Args:
        folder: where it is done.
        adapted: what is typed instead of a line that cannot be run here as it stands.
    """

    def __init__(self, folder: Path, adapted: Mapping[str, str]) -> None:
        self._folder = folder
        self._adapted = adapted
        self._used: set[str] = set()
        self._agent: ChildProcess | None = None
        self._state = folder / "environment.sh"
        self._programs = ForkedPrograms()
        shutil.copytree(PROJECT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "home").mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LAUNCH_DEMO"))},
            "HOME": str(folder / "home"),
            "PATH": f"{self._programs.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._state.touch()

    def follow(self, blocks: list[Block]) -> str:
        """Do what the blocks say; returns all that was printed."""
        return "".join(self._bash(block) if block.language == "bash" else self._save(block) for block in blocks)

    def stop(self) -> None:
        """End what was left running."""
        if self._agent is not None:
            self._agent.stop()
        self._programs.close()

    @property
    def forgotten(self) -> set[str]:
        """Lines of the table that the README does not have."""
        return set(self._adapted) - self._used

    def _save(self, block: Block) -> str:
        name = block.text.splitlines()[0].removeprefix("# ")
        assert re.fullmatch(r"\w+\.(py|yaml)", name), f"the first line of a block names its file, not {name!r}"
        (self._folder / name).write_text(self._adapt(block.text))
        return ""

    def _bash(self, block: Block) -> str:
        if block.text.strip() == AGENT:
            return self._start_agent()
        script = f"set -euo pipefail\nsource {self._state}\n{self._adapt(block.text)}\nexport -p > {self._state}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BLOCK_SECONDS,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"{block.text}\nended with {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout

    def _start_agent(self) -> str:
        # As the installed program, which hears the signal at its end.
        command = ["bash", "-c", f"source {self._state}; exec {Path(sys.executable).parent}/{AGENT}"]
        self._agent = ChildProcess(command, self._folder / "agent.log", environment=self._environment)
        return ""

    def _adapt(self, text: str) -> str:
        for line, instead in self._adapted.items():
            if line in text:
                self._used.add(line)
                text = text.replace(line, instead)
        return text


@pytest.fixture
def own_postgres_prefect_server(postgres: PostgresServer, tmp_path: Path) -> Iterator[PrefectServerProcess]:
    """A server on PostgreSQL whose job store this test may move."""
    server = PrefectServerProcess(tmp_path / "server", database_url=postgres.create_database())
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(900)
def test_every_block_of_the_readme_runs(own_prefect_server: PrefectServerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            # The demo and the tests have tests of their own; here, that the targets are there.
            "make demo": f"make -C {PROJECT} --dry-run demo",
            "make test": f"make -C {PROJECT} --dry-run test",
            "source .venv/bin/activate": "prefect-launch --version",
            # The test's server has started already, on a port of its own.
            "prefect server start": f"curl --fail --silent --show-error {own_prefect_server.api_url}/health",
            "http://127.0.0.1:4200/api": own_prefect_server.api_url,
        },
    )
    try:
        shown = reader.follow([block for block in _blocks() if block.section != SEVERAL_MACHINES])
    finally:
        reader.stop()

    assert "hidden_units" in shown
    assert "epoch  30/30" in shown
    assert "best: trial" in shown
    assert not reader.forgotten


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_readme_takes_a_job_to_a_machine_that_shares_only_server_and_store(
    own_postgres_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            "prefect server start --host 0.0.0.0": f"curl --fail --silent {own_postgres_prefect_server.api_url}/health",
            "http://server.example:4200/api": own_postgres_prefect_server.api_url,
            "/mnt/shared/launch": str(tmp_path / "shared"),
            # The second machine: another home, so that nothing but the server and the store is shared.
            "prefect-launch agent start": f"PREFECT_HOME={tmp_path}/second prefect-launch agent start",
            "prefect-launch agent list": "prefect-launch item list -q shared --state completed",
        },
    )

    try:
        shown = reader.follow([block for block in _blocks() if block.section == SEVERAL_MACHINES])
    finally:
        reader.stop()

    assert "completed" in shown
    assert not reader.forgotten


@pytest.mark.timeout(300)
def test_readme_of_the_slurm_example_puts_its_job_on_a_queue(
    own_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            "export PREFECT_LAUNCH_HOME=/SHARED/prefect-launch": f"export PREFECT_API_URL={own_prefect_server.api_url}",
            # Slurm is tested elsewhere.
            "prefect-launch agent check -q cluster": "prefect-launch queue show cluster",
            "prefect-launch agent start -q cluster": "prefect-launch item list -q cluster",
        },
    )
    try:
        shown = reader.follow(_blocks(PROJECT / "examples" / "slurm" / "README.md"))
    finally:
        reader.stop()

    assert "Added hello-slurm-" in shown
    assert not reader.forgotten


def test_pictures_and_files_that_the_readme_names_are_there() -> None:
    named = re.findall(r"\]\((?!http)([^)#]+)\)|src=\"([^\"]+)\"", README.read_text())

    missing = [path for pair in named for path in pair if path and not (PROJECT / path).exists()]

    assert named
    assert not missing


def _blocks(readme: Path = README) -> list[Block]:
    """The fenced blocks of a README, each with the title of its section."""
    found, section = [], ""
    for title, language, text in re.findall(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", readme.read_text(), re.M | re.S):
        section = title or section
        if language:
            found.append(Block(section, language, text))
    unknown = {block.language for block in found} - {"bash", "python", "yaml"}
    assert not unknown, f"no test runs blocks of {unknown}"
    return found
