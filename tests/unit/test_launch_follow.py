"""Runs that a process follows in the background: what their handle tells, how they are stopped, and the exit."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from prefect_launch.client.background import FollowedRun, follower
from prefect_launch.errors import ExecutionError, SpecError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.run import AbstractRun, RunnerRun
from prefect_launch.testing import InMemoryMachine, InMemoryRunner, Script

PROJECT = Path(__file__).resolve().parents[2]
# A program whose run takes a minute, unless it is stopped; it says so when it has been.
PROGRAM = """
import asyncio, os, signal, sys, time
from pathlib import Path
from tests.unit.test_launch_follow import started
from prefect_launch.client.background import FollowedRun, follower
from prefect_launch.testing import Script

async def work():
    run = await started(Path(sys.argv[1]), Script(seconds=60))
    FollowedRun.here().attempt_started(run)
    print("started", flush=True)
    await run.wait()
    print("stopped" if run.exit.stopped else "ended", flush=True)
    return run

asyncio.run(follower().begin(work))
"""


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT)


async def started(folder: Path, script: Script) -> RunnerRun:
    """Start a run on a machine in memory."""
    runner = InMemoryRunner(folder, InMemoryMachine(lambda plan: script))
    item = str(uuid4())
    (folder / item).mkdir()
    plan = RunPlan(item_id=item, run_id=item[:8], run_dir=folder / item, labels={Labels.ITEM: item})
    handle = await runner.create(plan)
    await runner.start(handle)
    return RunnerRun(runner, handle, plan)


async def test_run_is_handed_over_when_it_has_started_and_ends_when_all_is_told(tmp_path: Path) -> None:
    tell = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work() -> RunnerRun:
        run = await started(tmp_path, Script(seconds=0.2, log=(b"hello\n",)))
        here = FollowedRun.here()
        assert here is not None
        here.attempt_started(run)
        await run.wait()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(tell.wait(), loop))
        return run

    run = await follower().begin(work)
    assert await run.get_status() == "running"
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.5 s; it continues"):
        await run.wait(timeout=0.5)
    assert await run.get_status() == "running"
    assert (await run.get_status()).messages == ["this attempt is finished"]
    tell.set()
    assert await run.wait()
    assert run.status == "finished"
    assert await run.get_logs() == "hello\n"


async def test_failed_run_is_waited_for_as_any_other(tmp_path: Path) -> None:
    async def work() -> RunnerRun:
        run = await started(tmp_path, Script(exit_code=3))
        here = FollowedRun.here()
        assert here is not None
        here.attempt_started(run)
        await run.wait()
        raise ExecutionError("exit code 3")

    run = await follower().begin(work)
    assert await run.wait() is False
    assert run.status == "failed"


async def test_cancelled_run_gets_no_further_attempt(tmp_path: Path) -> None:
    async def work() -> RunnerRun:
        here = FollowedRun.here()
        assert here is not None
        here.attempt_started(await started(tmp_path, Script(exit_code=1)))
        await here.unless_stopped(anyio.sleep(60))
        raise AssertionError("it was stopped")

    run = await follower().begin(work)
    await asyncio.wait_for(run.cancel(), 60)
    assert await run.wait() is False


async def test_what_keeps_a_run_from_starting_is_raised_where_it_was_called(tmp_path: Path) -> None:
    async def work() -> RunnerRun:
        raise SpecError("wrong")

    with pytest.raises(SpecError, match="wrong"):
        await follower().begin(work)


async def test_run_that_is_not_followed_is_returned_by_itself(tmp_path: Path) -> None:
    run = await follower().begin(lambda: started(tmp_path, Script(seconds=60)))
    assert isinstance(run, RunnerRun)


async def test_caller_that_is_cancelled_before_the_start_stops_what_it_began(tmp_path: Path) -> None:
    ends: list[str] = []

    async def work() -> RunnerRun:
        here = FollowedRun.here()
        assert here is not None
        try:
            await here.unless_stopped(anyio.sleep(60))
        except ExecutionError as error:
            ends.append(str(error))
            raise
        raise AssertionError("it was stopped")

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(follower().begin(work), 0.2)
    assert ends == ["Stopped while nothing of it ran."]


def signals(*sent: signal.Signals, at_exit: bool = True) -> str:
    """Code that sends this program signals from a thread, 1 ms apart: when it waits at its exit, or at once."""
    return f"""
