"""Running programs: what they say comes back, and one that is not waited for any more is gone at once."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from subprocess import STDOUT, TimeoutExpired

import anyio
import pytest
from anyio import to_thread

from prefect_launch.core.subprocesses import run_command
from tests.support.live import until

#: Says that it is up, and stays with a child of its own.
STAYS = ["sh", "-c", "sleep 300 & echo $! > child; echo up > up; wait"]
#: The same, but the child is nobody's any more, and holds what the program says open.
LETS_GO = ["sh", "-c", "(sleep 300 & echo $! > child); echo up > up; sleep 300"]


async def test_program_gives_its_exit_code_and_both_streams() -> None:
    ended = await run_command(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")


async def test_streams_can_be_had_as_one() -> None:
    ended = await run_command(["sh", "-c", "echo out; echo err >&2"], stderr=STDOUT)
    assert ended.stdout == b"out\nerr\n"


async def test_program_that_is_not_there_is_reported() -> None:
    with pytest.raises(FileNotFoundError):
        await run_command(["no-such-program-anywhere"])


async def test_task_that_is_cancelled_ends_the_program_and_its_children(tmp_path: Path) -> None:
    task = asyncio.create_task(run_command(STAYS, cwd=tmp_path))
    child = await _child(tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _gone(child)


@pytest.mark.parametrize("command", [STAYS, LETS_GO], ids=["its child", "a child that it let go"])
async def test_scope_whose_time_is_up_ends_the_program_and_its_children(tmp_path: Path, command: list[str]) -> None:
    with anyio.move_on_after(60) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(run_command, command, cwd=tmp_path))
            child = await _child(tmp_path)
            scope.deadline = anyio.current_time()
    assert scope.cancelled_caught
    await _gone(child)


SAYS_WHY = ["sh", "-c", "echo 'no such host, retrying' >&2; sleep 300"]


async def test_program_that_is_killed_at_its_time_limit_has_said_why() -> None:
    with pytest.raises(TimeoutExpired) as late:
        await run_command(SAYS_WHY, seconds=2)
    assert (late.value.timeout, late.value.stderr) == (2, b"no such host, retrying\n")


async def test_program_ends_before_the_time_limit_of_its_caller_and_has_said_why() -> None:
    with anyio.fail_after(4), pytest.raises(TimeoutExpired) as late:
        await run_command(SAYS_WHY, seconds=30)
    assert (late.value.timeout < 4, late.value.stderr) == (True, b"no such host, retrying\n")


async def _child(folder: Path) -> int:
    await to_thread.run_sync(until, (folder / "up").exists)
    return int((folder / "child").read_text())


async def _gone(pid: int) -> None:
    """Wait until a process has ended, or is only waited for."""
    await to_thread.run_sync(until, lambda: _state(pid) in ("", "Z", "X"))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
