"""The benchmarks run, and print their table; how fast anything is, is not asked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def test_benchmarks_print_a_row_for_each_figure() -> None:
    done = bench("--quick", "imports", "start", "enqueue", "sweep", "metrics")

    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows[:2] == ["import prefect_launch.inputs", "prefect-launch --help"]
    assert {"agent start → first claim, CPU", "agent start → first claim"} <= set(rows)
    assert {"launch_add, one caller", "launch_add_many, 20 items"} <= set(rows)
    assert {"trial's end → next start, median of 2", "scheduler's CPU time a trial"} <= set(rows)
    assert "agent's CPU time, 100 lines of metrics" in rows
    assert "cores" in done.stdout


@pytest.mark.engine
def test_benchmarks_of_agents_print_a_row_for_each_figure(engine: DockerEngine) -> None:
    done = bench("--quick", "agents", "cancel", "restart", "memory")

    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    wanted = {"3 items, two agents", "cancel a silent container, median", "restart, 2 containers found again"}
    assert {*wanted, "agent's memory per running job, of 2"} <= set(rows)


def test_unknown_benchmark_is_refused_with_the_names_of_all() -> None:
    done = bench("dispach")

    assert done.returncode == 2
    assert "unknown benchmark 'dispach'; there are imports, start, dispatch, throughput, agents, " in done.stderr
