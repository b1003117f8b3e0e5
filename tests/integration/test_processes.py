"""The tests' own guard: nothing that they start stays behind, even when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.processes import MARK, ChildProcess, kill_all, marked_processes, wait_until_gone

GONE_SECONDS = 60.0

PARENT = """
import sys, time
from pathlib import Path
from tests.support.processes import ChildProcess
child = ChildProcess(["sh", "-c", "echo up; exec sleep 600"], Path(sys.argv[1]))
child.wait_until(lambda: "up" in child.tail(), 60)
print("up", flush=True)
time.sleep(600)
"""


def test_detached_process_is_found_by_its_mark_and_killed() -> None:
    mark = uuid4().hex
    # The shell ends at once; its child is in a session of its own and belongs to init.
    script = "setsid sh -c 'echo up; exec sleep 600' &"
    shell = subprocess.Popen(["sh", "-c", script], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE)
    _wait_for_up(shell)
    shell.wait()

    left = marked_processes(mark)
    kill_all(left)

    assert len(left) == 1
    assert not wait_until_gone(mark, GONE_SECONDS)


def test_child_ends_when_the_test_run_is_killed(tmp_path: Path) -> None:
    mark = uuid4().hex
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    run = subprocess.Popen(command, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE)
    _wait_for_up(run)

    run.send_signal(signal.SIGKILL)
    run.wait()

    assert not wait_until_gone(mark, GONE_SECONDS)


def test_program_that_ends_too_early_tells_its_last_output(tmp_path: Path) -> None:
    child = ChildProcess(["sh", "-c", "echo no such database; exit 3"], tmp_path / "log")

    with pytest.raises(RuntimeError, match=r"ended with 3:\nno such database"):
        child.wait_until(lambda: False, GONE_SECONDS)


def _wait_for_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout
    with process.stdout as output:
        assert output.readline() == b"up\n"
