"""The systemd unit that `agent unit` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
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
        unit_text("box", arguments, {"PREFECT_API_URL": "http://x/a%20b"}, of_user=of_user, stop_time="5min")
    )
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [checker, *(["--user"] if of_user else []), "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_lets_jobs_outlive_the_agent_and_a_drained_agent_stay_down() -> None:
    lines = unit_text("box", ["-q", "gpu"], {}, of_user=False, stop_time="2h").splitlines()
    assert {"KillMode=process", "Restart=on-failure", "OOMPolicy=continue", "TimeoutStopSec=2h"} <= set(lines)


def test_words_of_a_unit_are_not_filled_in_by_systemd() -> None:
    text = unit_text("box", ["-c", 'a "b" $c %d'], {"K": "100% $x"}, of_user=False, stop_time="5min")
    assert r'''-c "a \"b\" $$c %%d"''' in text
    assert '''Environment="K=100%% $x"''' in text
