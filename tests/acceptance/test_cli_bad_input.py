"""What the command line refuses: one clear line, exit code 1, nothing on the queue."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.ports import free_port
from tests.support.prefect_server import PrefectServerProcess

CASES = {
    "no source": ([], "Exactly one of job, docker_image or uri"),
    "two sources": (["-j", "train", "-d", "alpine"], "got job='train' and docker_image='alpine'"),
    "unknown job": (["-j", "no-such-job"], "Unknown job"),
    "unknown option": (["-d", "alpine", "-R", '{"local-container": {"memry": "1g"}}'], "memry"),
    "unknown variable": (["-d", "alpine", "-v", "gpu=1"], "Unknown template variable 'gpu'"),
    "unknown config key": (["-c", '{"docker_imag": "alpine"}'], "Unknown launch option 'docker_imag'"),
    "priority": (["-d", "alpine", "-P", "urgent"], "Invalid priority 'urgent'"),
    "priority 9": (["-d", "alpine", "-P", "9"], "Invalid priority '9'"),
    "config": (["-c", "{nope"], "neither JSON nor YAML"),
    "NaN": (["-d", "alpine", "-c", '{"overrides": {"run_config": {"lr": NaN}}}'], "NaN"),
    "args": (["-d", "alpine", "-c", '{"overrides": {"args": "--lr 1"}}'], "list of strings"),
    "set": (["-d", "alpine", "--set", "lr"], "NAME=VALUE"),
    "entry point": (["-d", "alpine", "-E", "echo 'open"], "quotes"),
    "name": (["-d", "alpine", "--name", "x" * 300], "300 characters"),
    "run id": (["-d", "alpine", "--run-id", "../x"], "Invalid run_id name"),
    "resource": (["-d", "alpine", "-r", "local-containr"], "local-container"),
}

ALL_IN_ONE = """
import contextlib, io, json, sys
from prefect_launch.cli.main import run
results = {}
for case, arguments in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    results[case] = code, out.getvalue(), err.getvalue()
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def queue_name() -> str:
    """The name of the queue that all cases share; it stays empty."""
    return f"bad-{uuid4().hex[:8]}"


@pytest.fixture
def queue(prefect_server: PrefectServerProcess, launch_cli: Cli, queue_name: str) -> str:
    """That queue."""
    launch_cli("queue", "create", queue_name, "-r", "local-container", "--replace")
    return queue_name


def test_refused_requests_are_reported_in_one_line_and_leave_nothing_behind(launch_cli: Cli, queue: str) -> None:
    given = {case: ["add", "-q", queue, *arguments] for case, (arguments, _) in CASES.items()}
    # One process for all: what they have in common, the import of Prefect, takes most of each one's time.
    done = subprocess.run(
        [sys.executable, "-c", ALL_IN_ONE], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    refused = json.loads(done.stdout)

    for case, (_, told) in CASES.items():
        code, output, errors = refused[case]
        assert (code, output, errors.count("\n")) == (1, "", 1), (case, refused[case])
        assert errors.startswith("Error: "), case
        assert told in errors, (case, errors)
    assert json.loads(launch_cli("item", "list", "-q", queue, "--json").stdout) == []


def test_unknown_queue_is_reported_with_the_nearest_right_one(launch_cli: Cli, queue: str) -> None:
    refused = launch_cli("add", "-q", f"{queue}x", "-d", "alpine", code=1)

    assert refused.stderr.startswith(f"Error: Unknown queue '{queue}x'. Did you mean '{queue}'?")


def test_agent_of_an_unknown_queue_or_setting_does_not_start(launch_cli: Cli, queue: str) -> None:
    unknown = launch_cli("agent", "start", "-q", f"{queue}x", "--until-empty", code=1)
    none = launch_cli("agent", "start", "--until-empty", code=1)
    wrong = launch_cli("agent", "start", "-q", queue, "-j", "many", code=1)

    assert "Unknown queue" in unknown.stderr.splitlines()[-1]
    assert "queue" in none.stderr.splitlines()[-1]
    assert "whole number" in wrong.stderr.splitlines()[-1]
    for refused in (unknown, none, wrong):
        assert "Traceback" not in refused.stderr


def test_item_that_does_not_exist_is_told_by_its_id(launch_cli: Cli, queue: str) -> None:
    for item, told in (
        (str(uuid4()), "There is no item"),
        ("0f0f0f0f0f0f", "No item is named '0f0f0f0f0f0f'"),
        ("x", "No item is named 'x'"),
    ):
        assert told in launch_cli("item", "show", item, code=1).stderr


def test_server_that_is_not_there_is_reported_with_what_to_do(launch_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")

    refused = launch_cli("queue", "list", code=1)

    assert "does not answer" in refused.stderr
    assert "prefect server start" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_debugging_shows_the_traceback_above_the_line(launch_cli: Cli, queue: str) -> None:
    refused = launch_cli("--debug", "queue", "show", f"{queue}x", code=1)

    assert "Traceback" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: Unknown queue")
