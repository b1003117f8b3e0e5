"""The systemd unit that `agent unit` prints."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from prefect_launch.cli.unit import unit_text


@pytest.mark.parametrize("of_user", [False, True])
def test_unit_passes_systemds_own_check(tmp_path: Path, of_user: bool) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = tmp_path / "prefect-launch-box.service"
    arguments = ["-q", "gpu", "-c", "/etc/a folder/agent $1 100%.yaml"]
    unit.write_text(
        unit_text("box", arguments, {"PREFECT_API_URL": "http://x/a%20b"}, of_user=of_user, stop_seconds=300)
    )
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [checker, *(["--user"] if of_user else []), "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_lets_jobs_outlive_the_agent_and_a_drained_agent_stay_down() -> None:
    lines = unit_text("box", ["-q", "gpu"], {}, of_user=False, stop_seconds=7200).splitlines()
    assert {"KillMode=process", "Restart=on-failure", "OOMPolicy=continue", "TimeoutStopSec=7290"} <= set(lines)


def test_stop_signals_the_agent_and_waits_for_it_no_longer_than_it_may() -> None:
    script = _stop_script(seconds=1)
    agent = subprocess.Popen(
        ["sh", "-c", "trap 'echo drains' TERM; echo up; while true; do sleep 0.1; done"], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    try:
        assert agent.stdout.readline() == b"up\n"
        started = time.monotonic()
        subprocess.run(["sh", "-c", script], env={**os.environ, "MAINPID": str(agent.pid)}, check=False, timeout=30)
        assert time.monotonic() - started >= 1
        assert agent.stdout.readline() == b"drains\n"
        assert agent.poll() is None  # the next signal is systemd's
    finally:
        agent.kill()
        agent.communicate()


def test_stop_ends_when_the_agent_has_ended() -> None:
    script = _stop_script(seconds=60)
    agent = subprocess.Popen(["sleep", "60"])
    # Reaped as soon as it ends, as systemd does it.
    threading.Thread(target=agent.wait).start()
    started = time.monotonic()
    subprocess.run(["sh", "-c", script], env={**os.environ, "MAINPID": str(agent.pid)}, check=True, timeout=30)
    assert time.monotonic() - started < 20


def test_stop_of_an_agent_that_is_gone_does_nothing() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MAINPID"}
    done = subprocess.run(["sh", "-c", _stop_script(seconds=60)], env=environment, capture_output=True, check=True)
    assert done.stderr == b""


def _stop_script(seconds: float) -> str:
    """What `ExecStop` has a shell do, as systemd hands it over."""
    text = unit_text("box", ["-q", "gpu"], {}, of_user=False, stop_seconds=seconds)
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStop=")]
    shell, option, script = shlex.split(line.removeprefix("ExecStop=-"))
    assert (shell, option) == ("/bin/sh", "-c")
    return script.replace("$$", "$")


def test_words_of_a_unit_are_not_filled_in_by_systemd() -> None:
    text = unit_text("box", ["-c", 'a "b" $c %d'], {"K": "100% $x"}, of_user=False, stop_seconds=300)
    assert r'''-c "a \"b\" $$c %%d"''' in text
    assert '''Environment="K=100%% $x"''' in text
