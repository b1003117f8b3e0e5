"""The command line in processes that need not import Prefect each for itself.

Most of what a command costs is the import of Prefect. `ForkedCli` starts one process that has it imported, and that
forks one process for each command: with the command's folder and output, and an exit code that the interpreter itself
gives. Prefect reads its settings when it is imported: a command with other variables gets another process to fork from,
and no command's folder may hold a file of settings. Our own modules are imported by each command, in its own order. A
test of signals, of a terminal or of the time of a start needs a real start.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: pytest's own, another one in each test; no command reads it.
_OF_NO_MEANING = "PYTEST_CURRENT_TEST"
#: What every command imports that talks to a server, and none of ours.
_IMPORTED = ("prefect.client.orchestration", "prefect.flows", "typer", "rich.table")
_START_SECONDS = 120.0
_READY = "ready"


class ForkedCli:
    """Runs `prefect-launch`, one command after another.

    Args:
        folder: for what the commands print; an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "origin.log"
        self._environment: dict[str, str] = {}
        self._origin: subprocess.Popen[bytes] | None = None

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
        origin = self._origin_with(environment)
        out, err = self._folder / "out", self._folder / "err"
        order = {"arguments": list(arguments), "cwd": str(cwd), "out": str(out), "err": str(err)}
        assert origin.stdin is not None
        origin.stdin.write(json.dumps(order).encode() + b"\n")
        origin.stdin.flush()
        pid = int(self._answer(_START_SECONDS))
        try:
            code = int(self._answer(seconds))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._answer(_START_SECONDS)
            raise subprocess.TimeoutExpired(list(arguments), seconds, out.read_bytes(), err.read_bytes()) from None
        return subprocess.CompletedProcess(list(arguments), code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process that forks."""
        if self._origin is not None:
            self._origin.communicate()
            self._origin = None

    def _origin_with(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        wanted = {name: value for name, value in environment.items() if name != _OF_NO_MEANING}
        if self._origin is None or wanted != self._environment:
            self.close()
            self._environment = wanted
            with self._log.open("wb") as log:
                self._origin = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", sys.executable, str(Path(__file__).resolve())],
                    cwd=self._folder,
                    env=wanted,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            assert self._answer(_START_SECONDS) == _READY
        return self._origin

    def _answer(self, seconds: float) -> str:
        """The next line from the process that forks."""
        assert self._origin is not None
        assert self._origin.stdout is not None
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not select.select([self._origin.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            more = os.read(self._origin.stdout.fileno(), 1)
            assert more, f"the process that forks has ended with {self._origin.wait()}: {self._log.read_text()}"
            line += more
        return line.decode().strip()


def _serve() -> None:
    """Fork for each order; returns only in the process of a command, which is ready to be one."""
    answers = os.dup(1)
    os.write(answers, f"{_READY}\n".encode())
    for line in iter(_read_order, b""):
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            _become(json.loads(line))
            return
        os.write(answers, f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(answers, f"{code}\n".encode())
    os._exit(0)


def _read_order() -> bytes:
    """A line of standard input, read past Python's buffer, of which the commands would inherit a part."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 1)
        if not more:
            return b""
        line += more
    return line


def _become(order: dict[str, str]) -> None:
    os.chdir(order["cwd"])
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
    for source, target in (
        (os.open(os.devnull, os.O_RDONLY), 0),
        (os.open(order["out"], flags), 1),
        (os.open(order["err"], flags), 2),
    ):
        os.dup2(source, target)
        os.close(source)
    program = str(Path(sys.executable).with_name("prefect-launch"))
    sys.argv = [program, *order["arguments"]]


if __name__ == "__main__":
    # As in the program itself: where it is, not where this file is.
    sys.path[0] = str(Path(sys.executable).parent)
    for _module in _IMPORTED:
        importlib.import_module(_module)
    assert threading.active_count() == 1, "a fork must find no threads"
    _serve()
    from prefect_launch.cli import main

    main()
