"""A Prefect server on SQLite as a child process, in a folder of its own, for as long as the demo lasts.

It is reached from this machine only. It ends with the demo, even when that is killed (where the system has `setpriv`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import httpx

from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.core.subprocesses import ending_with_us
from prefect_launch.errors import InfrastructureError

#: The address that the demo's UI has unless someone else listens there, so that it can be bookmarked.
USUAL_PORT: Final = 4280
#: The first start makes the database, which takes half a minute on a slow machine.
START_SECONDS: Final = 180.0
STOP_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.1
_SHOWN_LINES: Final = 3
LOG_FILE: Final = "server.log"


class EmbeddedServer:
    """A server that is starting while its block is entered, and stopped when it is left.

    Args:
        home: its PREFECT_HOME.

    Attributes:
        known: whether the server has run there before.
        api_url: address of its API.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.known = (home / "prefect.db").exists()
        self.port = _free_port()
        self.ui_url = f"http://127.0.0.1:{self.port}"
        self.api_url = f"{self.ui_url}/api"
        self.log = home / LOG_FILE
        self._process: subprocess.Popen[bytes] | None = None

    def client_settings(self) -> dict[str, str]:
        """Settings that lead Prefect, in this process, to the server; its lines go to no terminal."""
        return {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        }

    def __enter__(self) -> EmbeddedServer:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                ending_with_us(command, "TERM"),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the server in order
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            InfrastructureError: when it ended, or does not answer in time; with its last lines.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"did not answer within {START_SECONDS:g} s"
                last = " / ".join(self.log.read_text(errors="replace").split("\n")[-_SHOWN_LINES - 1 :]).strip(" /")
                raise InfrastructureError(f"The Prefect server {what}. Its log is {self.log}; it ends with: {last}")
            time.sleep(_LOOK_SECONDS)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.api_url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **inherited,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_URL": self.ui_url,
            # The UI is told the API's address when the server starts; otherwise it looks at port 4200.
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Keep a second demo out of the folder.

    Raises:
        InfrastructureError: when one is running, or the folder cannot be made.
    """
    with ExitStack() as stack:
        try:
            is_ours = stack.enter_context(locked_if_free(home / "demo.lock"))
        except OSError as error:
            raise InfrastructureError(
                f"The demo's folder {home} cannot be used: {error.strerror}. Make it writable."
            ) from None
        if not is_ours:
            raise InfrastructureError(f"A demo is running in {home} already. Stop it with Ctrl-C, or use its UI.")
        yield


def _free_port() -> int:
    for port in (USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InfrastructureError("This machine has no free port on 127.0.0.1 for the demo's server.")
