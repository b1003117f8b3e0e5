"""Processes that the tests start: with a log file, ended for certain, and not outliving the test run.

Every process started below pytest inherits a mark in its environment (`MARK`), detached ones too. `marked_processes`
finds what is left of them, however often they forked. The kernel itself ends a `ChildProcess` when pytest is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.forked_cli import ForkedProcess

MARK = "LAUNCH_TEST_SESSION"
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 4_000


class ChildProcess:
    """One long-running program with its output in a file.

    Args:
        command: Program and arguments.
        log: File for standard output and error; appended to.
        environment: The whole environment; None takes this process's.
        stop_signal: What asks the program to end.
        user: User to run as; only root can name one.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        user: str | None = None,
    ) -> None:
        self.log = log
        self._name = command[0]
        self._stop_signal = stop_signal
        # setpriv: the child gets the signal when this process dies, even by SIGKILL.
        guard = ["setpriv", "--pdeathsig", stop_signal.name.removeprefix("SIG")]
        if user:
            guard += [f"--reuid={user}", f"--regid={user}", "--init-groups"]
        with log.open("ab") as output:
            self._process: subprocess.Popen[bytes] | ForkedProcess = subprocess.Popen(
                [*guard, *command],
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @classmethod
    def forked(cls, process: ForkedProcess, log: Path, *, stop_signal: signal.Signals = signal.SIGTERM) -> ChildProcess:
        """A command that was forked, with its output in a file; it leads a session of its own."""
        log.touch()  # The process may not have come to that yet.
        child = cls.__new__(cls)
        child.log, child._name, child._stop_signal, child._process = log, "prefect-launch", stop_signal, process
        return child

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until the program answers.

        Args:
            ready: Asked again and again; True ends the waiting.
            seconds: How long at most.

        Raises:
            RuntimeError: The program ended, or was not ready in time and was killed. Its last output is in the message.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise RuntimeError(f"{self._name} ended with {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._name} was not ready after {seconds} s:\n{self.tail()}")
            time.sleep(POLL_SECONDS)

    def wait(self, seconds: float) -> int:
        """Wait until the program has ended; returns its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Ask the program to end, and kill its process group when it does not within 30 s."""
        if self.running:
            self._process.send_signal(self._stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the program's whole process group at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self) -> str:
        """The last lines of the program's output."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


@dataclass(frozen=True)
class Leftover:
    """A process that outlived what started it."""

    pid: int
    command: str


def marked_processes(mark: str) -> list[Leftover]:
    """Find the living processes whose environment carries a mark.

    Args:
        mark: Value of the variable `MARK`.

    Returns:
        What is left, this process not counted.
    """
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended meanwhile, or another user's
            continue
        found.append(Leftover(int(folder.name), command))
    return found


def wait_until_gone(mark: str, seconds: float) -> list[Leftover]:
    """Give marked processes a moment to end by themselves.

    Args:
        mark: Value of the variable `MARK`.
        seconds: How long at most.

    Returns:
        Those that are still there.
    """
    deadline = time.monotonic() + seconds
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def kill_all(leftovers: Sequence[Leftover]) -> None:
    """Kill processes by their id.

    Args:
        leftovers: What to kill; those already gone are passed over.
    """
    for leftover in leftovers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leftover.pid, signal.SIGKILL)
