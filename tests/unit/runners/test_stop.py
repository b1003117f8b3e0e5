"""A stop that comes just when the run ends by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.runner import LocalProcessRunner


def test_supervisor_that_ends_while_it_is_told_to_stop_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    kill = os.kill
    with subprocess.Popen(["sleep", "60"]) as lives:
        (folder / supervisor.SUPERVISOR).write_text(json.dumps(supervisor.identity(lives.pid)))

        def comes_too_late(pid: int, number: int) -> None:
            kill(lives.pid, signal.SIGKILL)
            lives.wait()
            kill(pid, number)

        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", comes_too_late)
            asyncio.run(LocalProcessRunner(tmp_path).stop(str(folder), 60))
    assert json.loads((folder / supervisor.STOP).read_text()) == {"grace_seconds": 60}
