"""The command line as a user has it: a process of its own, its exit code, and what it prints.

The processes are forked, so that not each has to import Prefect; `test_forked_cli.py` holds them against started ones.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.forked_cli import ForkedCli

COMMAND_SECONDS = 120

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def forked_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCli]:
    """What forks the commands."""
    forked = ForkedCli(tmp_path_factory.mktemp("cli"))
    yield forked
    forked.close()


@pytest.fixture
def launch_cli(forked_cli: ForkedCli, tmp_path: Path) -> Cli:
    """Run `prefect-launch` in an empty folder: `launch_cli("queue", "list", code=0)`.

    It fails the test when the exit code is another than `code`, with what the command printed; None allows any.
    """

    def run(*arguments: str, code: int | None = 0, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        done = forked_cli.run(arguments, cwd=cwd, environment=os.environ, seconds=COMMAND_SECONDS)
        if code is not None and done.returncode != code:
            pytest.fail(
                f"prefect-launch {' '.join(arguments)} ended with {done.returncode}, not {code}\n"
                f"--- standard output\n{done.stdout}\n--- standard error\n{done.stderr}",
                pytrace=False,
            )
        return done

    return run
