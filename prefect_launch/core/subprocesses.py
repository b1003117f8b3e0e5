"""Asynchronous subprocesses that end with the task that waits for them.

Cancelling the task kills the program and all that it has started: git and uv start others, which would keep waiting
for a host that does not answer. (`anyio.run_process` would wait for it to end by itself when its task is
cancelled the way asyncio does it.)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, TimeoutExpired
from typing import Final

from anyio import CapacityLimiter, current_effective_deadline, current_time, fail_after, to_thread

from prefect_launch.core.cancellation import finished

#: How long to wait for killed programs; one in an uninterruptible call (a dead network disk) may never end.
_GONE_SECONDS: Final = 5.0
#: How much of its caller's own time limit a program may use up: the rest is for its last words to reach the caller.
_SHARE: Final = 0.95


async def run_command(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int = PIPE,
    inherited: Collection[int] = (),
    seconds: float | None = None,
) -> CompletedProcess[bytes]:
    """Run a program to its end, without standard input.

    Cancelled, it kills the program and every process of its group, and returns when they are gone.

    Args:
        command: the program and its arguments; no shell sees them.
        cwd: the folder to run in; by default this process's.
        env: the whole environment; by default this process's.
        stderr: `subprocess.PIPE`, or `subprocess.STDOUT` to have both streams in one, as they came.
        inherited: descriptors that stay open in it.
        seconds: its time limit; less where a time limit around this call ends sooner. None: none of its own.

    Returns:
        Its exit code and what it said.

    Raises:
        FileNotFoundError: when there is no such program, or no such folder.
        OSError: when the system cannot start it.
        TimeoutExpired: when its time is over; it has what the program said until then.
    """
    # Made without an await: a cancel cannot come between its start and our hold on it.
    process = subprocess.Popen(  # noqa: ASYNC220 - asyncio forks in the same way
        command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=stderr,
        cwd=cwd,
        env=env,
        start_new_session=True,
        pass_fds=tuple(inherited),
    )
    reading = asyncio.ensure_future(to_thread.run_sync(process.communicate, limiter=CapacityLimiter(1)))
    limit = None if seconds is None else min(seconds, _SHARE * (current_effective_deadline() - current_time()))
    try:
        with fail_after(limit):
            said, complained = await finished(reading, hurry=partial(kill_group, process.pid), seconds=_GONE_SECONDS)
    except TimeoutError:
        streams = (None, None) if reading.cancelled() else reading.result()
        raise TimeoutExpired(list(command), limit or 0, *streams) from None
    return CompletedProcess(list(command), process.returncode, said, complained)


def ending_with_us(command: Sequence[str], signal_name: str) -> list[str]:
    """Return a command that gets a signal (`TERM`) when this process ends; without `setpriv`, as it was."""
    setpriv = shutil.which("setpriv")
    return [*([setpriv, "--pdeathsig", signal_name] if setpriv else []), *command]


def kill_group(leader: int) -> None:
    """Kill a process group by its leader."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # All of it has ended meanwhile.
