"""The command line as a user has it: a process of its own, its exit code, and what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND_SECONDS = 120

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def launch_cli(tmp_path: Path) -> Cli:
    """Run `prefect-launch` in an empty folder: `launch_cli("queue", "list", code=0)`.

    It fails the test when the exit code is another than `code`, with what the command printed; None allows any.
    """
    program = Path(sys.executable).with_name("prefect-launch")

    def run(*arguments: str, code: int | None = 0, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(program), *arguments],
            cwd=cwd,
            env=os.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if code is not None and done.returncode != code:
            pytest.fail(
                f"prefect-launch {' '.join(arguments)} ended with {done.returncode}, not {code}\n"
                f"--- standard output\n{done.stdout}\n--- standard error\n{done.stderr}",
                pytrace=False,
            )
        return done

    return run
