"""The whole way of a job through the command line alone, on a real server."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.forked_cli import ForkedCli
from tests.support.prefect_server import PrefectServerProcess
from tests.support.processes import ChildProcess

TRAIN = """
import json, os, sys
inputs = json.loads(os.environ["LAUNCH_CONFIG"])
for epoch in range(inputs["epochs"]):
    print("epoch", epoch, "of", inputs["tag"], inputs["optimizer"]["lr"], flush=True)
if os.environ.get("LAUNCH_OUTPUT_DIR"):
    with open(os.environ["LAUNCH_OUTPUT_DIR"] + "/outputs.json", "w") as file:
        json.dump({"score": 0.5}, file)
if inputs["fail"]:
    sys.exit("broken on purpose")
"""
SCHEMA = {
    "type": "object",
    "properties": {
        "epochs": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
        "tag": {"type": "string", "default": "x"},
        "fail": {"type": "boolean", "default": False},
        "optimizer": {"type": "object", "properties": {"lr": {"type": "number", "default": 0.1}}},
    },
    "additionalProperties": False,
}


@pytest.fixture
def queue(prefect_server: PrefectServerProcess, launch_cli: Cli) -> str:
    """A queue of this test's own."""
    name = f"tour-{uuid4().hex[:8]}"
    launch_cli("queue", "create", name)
    return name


