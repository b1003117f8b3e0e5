"""The commands that the tests fork do what the installed program does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.forked_cli import ForkedCli
from tests.support.forked_programs import ForkedPrograms
from tests.support.prefect_server import PrefectServerProcess

PROGRAM = Path(sys.executable).with_name("prefect-launch")


@pytest.fixture
def queue(prefect_server: PrefectServerProcess, launch_cli: Cli) -> str:
    """A queue of this test's own."""
    name = f"forked-{uuid4().hex[:8]}"
    launch_cli("queue", "create", name, "--concurrency", "3")
    return name


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["queue", "show", "{queue}"], ["queue", "show", "{queue}x"], ["add", "-q", "{queue}"], ["--nope"]],
    ids=lambda arguments: arguments[0].strip("-"),
)
def test_forked_command_answers_as_the_installed_program_does(
    launch_cli: Cli, queue: str, tmp_path: Path, arguments: list[str]
) -> None:
    given = [argument.format(queue=queue) for argument in arguments]

    started = subprocess.run([PROGRAM, *given], cwd=tmp_path, capture_output=True, text=True, check=False)
    forked = launch_cli(*given, code=None)

    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_forked_command_has_the_variables_of_its_moment(forked_cli: ForkedCli, queue: str, tmp_path: Path) -> None:
    def show(**variables: str) -> int:
        environment = {**os.environ, **variables}
        return forked_cli.run(["queue", "show", queue], cwd=tmp_path, environment=environment, seconds=60).returncode

    assert show() == 0
    assert show(PREFECT_API_URL="http://127.0.0.1:9/api") == 1
    assert show() == 0


def test_forked_command_that_takes_too_long_is_killed_and_the_next_one_runs(
    forked_cli: ForkedCli, queue: str, tmp_path: Path
) -> None:
    waits = ["agent", "start", "-q", queue]

    with pytest.raises(subprocess.TimeoutExpired):
        forked_cli.run(waits, cwd=tmp_path, environment=os.environ, seconds=4)

    assert forked_cli.run(["--version"], cwd=tmp_path, environment=os.environ, seconds=60).returncode == 0


def test_programs_on_a_path_are_forked_with_their_output_and_their_exit_codes(tmp_path: Path) -> None:
    programs = ForkedPrograms()
    script = (
        "prefect-launch --version | cat; set +e; prefect-launch --nope 2> err; echo $?; prefect --nope 2>&1; echo $?"
    )
    environment = {**os.environ, "PATH": f"{programs.folder}:{os.environ['PATH']}"}
    try:
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        programs.close()

    lines = done.stdout.splitlines()
    assert lines[0].startswith("prefect-launch ")
    assert lines[1] == "1"
    assert "--nope" in (tmp_path / "err").read_text()
    assert lines[-1] not in ("", "0")
