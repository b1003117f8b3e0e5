"""Agents in the foreground: signals, what goes on after them, the list."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.prefect_server import PrefectServerProcess
from tests.support.processes import ChildProcess

READY_SECONDS = 60.0
SLOW = """
import time
print("begun", flush=True)
time.sleep(float(__import__("os").environ["SLEEP_SECONDS"]))
print("done", flush=True)
"""

StartAgent = Callable[[str], ChildProcess]


@pytest.fixture
def queue(prefect_server: PrefectServerProcess, launch_cli: Cli) -> str:
    """A queue of this test's own."""
    name = f"agents-{uuid4().hex[:8]}"
    launch_cli("queue", "create", name)
    return name


@pytest.fixture
def start_agent(queue: str, tmp_path: Path) -> Iterator[StartAgent]:
    """Start an agent in the foreground of a process of its own; its lines are in the process's log."""
    program = str(Path(sys.executable).with_name("prefect-launch"))
    agents = []

    def start(name: str) -> ChildProcess:
        log = tmp_path / f"agent-{len(agents)}.log"
        agents.append(ChildProcess([program, "agent", "start", "-q", queue, "--name", name], log))
        agents[-1].wait_until(lambda: "polling on queues" in agents[-1].tail(), READY_SECONDS)
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


def add_slow_item(launch_cli: Cli, folder: Path, queue: str, seconds: float) -> str:
    """Queue a job that sleeps; returns the item's id."""
    code = folder / "slow"
    code.mkdir(exist_ok=True)
    (code / "main.py").write_text(SLOW)
    name = f"slow-{uuid4().hex[:8]}"
    launch_cli("job", "create", "code", "slow", "-E", "python main.py", "-n", name)
    options = json.dumps({"local-process": {"env": {"SLEEP_SECONDS": str(seconds)}}})
    added = launch_cli("add", "-j", name, "-q", queue, "-R", options, "--json")
    item: str = json.loads(added.stdout)["id"]
    return item


def test_agent_that_is_interrupted_leaves_and_the_next_one_goes_on(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 8)
    name = f"box-{uuid4().hex[:8]}"
    first = start_agent(name)
    first.wait_until(lambda: f"{item} running" in first.tail(), READY_SECONDS)
    online = {agent["name"]: agent for agent in json.loads(launch_cli("agent", "list", "--json").stdout)}

    code = end(first, signal.SIGINT)
    second = start_agent(name)
    second.wait_until(lambda: f"{item} completed" in second.tail(), READY_SECONDS)
    left = end(second, signal.SIGTERM)

    assert (online[name]["online"], online[name]["queues"]) == (True, [queue])
    assert (code, left) == (130, 143)
    assert f"Leaving; 1 go on: {item}" in first.tail()
    assert "Traceback" not in first.tail()
    assert launch_cli("item", "logs", item).stdout == "begun\ndone\n"
    assert name not in launch_cli("agent", "list").stdout


def test_running_item_that_is_cancelled_is_ended_by_its_agent(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 120)
    agent = start_agent(f"box-{uuid4().hex[:8]}")
    agent.wait_until(lambda: f"{item} running" in agent.tail(), READY_SECONDS)

    asked = launch_cli("item", "cancel", item)
    agent.wait_until(lambda: f"{item} cancelled" in agent.tail(), READY_SECONDS)

    assert "asked to stop" in asked.stdout
    assert json.loads(launch_cli("item", "show", item, "--json").stdout)["state"] == "cancelled"
    assert re.search(r"^\d\d:\d\d:\d\d [0-9a-f-]{36} [a-z-]+ ", agent.tail(), re.MULTILINE)


def end(agent: ChildProcess, number: signal.Signals) -> int:
    """Send a signal to an agent's process; returns its exit code."""
    os.kill(agent.pid, number)
    return agent.wait(READY_SECONDS)
