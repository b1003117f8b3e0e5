"""The systemd unit in `examples/`, which the documentation shows."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

UNIT = (Path(__file__).parents[2] / "examples/prefect-launch-agent.service").read_text()


def test_unit_passes_systemds_own_check(tmp_path: Path) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = tmp_path / "box.service"
    unit.write_text(UNIT.replace("/PATH/TO/VENV/bin/prefect-launch", "/bin/true").replace("User=USER", "User=root"))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([checker, "verify", str(unit)], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_lets_jobs_outlive_the_agent_and_a_drained_agent_stay_down() -> None:
    assert {"KillMode=process", "Restart=on-failure", "OOMPolicy=continue", "TimeoutStopSec=330"} <= set(
        UNIT.splitlines()
    )


def test_stop_signals_the_agent_and_waits_for_it_no_longer_than_it_may() -> None:
    script = _stop_script(seconds=1)
    agent = subprocess.Popen(
        ["sh", "-c", "trap 'echo drains' TERM; echo up; while true; do sleep 0.1; done"], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    try:
        assert agent.stdout.readline() == b"up\n"
        started = time.monotonic()
        subprocess.run(["sh", "-c", script], env={**os.environ, "MAINPID": str(agent.pid)}, check=False, timeout=60)
        assert time.monotonic() - started >= 1
        assert agent.stdout.readline() == b"drains\n"
        assert agent.poll() is None  # the next signal is systemd's
    finally:
        agent.kill()
        agent.communicate()


def test_stop_ends_when_the_agent_has_ended() -> None:
    script = _stop_script(seconds=200)
    agent = subprocess.Popen(["sleep", "200"])
    # Reaped as soon as it ends, as systemd does it.
    threading.Thread(target=agent.wait).start()
    subprocess.run(["sh", "-c", script], env={**os.environ, "MAINPID": str(agent.pid)}, check=True, timeout=100)


def test_stop_of_an_agent_that_is_gone_does_nothing() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MAINPID"}
    done = subprocess.run(["sh", "-c", _stop_script(seconds=60)], env=environment, capture_output=True, check=True)
    assert done.stderr == b""


def _stop_script(seconds: int) -> str:
    """What `ExecStop` has a shell do, as systemd hands it over."""
    (line,) = [line for line in UNIT.splitlines() if line.startswith("ExecStop=")]
    shell, option, script = shlex.split(line.removeprefix("ExecStop=-"))
    assert (shell, option) == ("/bin/sh", "-c")
    return script.replace("$$", "$").replace("timeout 300", f"timeout {seconds}")
