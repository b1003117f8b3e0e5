"""The memory that a container was seen to hold."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker.client import read_memory
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing import InMemoryDocker, InMemoryEngine, Script


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"memory_stats": {"usage": 100, "stats": {"total_inactive_file": 30, "inactive_file": 1}}}, 70),
        ({"memory_stats": {"usage": 100, "stats": {"inactive_file": 40}}}, 60),
        ({"memory_stats": {"usage": 10, "stats": {"inactive_file": 40}}}, 0),
        ({"memory_stats": {"usage": 100}}, 100),
        ({"memory_stats": {}}, None),
        ({}, None),
    ],
)
def test_memory_is_what_the_engine_counts_less_what_can_be_dropped(told: dict[str, object], expected: int) -> None:
    assert read_memory(told) == expected


async def test_run_tells_the_largest_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.runners.docker.runner._FIRST_SECONDS", 0.01)
    docker = InMemoryDocker(lambda config: Script(seconds=0.3, memory_bytes=7_000_000), images={"i": {}})
    runner = LocalContainerRunner(tmp_path, InMemoryEngine(docker))
    plan = RunPlan(item_id="a", run_id="a", run_dir=tmp_path, image="i", labels={"prefect-launch.item": "a"})
    handle = await runner.create(plan)
    await runner.start(handle)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await asyncio.sleep(0.1)
    docker.reachable = False  # a sample that fails is no matter
    await asyncio.sleep(0.1)
    docker.reachable = True
    end = await watching
    assert (end.exit_code, end.peak_memory_bytes) == (0, 7_000_000)
