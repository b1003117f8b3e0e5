"""The benchmarks run, and print their table; how fast anything is, is not asked here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from benchmarks.__main__ import main

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine

ROOT = Path(__file__).resolve().parents[2]

Bench = Callable[..., str]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run benchmarks in this process, which has everything imported; gives what they print."""

    def run(*arguments: str) -> str:
        with patch.dict(os.environ):
            main(["--quick", *arguments])
        return capsys.readouterr().out

    return run


def rows(shown: str) -> list[str]:
    return [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]


def test_benchmarks_print_a_row_for_each_figure(bench: Bench) -> None:
    shown = bench("imports", "start", "enqueue", "sweep", "metrics", "depth", "clusters")

    found = rows(shown)
    assert found[:2] == ["import prefect_launch.inputs", "prefect-launch --help"]
    assert {"agent start → first claim, CPU", "agent start → first claim"} <= set(found)
    assert {"launch_add, one caller", "launch_add_many, 20 items"} <= set(found)
    assert {"trial's end → next start, median of 2", "scheduler's CPU time a trial"} <= set(found)
    assert "agent's CPU time, 100 lines of metrics" in found
    assert {"launch_add, SQLite, 250 waiting: CPU", "claim, SQLite, 250 waiting: CPU"} <= set(found)
    assert {"start in a cluster, queued → started", "restart, 2 jobs in a cluster found again"} <= set(found)
    assert "cores" in shown


@pytest.mark.engine
def test_benchmarks_of_agents_print_a_row_for_each_figure(bench: Bench, engine: DockerEngine) -> None:
    wanted = {
        "2 agents against one, SQLite",
        "cancel a silent container, median",
        "restart, 2 containers found again",
        "agent's memory per running job, of 2",
        "agent's CPU, 2 processes",
        "agent's CPU, 2 containers",
    }

    assert wanted <= set(rows(bench("agents", "cancel", "restart", "memory", "usage")))


def test_unknown_benchmark_is_refused_with_the_names_of_all() -> None:
    command = [sys.executable, "-m", "benchmarks", "dispach"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)

    assert done.returncode == 2
    assert "unknown benchmark 'dispach'; there are imports, start, dispatch, throughput, cost, agents, " in done.stderr
