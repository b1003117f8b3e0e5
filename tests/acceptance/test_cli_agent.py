"""Agents in the foreground: signals, what goes on after them, the list."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Cli
from tests.support.live import until
from tests.support.prefect_server import PrefectServerProcess
from tests.support.processes import ChildProcess

READY_SECONDS = 60.0
SLOW = """
import os, time
print("begun", flush=True)
give_up = time.monotonic() + float(os.environ["SLEEP_SECONDS"])
while time.monotonic() < give_up and not os.path.exists(os.environ["END_FILE"]):
    time.sleep(0.05)
print("done", flush=True)
"""

StartAgent = Callable[..., ChildProcess]


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
    agents: list[ChildProcess] = []

    def start(name: str, *options: str) -> ChildProcess:
        log = tmp_path / f"agent-{len(agents)}.log"
        agents.append(ChildProcess([program, "agent", "start", "-q", queue, "--name", name, *options], log))
        agents[-1].wait_until(lambda: "polling on queues" in agents[-1].tail(), READY_SECONDS)
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


def add_slow_item(launch_cli: Cli, folder: Path, queue: str, seconds: float, *more: str) -> str:
    """Queue a job that sleeps, or until the file `end` is in the folder; returns the item's id."""
    code = folder / "slow"
    code.mkdir(exist_ok=True)
    (code / "main.py").write_text(SLOW)
    name = f"slow-{uuid4().hex[:8]}"
    launch_cli("job", "create", "code", "slow", "-E", "python main.py", "-n", name)
    options = json.dumps({"local-process": {"env": {"SLEEP_SECONDS": str(seconds), "END_FILE": str(folder / "end")}}})
    added = launch_cli("add", "-j", name, "-q", queue, "-R", options, "--json", *more)
    item: str = json.loads(added.stdout)["id"]
    return item


def test_agent_that_is_interrupted_twice_leaves_and_the_next_one_goes_on(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 120)
    name = f"box-{uuid4().hex[:8]}"
    first = start_agent(name)
    first.wait_until(lambda: f"{item} running" in first.tail(), READY_SECONDS)
    online = {agent["name"]: agent for agent in json.loads(launch_cli("agent", "list", "--json").stdout)}

    os.kill(first.pid, signal.SIGINT)
    first.wait_until(lambda: "Draining: the agent takes no more items; 1 active" in first.tail(), READY_SECONDS)
    code = end(first, signal.SIGINT)
    (tmp_path / "end").touch()
    second = start_agent(name)
    second.wait_until(lambda: f"{item} completed" in second.tail(), READY_SECONDS)
    left = end(second, signal.SIGTERM)

    assert (online[name]["online"], online[name]["queues"]) == (True, [queue])
    assert (code, left) == (130, 143)
    assert f"Leaving; 1 continue: {item}" in first.tail()
    assert "Traceback" not in first.tail()
    assert launch_cli("item", "logs", item).stdout == "begun\ndone\n"
    assert name not in launch_cli("agent", "list").stdout


def test_agent_is_listed_with_what_it_runs_and_drains_when_told_to_from_afar(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 120)
    name = f"box-{uuid4().hex[:8]}"
    agent = start_agent(name)
    agent.wait_until(lambda: f"{item} running" in agent.tail(), READY_SECONDS)
    until(lambda: listed(launch_cli, name)["state"] == "running")
    running = listed(launch_cli, name)
    waiting = add_slow_item(launch_cli, tmp_path, queue, 0)
    drained = launch_cli("agent", "drain", name)
    until(lambda: listed(launch_cli, name)["state"] == "draining")
    (tmp_path / "end").touch()
    code = agent.wait(READY_SECONDS)

    assert (running["host"], running["slots"], running["in_work"]) == (socket.gethostname(), 1, 1)
    assert [one["id"] for one in running["running"]] == [item]
    assert "takes no more items, and exits when these runs end: slow-" in drained.stdout
    assert code == 0
    assert f"{item} completed" in agent.tail()
    assert json.loads(launch_cli("item", "show", waiting, "--json").stdout)["state"] == "queued"
    assert name not in launch_cli("agent", "list").stdout
    assert "Unknown agent" in launch_cli("agent", "drain", name, code=None).stderr


def test_second_signal_stops_the_jobs_of_an_agent_that_was_started_so(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 120)
    agent = start_agent(f"box-{uuid4().hex[:8]}", "--stop-jobs")
    agent.wait_until(lambda: f"{item} running" in agent.tail(), READY_SECONDS)
    os.kill(agent.pid, signal.SIGTERM)
    agent.wait_until(lambda: "Draining" in agent.tail(), READY_SECONDS)
    code = end(agent, signal.SIGTERM)

    shown = json.loads(launch_cli("item", "show", item, "--json").stdout)
    assert (code, shown["state"]) == (143, "awaitingretry")
    assert "its agent was asked to stop its jobs" in shown["message"]


def test_item_that_is_added_with_a_time_limit_fails_when_it_is_over(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 120, "--timeout", "2s")
    agent = start_agent(f"box-{uuid4().hex[:8]}")
    agent.wait_until(lambda: f"{item} failed" in agent.tail(), READY_SECONDS)

    assert "The job timed out after 2 s" in json.loads(launch_cli("item", "show", item, "--json").stdout)["message"]


def test_running_item_that_is_cancelled_is_ended_by_its_agent(
    launch_cli: Cli, start_agent: StartAgent, queue: str, tmp_path: Path
) -> None:
    item = add_slow_item(launch_cli, tmp_path, queue, 120)
    agent = start_agent(f"box-{uuid4().hex[:8]}")
    agent.wait_until(lambda: f"{item} running" in agent.tail(), READY_SECONDS)

    asked = launch_cli("item", "cancel", item)
    agent.wait_until(lambda: f"{item} cancelled" in agent.tail(), READY_SECONDS)

    assert "is being stopped by its agent" in asked.stdout
    assert json.loads(launch_cli("item", "show", item, "--json").stdout)["state"] == "cancelled"
    assert re.search(r"^\d\d:\d\d:\d\d[+-]\d{4} [0-9a-f-]{36} [a-z-]+ ", agent.tail(), re.MULTILINE)


def end(agent: ChildProcess, number: signal.Signals) -> int:
    """Send a signal to an agent's process; returns its exit code."""
    os.kill(agent.pid, number)
    return agent.wait(READY_SECONDS)


def listed(launch_cli: Cli, name: str) -> dict[str, Any]:
    """What the list says of an agent."""
    found: list[dict[str, Any]] = json.loads(launch_cli("agent", "list", "--json").stdout)
    return next((agent for agent in found if agent["name"] == name), {"state": "absent"})
