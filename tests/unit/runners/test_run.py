"""The handle on a run that looks like a Future."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.run import RunnerRun, Status
from prefect_launch.testing import InMemoryMachine, InMemoryRunner, Script


async def start(folder: Path, script: Script) -> RunnerRun:
    plan = RunPlan(item_id="item", run_id="run-1", run_dir=folder, command=("x",), labels={Labels.ITEM: "item"})
    runner = InMemoryRunner(folder, InMemoryMachine(lambda _: script))
    handle = await runner.create(plan)
    await runner.start(handle)
    return RunnerRun(runner, handle, plan)


def test_status_equals_a_status_or_a_text_of_the_same_state() -> None:
    assert Status() == "unknown"
    assert Status("running", ["a"]) == Status("running")
    assert Status("running") != "failed"
    assert Status("running") != 3
    assert {Status("failed"): 1}[Status("failed", ["why"])] == 1


async def test_run_that_succeeds_is_finished(tmp_path: Path) -> None:
    run = await start(tmp_path, Script(seconds=0.1, log=(b"hi \xff\n",)))
    assert run.id == "run-1"
    assert run.status == "starting"
    assert await run.get_status() == "running"
    assert await run.wait() is True
    assert run.status == "finished"
    assert await run.get_logs() == "hi �\n"


async def test_run_that_fails_says_why(tmp_path: Path) -> None:
    run = await start(tmp_path, Script(exit_code=3))
    assert await run.wait() is False
    assert run.status == "failed"
    assert run.status.messages == ["exit code 3"]


async def test_wait_that_times_out_leaves_the_run_alone(tmp_path: Path) -> None:
    run = await start(tmp_path, Script(seconds=0.3))
    with pytest.raises(TimeoutError, match="run-1"):
        await run.wait(timeout=0.01)
    assert list(await asyncio.gather(run.wait(), run.wait(timeout=60))) == [True, True]


async def test_cancelled_run_is_stopped(tmp_path: Path) -> None:
    run = await start(tmp_path, Script(seconds=60))
    await run.cancel()
    assert run.status == "stopped"
    assert await run.get_status() == "stopped"
    await run.cancel()


async def test_end_is_noticed_by_asking_for_the_status(tmp_path: Path) -> None:
    run = await start(tmp_path, Script(exit_code=1))
    await asyncio.sleep(0.05)
    assert await run.get_status() == "failed"


def test_run_outlives_the_event_loop_that_it_was_made_in(tmp_path: Path) -> None:
    run = asyncio.run(start(tmp_path, Script()))
    assert run.status == "starting"
    assert asyncio.run(run.get_logs()) is not None
