"""One git process with all its children: what it printed, and nothing of it left when the caller goes.

git starts programs for the network; when git alone is killed they go on, waiting for a host that does not answer. So
git gets a process group of its own, which ends as one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

import anyio
from anyio.abc import ByteReceiveStream, Process


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


async def run_in_group(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], inherited: Sequence[int] = ()
) -> Ended:
    """Run a command to its end. When the caller is cancelled, its whole process group is killed first.

    Args:
        command: the program and its arguments.
        cwd: the folder to run in.
        environment: all of it.
        inherited: descriptors that stay open in it.

    Raises:
        OSError: when it cannot be started.
    """
    process = await anyio.open_process(
        command,
        cwd=cwd,
        env=environment,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        pass_fds=tuple(inherited),
    )
    said: dict[str, bytes] = {}

    async def read(name: str, stream: ByteReceiveStream | None) -> None:
        said[name] = b"".join([part async for part in stream]) if stream is not None else b""

    try:
        async with anyio.create_task_group() as readers:
            readers.start_soon(read, "stdout", process.stdout)
            readers.start_soon(read, "stderr", process.stderr)
        returncode = await process.wait()
    except BaseException:
        await _kill(process)
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await process.aclose()
    return Ended(returncode, said["stdout"].decode(errors="replace"), said["stderr"].decode(errors="replace"))


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with anyio.CancelScope(shield=True):
        await process.wait()
