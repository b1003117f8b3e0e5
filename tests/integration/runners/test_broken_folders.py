"""Run folders whose files are broken, half written or gone: the run ends, is told of, and no other is disturbed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from prefect_launch.planning.plan import save_plan
from prefect_launch.runners.base import Labels, RunPlan, RunState
from prefect_launch.runners.process.runner import LocalProcessRunner
from tests.integration.runners.test_local_process import lives, make_plan, until_log_has

BROKEN = ["", "{", "[]", '"text"', "\x00\x00"]


@pytest.fixture
def runner(tmp_path: Path) -> LocalProcessRunner:
    return LocalProcessRunner(tmp_path / "home")


async def begun(runner: LocalProcessRunner, folder: Path, script: str) -> tuple[RunPlan, int]:
    """A run whose job has begun, and the job's process."""
    plan = make_plan(folder, ("sh", "-c", f"echo pid $$; {script}"))
    save_plan(plan)
    await runner.prepare(plan)
    await runner.start(await runner.create(plan))
    return plan, int((await until_log_has(plan, "pid")).split()[1])


async def gone(pid: int) -> bool:
    for _ in range(3000):
        if not lives(pid):
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize("text", [*BROKEN, '{"exit_code": "x"}', '{"exit_code": 0, "ended_at": 1e99}'])
async def test_run_whose_end_cannot_be_read_is_lost(runner: LocalProcessRunner, tmp_path: Path, text: str) -> None:
    plan, _ = await begun(runner, tmp_path, "exit 0")
    await runner.watch(str(plan.run_dir), plan)
    (plan.run_dir / "exit.json").write_text(text)
    end = await runner.watch(str(plan.run_dir), plan)
    assert (end.succeeded, end.exit_code) == (False, None)
    assert "exit.json in its run folder is broken" in end.describe()
    assert (await runner.find(plan.labels))[0].state is RunState.EXITED


@pytest.mark.parametrize("text", [*BROKEN, '{"labels": 3}', '{"labels": {"prefect-launch.attempt": 1}}'])
async def test_run_whose_own_file_is_broken_is_found_by_its_plan(
    runner: LocalProcessRunner, tmp_path: Path, text: str
) -> None:
    plan, _ = await begun(runner, tmp_path, "sleep 0.5; exit 4")
    (plan.run_dir / "process.json").write_text(text)
    [found] = await runner.find(plan.labels)
    assert (found.state, found.labels) == (RunState.RUNNING, plan.labels)
    assert (await runner.watch(found.handle, plan)).exit_code == 4
    await runner.remove(found.handle)
    assert await runner.find(plan.labels) == []


async def test_run_of_which_nothing_can_be_read_is_ended_and_struck_out_and_others_are_found(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan, pid = await begun(runner, tmp_path, "sleep 60")
    other, other_pid = await begun(runner, tmp_path, "sleep 60")
    for name in ("process.json", "plan.json"):
        (plan.run_dir / name).write_text("{")
    [found] = await runner.find({})
    assert found.labels[Labels.ITEM] == other.item_id
    assert (await gone(pid), lives(other_pid)) == (True, True)
    await runner.stop(found.handle, 0.1)


async def test_run_whose_folder_was_removed_is_ended(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan, pid = await begun(runner, tmp_path, "sleep 60")
    shutil.rmtree(plan.run_dir)
    assert await runner.find({}) == []
    assert await gone(pid)


@pytest.mark.parametrize("name", ["supervisor.json", "started.json"])
@pytest.mark.parametrize("text", BROKEN)
async def test_job_whose_processes_are_not_told_any_more_is_never_started_again(
    runner: LocalProcessRunner, tmp_path: Path, name: str, text: str
) -> None:
    plan, pid = await begun(runner, tmp_path, "echo ran >> ../ran; sleep 60")
    (plan.run_dir / name).write_text(text)
    assert (await runner.find(plan.labels))[0].state is not RunState.CREATED
    await runner.start(str(plan.run_dir))
    await runner.stop(str(plan.run_dir), 0.1)
    end = await runner.watch(str(plan.run_dir), plan)
    assert not end.succeeded
    assert await gone(pid)
    assert (plan.run_dir / "ran").read_text() == "ran\n"
