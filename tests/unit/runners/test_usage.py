"""What runs use, as their runners tell it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker.client import read_usage
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.runners.process.usage import usage_below
from prefect_launch.runners.usage import Usage
from prefect_launch.testing import InMemoryDocker, InMemoryEngine, Script

CPU = {"cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}}}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"memory_stats": {"usage": 100, "stats": {"total_inactive_file": 30, "inactive_file": 1}}}, (0, 70)),
        ({"memory_stats": {"usage": 100, "stats": {"inactive_file": 40}}, **CPU}, (1.5, 60)),
        ({"memory_stats": {"usage": 10, "stats": {"inactive_file": 40}}}, (0, 0)),
        ({"memory_stats": {"usage": 100}}, (0, 100)),
        ({"memory_stats": {}, **CPU}, None),
        ({}, None),
    ],
)
def test_memory_is_what_the_engine_counts_less_what_can_be_dropped(
    told: dict[str, object], expected: tuple[float, int] | None
) -> None:
    seen = read_usage(told)
    assert (seen and (seen.cpu_seconds, seen.memory_bytes)) == expected


async def test_container_tells_what_it_uses_while_it_runs(tmp_path: Path) -> None:
    docker = InMemoryDocker(lambda config: Script(seconds=60, memory_bytes=7_000_000), images={"i": {}})
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    plan = RunPlan(item_id="a", run_id="a", run_dir=tmp_path, image="i", labels={"prefect-launch.item": "a"})
    handle = await runner.create(plan)
    assert await runner.usage(handle) is None

    await runner.start(handle)

    assert await runner.usage(handle) == Usage(0.0, 7_000_000)
    await runner.stop(handle, 1)
    assert await runner.usage(handle) is None


FAMILY = """
import os, sys, threading
held = bytearray(int(sys.argv[1]) * 1_000_000)
def fork():
    if os.fork() == 0:
        more = bytearray(int(sys.argv[1]) * 1_000_000)
        print("ready", flush=True)
        sys.stdin.read()
        os._exit(0)
    print("parent", flush=True)
    sys.stdin.read()
thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""


def test_child_that_a_thread_has_made_counts_and_pages_that_it_shares_count_once() -> None:
    command = [sys.executable, "-c", FAMILY, "40"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as family:
        assert family.stdout is not None
        assert {family.stdout.readline(), family.stdout.readline()} == {b"ready\n", b"parent\n"}
        below, of_all = usage_below(family.pid), usage_below(os.getpid())
        assert family.stdin is not None
        family.stdin.close()

    assert below is not None
    assert of_all is not None
    assert 75_000_000 < below.memory_bytes < 130_000_000
    # The child's own 40 MB, and once the 40 MB that it shares with its parent since the fork.
    assert 75_000_000 < of_all.memory_bytes < below.memory_bytes + 35_000_000
    assert usage_below(family.pid) is None
