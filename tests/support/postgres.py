"""A PostgreSQL server of the tests' own: Debian's programs, a fresh cluster, a free port, gone afterwards.

Not durable on purpose (no fsync): a test wants its isolation and its locks, not its survival of a power cut.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

from tests.support.ports import free_port
from tests.support.processes import ChildProcess

START_SECONDS = 60.0
# Each Prefect server may hold 15 connections by default, and each test process a few.
MAX_CONNECTIONS = 200
SPEED_OVER_SAFETY = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class PostgresMissingError(RuntimeError):
    """No PostgreSQL programs on this machine; `scripts/setup-test-machine.sh` installs them."""


class PostgresServer:
    """A cluster in a temporary folder, started on construction."""

    def __init__(self) -> None:
        self._programs = _programs()
        # PostgreSQL refuses to run as root; Debian's package made this user.
        self._user = "postgres" if os.geteuid() == 0 else None
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="launch-test-pg-"))
        if self._user:
            shutil.chown(self._folder, self._user, self._user)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self._process = self._start()

    def create_database(self) -> str:
        """Make an empty database under a new name.

        Returns:
            Its URL, as Prefect wants it.
        """
        name = f"prefect_{uuid4().hex[:8]}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        """Stop the server and remove its cluster."""
        self._process.stop()
        shutil.rmtree(self._folder)

    @property
    def pid(self) -> int:
        """Process id of the server; each connection is a child of it."""
        return self._process.pid

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _start(self) -> ChildProcess:
        options = (
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            f"port={self.port}",
            f"max_connections={MAX_CONNECTIONS}",
            *SPEED_OVER_SAFETY,
        )
        arguments = [argument for option in options for argument in ("-c", option)]
        process = ChildProcess(
            [str(self._programs / "postgres"), "-D", str(self._data), *arguments],
            # Beside the cluster, where its user may not write: the file is opened here.
            self._folder / "server.log",
            stop_signal=signal.SIGINT,  # the fast shutdown: does not wait for clients
            user=self._user,
        )
        process.wait_until(self._answers, START_SECONDS)
        return process

    def _answers(self) -> bool:
        command = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr.strip()}")


def _programs() -> Path:
    """The folder of the newest PostgreSQL's server programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    if found is None:
        raise PostgresMissingError("no PostgreSQL here: run scripts/setup-test-machine.sh, or install 'postgresql'")
    return Path(found).resolve().parent
