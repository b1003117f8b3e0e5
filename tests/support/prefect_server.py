"""A real Prefect server as a process of its own: own port, own home, own database.

Promises: a start of about 6 s (a migrated SQLite file is kept in `.cache/` and copied; the first ever start takes 20
to 30 s), a restart on the same port and database, and no look at the machine's own Prefect profile.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import cache
from importlib.metadata import version
from pathlib import Path

import httpx

from tests.support.forked_cli import ForkedCli
from tests.support.ports import free_port
from tests.support.processes import ChildProcess

START_SECONDS = 180.0
#: What events and logs of a test that it did not wait for get to reach a server, which may be gone.
DRAIN_SECONDS = 10.0
CACHE = Path(__file__).resolve().parents[2] / ".cache"
# Which block types are in the database is noted beside it: a copy of one without the other registers too few.
TEMPLATE_FILES = ("prefect.db", "memo_store.toml")


#: Prefect's server, without Python's garbage collector. With it, a server on SQLite stands still for a minute every few
#: dozen writes of several agents: the collector runs on the event loop and finalises a cursor (`sqlite3_reset`), which
#: waits for the mutex of a connection whose own thread waits in SQLite's busy handler for a lock that only the event
#: loop can let go; that lasts for Prefect's busy timeout of 60 s. Seen with `py-spy dump --native`; the remedy for
#: users is PostgreSQL. Tests are short, so what is not collected does not matter.
WITHOUT_GC = "import gc, sys; gc.disable(); sys.argv[0] = 'prefect'; from prefect.cli import app; app()"
#: As Python's own command line: `-c CODE`, `-m MODULE` or a file, with arguments; `prefect` without.
PROGRAM = f"""
import runpy, sys
if sys.argv[1] == "-c":
    _, code, *sys.argv[1:] = sys.argv[1:]
    exec(compile(code, "<string>", "exec"), {{"__name__": "__main__"}})
elif sys.argv[1].endswith(".py"):
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    {WITHOUT_GC}
"""
#: What a server imports until it answers, which is most of what a start costs.
IMPORTS = (
    *("prefect.cli", "prefect.cli.server", "prefect.server.api.server", "prefect.runner", "alembic.command"),
    *("alembic.autogenerate", "uvicorn.protocols.http.h11_impl", "docker", "prefect_launch.collection"),
)


class PrefectServerProcess:
    """A Prefect server on the loopback.

    Args:
        home: Its PREFECT_HOME; made when it is not there. Logs go to `server.log` in it.
        database_url: Where it keeps its data; None is a SQLite file in its home.
        settings: More PREFECT_ settings for it.
        python: Interpreter whose Prefect is started.
    """

    def __init__(
        self,
        home: Path,
        *,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.port = free_port()
        self.ui_url = f"http://127.0.0.1:{self.port}"
        self.api_url = f"{self.ui_url}/api"
        self.log = home / "server.log"
        self._python = python
        self.database_url = database_url
        self._settings = {
            **({"PREFECT_API_DATABASE_CONNECTION_URL": database_url} if database_url else {}),
            **(settings or {}),
        }
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running server; None when it is stopped."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: It ended or did not answer; the message has its last output.
        """
        serve = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        if self._python == sys.executable:
            process = warm_prefect().start(serve, cwd=Path.cwd(), environment=self._environment(), out=self.log)
            self._process = ChildProcess.forked(process, self.log)
        else:
            command = [self._python, "-c", WITHOUT_GC, *serve]
            self._process = ChildProcess(command, self.log, environment=self._environment())
        self._process.wait_until(self.healthy, START_SECONDS)

    def stop(self) -> None:
        """Stop the server as an administrator would."""
        if self._process:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._process:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop the server and start it again on the same port and database."""
        self.stop()
        self.start()

    def healthy(self) -> bool:
        """Whether the server answers now."""
        try:
            return httpx.get(f"{self.api_url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def client_environment(self) -> dict[str, str]:
        """The settings that lead a client, or a command of Prefect's, to this server."""
        return {
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_URL": self.ui_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        }

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **inherited,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_UI_URL": self.ui_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            **self._settings,
        }


@cache
def warm_prefect() -> ForkedCli:
    """What forks servers, other commands of `prefect`, and programs in Python that import Prefect (`PROGRAM`)."""
    # Prefect reads its settings again in each of them.
    folder = Path(tempfile.mkdtemp(prefix="launch-test-prefect-"))
    atexit.register(close_warm_prefect)
    return ForkedCli(folder, IMPORTS, code=PROGRAM, read_at_start=("PYTHON", "LD_"))


def close_warm_prefect() -> None:
    """End the process from which they are forked."""
    if warm_prefect.cache_info().currsize:
        warm_prefect().close()
        shutil.rmtree(warm_prefect().folder)
        warm_prefect.cache_clear()


def server_on_sqlite(home: Path, settings: Mapping[str, str] | None = None) -> PrefectServerProcess:
    """Make a server whose SQLite file is already migrated. It is not started.

    Args:
        home: Its PREFECT_HOME, an empty folder or none yet.
        settings: More PREFECT_ settings for it.

    Returns:
        The server.
    """
    template = _sqlite_template(CACHE)
    home.mkdir(parents=True, exist_ok=True)
    for name in TEMPLATE_FILES:
        shutil.copy(template / name, home / name)
    return PrefectServerProcess(home, settings=settings)


def client_settings(server: PrefectServerProcess) -> ExitStack:
    """Lead Prefect's clients in this process, and every process started from it, to a server, until closed.

    Prefect's services that send events and logs are one a process and stay with the server of their first use. They end
    here too, so that the next test's go to its own server.

    Args:
        server: A server that runs.

    Returns:
        What to close.
    """
    import pytest  # the benchmarks, too, start servers
    from prefect._internal.concurrency.services import QueueService
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

    stack = ExitStack()
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in server.client_environment().items():
        patch.setenv(name, value)
    # This process read its settings before; threads and subprocesses read the environment.
    stack.enter_context(temporary_settings({PREFECT_API_URL: server.api_url, PREFECT_UI_URL: server.ui_url}))
    stack.callback(QueueService.drain_all, timeout=DRAIN_SECONDS)
    return stack


def _sqlite_template(cache: Path) -> Path:
    """The folder with a migrated database of the installed Prefect, made by a first start when it is not there."""
    template = cache / f"prefect-{version('prefect')}"
    cache.mkdir(exist_ok=True)
    with (cache / "prefect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs in one work tree make it once
        if not template.is_dir():
            _make_template(template)
    return template


def _make_template(template: Path) -> None:
    with tempfile.TemporaryDirectory(dir=template.parent) as scratch:
        server = PrefectServerProcess(Path(scratch) / "home")
        try:
            server.start()
        finally:
            server.stop()
        made = Path(scratch) / "template"
        made.mkdir()
        # A stopped server leaves much of its data in the write-ahead log; a backup has all of it in one file.
        with (
            closing(sqlite3.connect(server.home / "prefect.db")) as source,
            closing(sqlite3.connect(made / "prefect.db")) as target,
        ):
            source.backup(target)
        shutil.copy(server.home / "memo_store.toml", made / "memo_store.toml")
        made.rename(template)