import threading
def send():
    while {at_exit} and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.01)
    for number in {[int(one) for one in sent]}:
        os.kill(os.getpid(), number)
        time.sleep(0.001)
threading.Thread(target=send).start()
"""


AT_WORK = "time.sleep(30)"


@pytest.mark.parametrize(
    ("then", "code"),
    [
        (signals(signal.SIGINT, at_exit=False) + AT_WORK, -signal.SIGINT),
        (signals(signal.SIGTERM, at_exit=False) + AT_WORK, 128 + signal.SIGTERM),
        (signals(signal.SIGINT), -signal.SIGINT),
        (signals(signal.SIGTERM), -signal.SIGTERM),
        (signals(signal.SIGINT, signal.SIGINT, at_exit=False) + AT_WORK, -signal.SIGINT),
        (signals(signal.SIGINT, signal.SIGINT, signal.SIGINT), -signal.SIGINT),
    ],
    ids=["int-at-work", "term-at-work", "int-at-exit", "term-at-exit", "two-at-work", "three-at-exit"],
)
def test_process_that_is_interrupted_ends_its_runs_first(tmp_path: Path, then: str, code: int) -> None:
    last = "import atexit; atexit.register(print, 'last')\n"
    ended = run_program(last + PROGRAM + then, tmp_path)
    assert ended.stdout.split() == ["started", "stopped", "last"], ended.stderr
    assert ended.returncode == code


@pytest.mark.parametrize("exits", ["raise SystemExit(3)", ""], ids=["exits", "returns"])
def test_program_keeps_its_own_exit_code_whatever_became_of_its_run(tmp_path: Path, exits: str) -> None:
    program = PROGRAM.replace("Script(seconds=60)", "Script(seconds=0.5, exit_code=1)") + exits
    ended = run_program(program, tmp_path)
    assert ended.stdout.split() == ["started", "ended"], ended.stderr
    assert ended.returncode == (3 if exits else 0)


async def test_many_runs_leave_one_call_for_the_exit(tmp_path: Path) -> None:
    async def work() -> RunnerRun:
        run = await started(tmp_path, Script())
        here = FollowedRun.here()
        assert here is not None
        here.attempt_started(run)
        await run.wait()
        return run

    assert await (await follower().begin(work)).wait()
    calls = len(threading._threading_atexits)  # type: ignore[attr-defined]
    assert await (await follower().begin(work)).wait()
    assert len(threading._threading_atexits) == calls  # type: ignore[attr-defined]


def test_synchronous_code_waits_for_a_run_and_cancels_one(tmp_path: Path) -> None:
    def begin(script: Script) -> AbstractRun:
        async def work() -> RunnerRun:
            run = await started(tmp_path, script)
            here = FollowedRun.here()
            assert here is not None
            here.attempt_started(run)
            await run.wait()
            return run

        return asyncio.run(follower().begin(work))

    long = begin(Script(seconds=60, log=(b"hello\n",)))
    assert long.get_status_sync() == "running"
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.1 s"):
        long.wait_sync(timeout=0.1)
    long.cancel_sync()
    assert long.status == "stopped"
    assert long.get_logs_sync() == "hello\n"
    assert begin(Script()).wait_sync()


def test_process_with_a_sigterm_handler_of_its_own_keeps_it(tmp_path: Path) -> None:
    own = "signal.signal(signal.SIGTERM, lambda *_: Path(sys.argv[1], 'own').touch())\n"
    then = "os.kill(os.getpid(), signal.SIGTERM); raise KeyboardInterrupt"
    program = PROGRAM.replace("asyncio.run(", f"{own}asyncio.run(") + then
    ended = run_program(program, tmp_path)
    assert ended.stdout.split() == ["started", "stopped"], ended.stderr
    assert (tmp_path / "own").exists()


def test_fork_has_a_follower_of_its_own(tmp_path: Path) -> None:
    ours = follower()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not ours.alive else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert ours.alive
