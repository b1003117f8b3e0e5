"""The command line in processes that need not import Prefect each for itself.

Most of what a command costs is the import of Prefect. `ForkedCli` starts one process that has it imported, and that
forks one process for each command: with the command's folder, variables and output, and an exit code that the
interpreter itself gives. Prefect reads its settings again in each of them. What a process reads before its first line
(Python's own variables, Prefect's home) cannot change so: a command with others gets another process to fork from.

A test of a terminal or of the time of a start needs a real start. Commands import our own modules in their own order,
as the program does, unless `imports` names them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: What every command imports that talks to a server, and none of ours.
PREFECT = ("prefect.client.orchestration", "prefect.flows", "typer", "rich.table")
#: What an agent imports until it waits for its first item, ours included.
AGENT = (
    *PREFECT,
    *("prefect_launch.cli.main", "prefect_launch.agent.agent", "prefect_launch.agent.loop"),
)
_CODE = "from prefect_launch.cli import main; main()"
#: Variables that the origin's own start has read.
_READ_AT_START = ("PYTHON", "LD_", "PREFECT_HOME", "PREFECT_LOGGING_")
_START_SECONDS = 180.0
_PR_SET_PDEATHSIG = 1
_READY = "ready"


class ForkedProcess:
    """A command in a process of its own, with the methods of a `Popen` that the tests use.

    Attributes:
        pid: its process id.
        returncode: as `Popen` has it; None while it runs.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        if not self._ended.wait(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(["prefect-launch"], timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, code: int) -> None:
        """Note its end."""
        self.returncode = code
        self._ended.set()


class ForkedCli:
    """Starts `prefect-launch`, or another program in Python, several at a time where wanted.

    Args:
        folder: for what the commands print; an empty one.
        imports: modules that are imported before the fork.
        code: runs the program, once it has been forked.
        read_at_start: beginnings of the variables that the imports have read; other values need another process to fork
            from.
    """

    def __init__(
        self,
        folder: Path,
        imports: Sequence[str] = PREFECT,
        *,
        code: str = _CODE,
        read_at_start: tuple[str, ...] = _READ_AT_START,
    ) -> None:
        self.folder = folder
        self._imports = imports
        self._code = code
        self._read_at_start = read_at_start
        self._origins: dict[tuple[tuple[str, str], ...], _Origin] = {}
        self._choosing = threading.Lock()

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        out: Path,
        err: Path | None = None,
        has_session: bool = True,
    ) -> ForkedProcess:
        """Start a command.

        Args:
            arguments: after the program's name.
            cwd: the folder in which it runs.
            environment: all of its variables.
            out: file for its standard output; appended to.
            err: likewise for standard error; None: the same.
            has_session: whether it leads a session of its own.

        Returns:
            The process.
        """
        order = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": dict(environment),
            "out": str(out),
            "err": str(err or out),
            "has_session": has_session,
        }
        with self._choosing:
            return self._origin_for(environment).fork(order)

    def run(
        self, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Args:
            arguments: after the program's name.
            cwd: the folder in which it runs.
            environment: all of its variables.
            seconds: how long it may take.

        Returns:
            Its exit code and what it printed.

        Raises:
            subprocess.TimeoutExpired: It took longer, and was killed.
        """
        out, err = self.folder / "out", self.folder / "err"
        for file in (out, err):
            file.write_bytes(b"")
        process = self.start(arguments, cwd=cwd, environment=environment, out=out, err=err, has_session=False)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(_START_SECONDS)
            raise subprocess.TimeoutExpired(list(arguments), seconds, out.read_bytes(), err.read_bytes()) from None
        return subprocess.CompletedProcess(list(arguments), code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the processes that fork, and what they have started and still runs."""
        for origin in self._origins.values():
            origin.close()
        self._origins.clear()

    def _origin_for(self, environment: Mapping[str, str]) -> _Origin:
        key = tuple(sorted(pair for pair in environment.items() if pair[0].startswith(self._read_at_start)))
        if key not in self._origins:
            for other in [other for other, origin in self._origins.items() if origin.is_idle]:
                self._origins.pop(other).close()
            self._origins[key] = _Origin(self.folder, environment, self._imports, self._code)
        return self._origins[key]


class _Origin:
    """A process that has everything imported, and that forks a process for each order."""

    def __init__(self, folder: Path, environment: Mapping[str, str], imports: Sequence[str], code: str) -> None:
        self._log = folder / "origin.log"
        self._children: dict[int, ForkedProcess] = {}
        self._answers: list[str] = []
        self._heard = threading.Condition()
        # It ends when its standard input does. A signal at its parent's death would come with the end of the thread
        # that starts it, and that may be one of a single test.
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), code, *imports],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._reader = threading.Thread(target=self._read, name="forked commands", daemon=True)
        self._reader.start()
        assert self._answer() == _READY

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs that it has forked."""
        return all(child.returncode is not None for child in self._children.values())

    def fork(self, order: Mapping[str, Any]) -> ForkedProcess:
        """Fork a process that becomes the command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._children[int(self._answer())]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _answer(self) -> str:
        """The next answer to an order."""
        with self._heard:
            assert self._heard.wait_for(lambda: self._answers, _START_SECONDS), "the process that forks does not answer"
            answer = self._answers.pop(0)
        assert answer, f"the process that forks has ended with {self._process.wait()}: {self._log.read_text()}"
        return answer

    def _read(self) -> None:
        """Hear of forks and ends; for a thread."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer, _, code = line.decode().strip().partition(" ")
            if code:
                self._children[int(answer)].end(int(code))
                continue
            if answer != _READY:
                self._children[int(answer)] = ForkedProcess(int(answer))
            with self._heard:
                self._answers.append(answer)
                self._heard.notify_all()
        with self._heard:
            self._answers.append("")
            self._heard.notify_all()


def _serve() -> None:
    """Fork for each order, and tell of each end; returns only in the process of a command, which is ready to be one."""
    answers = os.dup(1)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    os.write(answers, f"{_READY}\n".encode())
    while True:
        heard = select.select([0, ended], [], [])[0]
        if ended in heard:
            os.read(ended, 4096)
            for pid, code in _ends():
                os.write(answers, f"{pid} {code}\n".encode())
        if 0 not in heard:
            continue
        line = _read_order()
        if not line:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (answers, ended, wake):
                os.close(descriptor)
            _become(json.loads(line))
            return
        os.write(answers, f"{pid}\n".encode())


def _ends() -> list[tuple[int, int]]:
    """The children that have ended, with their exit codes."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
    return found


def _read_order() -> bytes:
    """A line of standard input, read past Python's buffer, of which the commands would inherit a part."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 1)
        if not more:
            return b""
        line += more
    return line


def _become(order: dict[str, Any]) -> None:
    # It ends with the process that forks, and that with the tests.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if order["has_session"]:
        os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
    for source, target in (
        (os.open(os.devnull, os.O_RDONLY), 0),
        (os.open(order["out"], flags), 1),
        (os.open(order["err"], flags), 2),
    ):
        os.dup2(source, target)
        os.close(source)
    program = str(Path(sys.executable).with_name("prefect-launch"))
    sys.argv = [program, *order["arguments"]]
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


if __name__ == "__main__":
    # As in the program itself: where it is, not where this file is.
    sys.path[0] = str(Path(sys.executable).parent)
    _code, *_modules = sys.argv[1:]
    for _module in _modules:
        importlib.import_module(_module)
    assert threading.active_count() == 1, "a fork must find no threads"
    _serve()
    exec(_code)
