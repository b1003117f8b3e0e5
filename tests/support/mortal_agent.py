"""Agents in processes of their own that kill themselves, as `kill -9` would, before or after a named call outside.

`Lives` is the tests' side: it starts one process that has everything imported, and that forks one agent for each life.
What an agent asks of the server, of its runner, of the job store and (while it fills a container) of the engine goes
through a `CountingProxy`, which counts the calls by name; the agent dies at the one that it was told.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import PrivateAttr

from prefect_launch.agent import context
from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.client.api import Api
from prefect_launch.core.subprocesses import run_command
from prefect_launch.queues.session import Session
from prefect_launch.runners.base import Labels, Runner
from prefect_launch.runners.docker.client import DockerEngine
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.runners.registry import make_runner
from prefect_launch.runners.remote.base import RemoteRunner
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient
from prefect_launch.runners.remote.ray.client import RayClient
from prefect_launch.runners.remote.slurm import commands

#: The calls that are made for an item between its claim and its end; all others are made beside it.
ON_THE_WAY = frozenset(
    {
        *("propose", "read_item", "read_states", "record_infrastructure", "write_logs", "read_logs", "create_artifact"),
        *("resolve", "put_outputs"),
        *("missing", "prepare", "create", "image_of", "start", "watch", "remove"),
        *("put_archive", "changed_at"),
    }
)
#: For a hang.
LIFE_SECONDS = 120.0


class Tally:
    """Counts the calls of one life, and ends it at one of them.

    Args:
        dies_at: such as "before create 1"; None: it lives until its work is done.
    """

    def __init__(self, dies_at: str | None) -> None:
        self._dies_at = dies_at
        self._counts: Counter[str] = Counter()
        self.calls: list[str] = []

    def counted(self, name: str, call: Any) -> Any:
        """Return a call outside that counts itself, before and after it."""

        async def counted(*arguments: Any, **options: Any) -> Any:
            self.step(f"before {name}")
            answer = await call(*arguments, **options)
            self.step(f"after {name}")
            return answer

        return counted

    def step(self, where: str) -> None:
        """Count a call; it may be the last."""
        self._counts[where] += 1
        self.calls.append(f"{where} {self._counts[where]}")
        if self.calls[-1] == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


class CountingProxy:
    """Something outside, with every call to it counted.

    Args:
        behind: what is called.
        tally: of this life.
    """

    def __init__(self, behind: Any, tally: Tally) -> None:
        self._behind = behind
        self._tally = tally

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        if name not in ON_THE_WAY or not inspect.iscoroutinefunction(found):
            return found

        return self._tally.counted(name, found)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_behind", "_tally"):
            super().__setattr__(name, value)
        else:
            setattr(self._behind, name, value)


class MortalApi(Api):
    """An `Api` whose sessions count their calls."""

    _tally: Tally = PrivateAttr()

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[Session]:
        """Open a session that counts its calls."""
        async with super().open(**options) as session:
            session.server = cast("Any", CountingProxy(session.server, self._tally))
            session.jobs = cast("Any", CountingProxy(session.jobs, self._tally))
            yield session


@dataclass(frozen=True)
class Life:
    """One life of an agent, when it is over.

    Attributes:
        status: as a shell gives it; 137: killed.
        calls: what it called, when it came to its own end.
        log: what it wrote.
    """

    status: int
    calls: list[str]
    log: str


class Lives:
    """Makes agents live, several at a time when called from several threads.

    Args:
        folder: for the agents' logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._writing = threading.Lock()
        self._over: dict[int, queue.Queue[int]] = {}
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.support.mortal_agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def live(self, resource: str, settings: dict[str, Any], dies_at: str | None = None) -> Life:
        """Let an agent work until its queues are empty, or it dies.

        Args:
            resource: of its queues.
            settings: the agent's, with `api_url` beside.
            dies_at: the call at which it dies.
        """
        number = next(self._numbers)
        log, calls = (self._folder / f"life-{number}.{kind}" for kind in ("log", "calls"))
        order = {"resource": resource, "settings": settings, "dies_at": dies_at, "log": str(log), "calls": str(calls)}
        # The process that forks is older than the test, and so are its variables: the way to the engine is the test's.
        order["environment"] = dict(os.environ)
        over = self._over[number] = queue.Queue()
        assert self._process.stdin is not None
        with self._writing:
            self._process.stdin.write(json.dumps([number, order]) + "\n")
            self._process.stdin.flush()
        status = over.get(timeout=LIFE_SECONDS * 2)
        return Life(status, calls.read_text().splitlines() if calls.exists() else [], log.read_text()[-4000:])

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, status = map(int, line.split())
            self._over[number].put(status)


