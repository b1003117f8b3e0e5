"""Where supervisors come from: a process that may end, or be ended, without harm to what it started."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.testing.runner_contract import run
from tests.support.processes import POLL_SECONDS


@pytest.fixture
def runner(tmp_path: Path) -> LocalProcessRunner:
    return LocalProcessRunner(tmp_path / "home")


def make_plan(folder: Path, *command: str) -> RunPlan:
    item = str(uuid4())
    code = folder / "runs" / item / "code"
    code.mkdir(parents=True)
    return RunPlan(
        item_id=item,
        attempt=1,
        run_id=item[:8],
        run_dir=code.parent,
        code_dir=code,
        command=command,
        labels={Labels.ITEM: item},
    )


async def started(runner: LocalProcessRunner, plan: RunPlan) -> str:
    await runner.prepare(plan)
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


def fork_servers_of_this_process() -> set[int]:
    """The ids of the children of this process that are fork servers; other tests' runners may still have theirs."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"forkserver.py" in command:
            found.add(int(entry.name))
    return found


async def test_job_goes_on_and_the_next_one_starts_when_the_fork_server_is_killed(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep {POLL_SECONDS}; done; exit 7")
    before = fork_servers_of_this_process()
    handle = await started(runner, plan)

    (own,) = fork_servers_of_this_process() - before
    os.kill(own, signal.SIGKILL)
    (tmp_path / "go").touch()
    end = await runner.watch(handle, plan)
    after = await run(runner, make_plan(tmp_path, "sh", "-c", "exit 3"))

    assert (end.exit_code, after.exit_code) == (7, 3)
    await runner.aclose()


async def test_job_goes_on_when_its_agent_lets_go(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep {POLL_SECONDS}; done; exit 7")
    handle = await started(runner, plan)

    await runner.aclose()
    (tmp_path / "go").touch()
    end = await LocalProcessRunner(tmp_path / "home").watch(handle, plan)

    assert end.exit_code == 7