@pytest.fixture
def job(prefect_server: PrefectServerProcess, launch_cli: Cli, tmp_path: Path) -> str:
    """A code job of this test's own."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text(TRAIN)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    name = f"train-{uuid4().hex[:8]}"
    made = launch_cli("job", "create", "code", "code", "-E", "python train.py", "--schema", "schema.json", "-n", name)
    assert made.stdout == f"Created job: default/default/{name}:v0, with aliases: latest\n"
    return name


def test_job_goes_from_a_folder_through_a_queue_to_its_log(launch_cli: Cli, queue: str, job: str) -> None:
    inputs = ("--set", "epochs=3", "--set", "tag=1.10", "--set", "optimizer.lr=.5")
    good = launch_cli("add", "-j", job, "-q", queue, *inputs, "-P", "low", "--name", "good [run] {x}")
    bad = json.loads(launch_cli("add", "-j", job, "-q", queue, "--set", "fail=true", "-P", "1", "--json").stdout)
    good_id = re.search(r"id:\s+([0-9a-f]{8})\n", good.stdout)
    assert good_id
    assert re.search(rf"page: http\S+/runs/flow-run/[0-9a-f-]{{28}}{good_id[1]}\n", good.stdout)
    assert (bad["state"], bad["priority"], bad["queue"]) == ("queued", 1, queue)
    waiting = json.loads(launch_cli("item", "show", good_id[1], "--json").stdout)
    assert waiting["why"].startswith("No agent is online")

    agent = launch_cli("agent", "start", "-q", queue, "-j", "2", "--until-empty")

    assert agent.stdout == ""
    assert re.search(rf"^\d\d:\d\d:\d\d[+-]\d{{4}} \S+{good_id[1]} completed ", agent.stderr, re.MULTILINE)
    assert "Traceback" not in agent.stderr
    listed = json.loads(launch_cli("item", "list", "-q", queue, "--json").stdout)
    ended = {item["id"][-8:]: item["state"] for item in listed}
    assert ended == {good_id[1]: "completed", bad["id"][-8:]: "failed"}
    shown = json.loads(launch_cli("item", "show", "good [run] {x}", "--json").stdout)
    assert shown["inputs"] == {"epochs": 3, "tag": "1.10", "fail": False, "optimizer": {"lr": 0.5}}
    assert shown["job"] == f"default/default/{job}:v0"
    assert shown["outputs"] == {"score": 0.5}
    # An environment that an earlier test has left needs no `Building`.
    states = [state["name"] for state in shown["states"] if state["name"] != "Building"]
    assert states == ["Queued", "Pending", "Running", "Completed"]
    log = launch_cli("item", "logs", good_id[1], "-f").stdout
    assert log == "".join(f"epoch {epoch} of 1.10 0.5\n" for epoch in range(3))
    text = launch_cli("item", "show", bad["id"]).stdout
    assert "exit code 1" in text
    assert "failed" in text


def test_item_that_is_waited_for_gives_its_log_and_its_exit_code(
    launch_cli: Cli, forked_cli: ForkedCli, queue: str, job: str, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    start = ["agent", "start", "-q", queue]
    agent = ChildProcess.forked(forked_cli.start(start, cwd=tmp_path, environment=os.environ, out=log), log)
    try:
        good = launch_cli("add", "-j", job, "-q", queue, "--wait")
        bad = launch_cli("add", "-j", job, "-q", queue, "--set", "fail=true", "--wait", code=1)
    finally:
        agent.stop()

    assert "epoch 0 of x 0.1\nepoch 1 of x 0.1\n" in good.stdout
    assert "broken on purpose" in bad.stdout
    *waits, error = bad.stderr.splitlines()
    assert error.startswith("Error: Run ")
    assert all(line.startswith("The item ") for line in waits)


def test_same_run_id_with_the_same_request_gives_the_same_item(launch_cli: Cli, queue: str, job: str) -> None:
    given = ("add", "-j", job, "-q", queue, "--run-id", f"r-{uuid4().hex[:8]}", "--json")

    first, again = (json.loads(launch_cli(*given).stdout) for _ in range(2))
    other = launch_cli(*given, "--set", "epochs=5", code=1)

    assert first["id"] == again["id"]
    assert "is taken by another spec" in other.stderr


def test_dry_run_tells_what_would_run_and_leaves_nothing_behind(
    launch_cli: Cli, queue: str, job: str, tmp_path: Path
) -> None:
    given = ("add", "-j", job, "-q", queue, "--set", "epochs=3", "--retries", "2", "--explain")
    files = sorted(tmp_path.rglob("*"))

    text = launch_cli(*given).stdout
    told = json.loads(launch_cli(*given, "--json").stdout)
    refused = launch_cli(*given, "--set", "epochz=3", code=1)

    assert "nothing is queued" in text
    assert "No agent is online" in text
    assert re.search(r"^command +python train.py$", text, re.MULTILINE)
    assert told["job"] == f"default/default/{job}:v0"
    assert told["creates"]["command"] == ["python", "train.py"]
    assert "LAUNCH_CONFIG" in told["creates"]["env"]
    assert (told["waiting"]["place"], told["waiting"]["waiting"]) == (1, 1)
    assert told["parameters"]["retries"] == {"max": 2}
    assert "epochz" in refused.stderr
    assert json.loads(launch_cli("item", "list", "-q", queue, "--json").stdout) == []
    assert sorted(tmp_path.rglob("*")) == files


def test_waiting_item_that_is_cancelled_is_gone_at_once_and_can_be_retried(
    launch_cli: Cli, queue: str, job: str
) -> None:
    item = json.loads(launch_cli("add", "-j", job, "-q", queue, "--json").stdout)["id"]

    cancelled = launch_cli("item", "cancel", item[-8:])
    told = json.loads(launch_cli("item", "show", item, "--json").stdout)
    refused = launch_cli("item", "cancel", item, code=1)
    retried = json.loads(launch_cli("item", "retry", item, "--json").stdout)

    assert "is cancelled" in cancelled.stdout
    assert "while it waited: nothing was started." in told["message"]
    assert told["started"] is None
    assert "ended already" in refused.stderr
    assert retried["state"] == "queued"
    assert json.loads(launch_cli("item", "show", item, "--json").stdout)["state"] == "queued"


def test_job_runs_here_and_now_with_its_log_and_its_exit_code(launch_cli: Cli, job: str) -> None:
    good = launch_cli("run", "-j", job, "--set", "epochs=1", "--name", "here {x}")
    bad = launch_cli("run", "-j", job, "--set", "fail=true", "--json", code=1)

    assert good.stdout == "epoch 0 of x 0.1\n"
    assert re.match(r"here \{x\} \([0-9a-f]{8}\) completed after ", good.stderr)
    assert bad.stdout == ""
    assert bad.stderr.splitlines()[-1].startswith("Error: Run ")
    assert "Traceback" not in bad.stderr


def test_job_is_listed_described_and_deployed(launch_cli: Cli, queue: str, job: str, tmp_path: Path) -> None:
    again = ("job", "create", "code", "code", "-E", "python train.py", "-n", job)
    same = launch_cli(*again, "--schema", "schema.json", "-a", "best")
    (tmp_path / "code" / "train.py").write_text("print('changed')\n")
    changed = launch_cli(*again)

    assert same.stdout.startswith(f"No changes detected for job: default/default/{job}:v0")
    assert changed.stdout.startswith(f"Updated job: default/default/{job}:v1")
    listed = {entry["name"]: entry for entry in json.loads(launch_cli("job", "list", "--json").stdout)}
    assert (listed[job]["versions"], listed[job]["aliases"]) == (2, ["best", "latest"])
    described = json.loads(launch_cli("job", "show", f"{job}:best", "--json").stdout)
    assert (described["version"], described["entry_point"]) == (0, ["python", "train.py"])
    assert described["schema"]["properties"]["epochs"]["maximum"] == 9
    assert "at least 1; at most 9" in launch_cli("job", "describe", f"{job}:best").stdout
    deployed = json.loads(launch_cli("job", "deploy", f"{job}:best", "-q", queue, "--json").stdout)
    assert deployed["command"] == f"prefect deployment run launch/{job}"
    assert deployed["url"].endswith(f"/deployments/deployment/{deployed['id']}")
