"""`prefect-launch demo`, as a new user runs it: a server of its own, real trainings or a sweep of them, a table."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prefect_server import server_on_sqlite
from tests.support.requests import send

PROGRAM = Path(sys.executable).with_name("prefect-launch")
DEMO_SECONDS = 240
STAY = "Ctrl-C ends it"


@pytest.fixture(scope="module")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the demos of this file, with the database made: the second demo is like every later one."""
    return server_on_sqlite(tmp_path_factory.mktemp("demo")).home


@pytest.fixture
def demo(demo_home: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo with a sweep that stays, in a terminal's place."""
    process = subprocess.Popen(
        [PROGRAM, "demo", "--sweep", "--keep"],
        env=_environment(demo_home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_demo_trains_three_models_and_shows_how_good_they_are(demo_home: Path) -> None:
    shown = _run_demo(demo_home)

    assert shown.returncode == 0, shown.stdout + shown.stderr
    rows = re.findall(r"(digits-\w+) .*Completed.* ([\d.]+) s .* ([\d.]+)%", shown.stdout)
    assert [name for name, _, _ in rows] == ["digits-small", "digits-medium", "digits-large"]
    assert all(85 < float(accuracy) <= 100 for _, _, accuracy in rows)
    assert f" {PROGRAM} demo --keep\n" in shown.stdout
    assert _server_is_gone(shown.stdout)


def test_demo_of_a_sweep_shows_the_best_trial_and_serves_the_ui_until_interrupted(
    demo: subprocess.Popen[str], demo_home: Path
) -> None:
    shown = _read_until(demo, STAY)
    address = re.search(r"(http://127.0.0.1:\d+)/runs", shown)
    assert address
    best = re.search(r"^best: trial (\d+) finished, accuracy ([\d.]+)", shown, re.M)
    rows = re.findall(r"^ +(\d+)  finished +([\d.]+)", shown, re.M)
    assert best
    assert best.groups() == rows[0]
    assert sorted(number for number, _ in rows) == list("01234567")
    assert float(rows[0][1]) == max(float(accuracy) for _, accuracy in rows)
    assert re.search(rf"{address[1]}/runs/flow-run/\S+  the sweep", shown)

    page = send("GET", f"{address[1]}/", trust_env=False)
    settings = send("GET", f"{address[1]}/ui-settings", trust_env=False).json()
    second = _run_demo(demo_home)
    demo.send_signal(signal.SIGINT)

    assert page.status_code == 200
    assert settings["api_url"] == f"{address[1]}/api"
    assert second.returncode == 1
    assert "A demo is running" in second.stderr
    assert demo.wait(timeout=180) == 0
    assert _server_is_gone(address[1])


def _run_demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "demo", *arguments],
        env=_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "LAUNCH_DEMO_HOME": str(home)}


def _read_until(process: subprocess.Popen[str], end: str) -> str:
    assert process.stdout
    shown = ""
    for line in process.stdout:
        shown += line
        if end in line:
            return shown
    pytest.fail(f"the demo ended:\n{shown}", pytrace=False)


def _server_is_gone(text: str) -> bool:
    address = re.search(r"http://127.0.0.1:(\d+)", text)
    assert address
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(address[1]))) != 0
