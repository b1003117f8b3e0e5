"""A command, or a shell, inside an item that runs: the command line alone, on a real server and a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import COMMAND_SECONDS, Cli
from tests.support.forked_cli import ForkedCli
from tests.support.prefect_server import PrefectServerProcess
from tests.support.processes import ChildProcess


@pytest.fixture
def item(prefect_server: PrefectServerProcess, launch_cli: Cli, forked_cli: ForkedCli, tmp_path: Path) -> Iterator[str]:
    """An item that runs, in the folder of its code."""
    name = f"exec-{uuid4().hex[:8]}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    launch_cli("queue", "create", name)
    launch_cli("job", "create", "code", "code", "-E", "python train.py", "-n", name)
    launch_cli("add", "-j", name, "-q", name, "--name", name)
    log = tmp_path / "agent.log"
    start = ["agent", "start", "-q", name]
    agent = ChildProcess.forked(forked_cli.start(start, cwd=tmp_path, environment=os.environ, out=log), log)
    try:
        due = time.monotonic() + COMMAND_SECONDS
        while "up" not in launch_cli("item", "logs", name).stdout:
            assert time.monotonic() < due, agent.tail()
        yield name
        launch_cli("item", "cancel", name)
        launch_cli("item", "wait", name, code=3)
    finally:
        agent.stop()


def test_command_sees_what_the_item_sees_and_its_exit_code_is_the_callers(launch_cli: Cli, item: str) -> None:
    seen = "import os, sys; print(os.environ['LAUNCH_QUEUE'], os.listdir(), sys.prefix != sys.base_prefix); sys.exit(7)"

    done = launch_cli("item", "exec", item, "--", "python", "-c", seen, code=7)

    assert done.stdout == f"{item} ['train.py'] True\n"
    assert "'no-such-program' cannot be run" in launch_cli("item", "exec", item, "--", "no-such-program", code=1).stderr


def test_shell_has_the_callers_terminal_and_in_a_pipe_it_runs_what_it_reads(item: str, tmp_path: Path) -> None:
    shell = [sys.executable, "-c", "from prefect_launch.cli import main; main()", "item", "shell", item]
    typed = b"test -t 0 && echo a-$((40 + 2)) in ${PWD##*/}; exit 5\n"
    master, slave = pty.openpty()
    interactive = subprocess.Popen(shell, stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path)
    os.close(slave)
    os.write(master, typed)
    screen = b"".join(iter(lambda: _read(master), b""))
    os.close(master)

    piped = subprocess.run(shell, input=typed, capture_output=True, cwd=tmp_path, timeout=COMMAND_SECONDS, check=False)

    assert interactive.wait(COMMAND_SECONDS) == 5, screen
    assert b"a-42 in code" in screen
    assert (piped.returncode, piped.stdout, piped.stderr) == (5, b"", b"")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # The other end is closed.
        return b""