def serve() -> None:
    """Fork an agent for each line of orders; answer with its exit status when it is over."""
    assert threading.active_count() == 1, "a fork must find no threads"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            number, order = json.loads(line)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid == 0:
                _live(order)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(1, f"{number} {status if status >= 0 else 128 - status}\n".encode())
            os._exit(0)


def _live(order: dict[str, Any]) -> None:
    """In the child: be an agent; never returns."""
    code = 1
    try:
        os.setsid()
        os.environ.update(order["environment"])
        output = os.open(order["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        tally = Tally(order["dies_at"])
        asyncio.run(asyncio.wait_for(_work(order["resource"], order["settings"], tally), LIFE_SECONDS))
        Path(order["calls"]).write_text("\n".join(tally.calls))
        code = 0
    except BaseException:  # noqa: BLE001 - the log tells it
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _runner(resource: str, home: Path, tally: Tally) -> Runner:
    if resource == LocalProcessRunner.name:
        return LocalProcessRunner(home)
    return LocalContainerRunner(home, cast("Any", CountingProxy(DockerEngine(event_labels=(Labels.ITEM,)), tally)))


#: What a runner asks of an engine elsewhere.
_ELSEWHERE = ("submit", "release", "fetch_outputs", "delete")


def _count_elsewhere(tally: Tally) -> None:
    """Count the calls of runners whose work is elsewhere, and those to their engines by which something changes."""

    def make(*arguments: Any) -> Any:
        runner = make_runner(*arguments)
        if isinstance(runner, RemoteRunner):
            for name in _ELSEWHERE:
                setattr(runner, name, tally.counted(name, getattr(runner, name)))
        return CountingProxy(runner, tally)

    async def command(words: list[str], **options: Any) -> Any:
        call = functools.partial(run_command, words, **options)
        changes = words[:2] == ["sbatch", "--parsable"] or words[:2] == ["scontrol", "release"]
        return await (tally.counted(words[0], call)() if changes else call())

    async def request(client: RayClient, method: str, path: str, **options: Any) -> Any:
        call = functools.partial(ray_call, client, method, path, **options)
        return await (call() if method == "GET" else tally.counted(f"ray-{method}", call)())

    def kubernetes(name: str) -> Any:
        return tally.counted(f"kubernetes-{name}", getattr(KubernetesClient, name))

    ray_call = RayClient.call
    changed: Any = (context, commands, RayClient, KubernetesClient)
    changed[0].make_runner, changed[1].run_command, changed[2].call = make, command, request
    for name in ("create", "patch", "delete"):
        setattr(KubernetesClient, name, kubernetes(name))


async def _work(resource: str, settings: dict[str, Any], tally: Tally) -> None:
    api = MortalApi(url=settings.pop("api_url"), entity="acme", project="tests")
    api._tally = tally
    runners = {}
    if resource in (LocalProcessRunner.name, LocalContainerRunner.name):
        runners[resource] = cast("Runner", CountingProxy(_runner(resource, Path(settings["home"]), tally), tally))
    else:
        _count_elsewhere(tally)
    await LaunchAgent(api, settings, runners=runners).loop(until_empty=True)


if __name__ == "__main__":
    serve()
