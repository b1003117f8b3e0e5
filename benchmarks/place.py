"""Where the benchmarks run: a Prefect server on SQLite and a Docker Engine, started when first asked for.

The server is always a fresh one; an engine that answers already is used, else a private one is started. All of it is
on this machine, so server, database, engine, agent and caller share its cores. Everything started is ended, and what
was written is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.docker_engine import DockerEngine
from tests.support.forked_cli import AGENT, ForkedCli
from tests.support.images import ensure_shell_image
from tests.support.prefect_server import PrefectServerProcess, client_settings, server_on_sqlite

if TYPE_CHECKING:
    import docker

    from prefect_launch.client.api import Api
    from prefect_launch.core.states import StateType

_ROOT = Path(__file__).resolve().parents[1]


class Place:
    """What the benchmarks share.

    Attributes:
        folder: for what they write.
        quick: few rounds, to see that they work; such figures mean nothing.
        deepest: how many items wait at most in a deep queue.
    """

    def __init__(self, folder: Path, stack: ExitStack, *, quick: bool, deepest: int) -> None:
        self.folder = folder
        self.quick = quick
        self.deepest = deepest
        self._stack = stack

    def rounds(self, count: int) -> int:
        """Return how often to measure: `count` times, or a few times when it is to be quick."""
        return max(3, count // 50) if self.quick else count

    def at_a_time(self, count: int, parallel: int) -> int:
        """Return with how many things to measure a rate: `count`, or as few as tell one when it is to be quick."""
        return 2 * parallel + 2 if self.quick else count

    @property
    def warm_up(self) -> int:
        """How many rounds do not count, since they fill caches: one, or none when it is to be quick."""
        return 0 if self.quick else 1

    def few(self, count: int) -> int:
        """Return how many things to measure at: `count`, or two when it is to be quick."""
        return 2 if self.quick else count

    @property
    def depths(self) -> list[int]:
        """How many items wait, at each depth of a queue: powers of ten from 100 on, or two when it is to be quick."""
        powers = [10**power for power in range(2, 7) if 10**power < self.deepest]
        return [10, 250] if self.quick else [*powers, self.deepest]

    @cached_property
    def server(self) -> PrefectServerProcess:
        """The Prefect server; from now on this process's settings lead to it."""
        server = server_on_sqlite(self.folder / "server")
        server.start()
        self._stack.callback(server.stop)
        from prefect.settings import PREFECT_HOME, temporary_settings

        self._stack.enter_context(client_settings(server))
        # Where Prefect was imported before, it knows another home.
        self._stack.enter_context(temporary_settings({PREFECT_HOME: os.environ["PREFECT_HOME"]}))
        return server

    @cached_property
    def forked_agents(self) -> ForkedCli:
        """What forks agents, whose start is not what is measured."""
        folder = self.folder / "forked"
        folder.mkdir()
        code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from benchmarks.agents import main; main()"
        forked = ForkedCli(folder, AGENT, code=code)
        self._stack.callback(forked.close)
        return forked

    @cached_property
    def api(self) -> Api:
        """The way to the server."""
        from prefect_launch.client.api import Api

        return Api(url=self.server.api_url)

    def count_items(self, queue: str, *states: StateType) -> int:
        """Return how many items of a queue are in states of these types."""
        return self.api.call(lambda session: session.server.count_items(pool=queue, state_types=states))

    def until_items(
        self, queue: str, count: int, *states: StateType, look_seconds: float = 0.5, patience_seconds: float = 300.0
    ) -> None:
        """Wait until so many items of a queue are in states of these types.

        Args:
            queue: the queue's name.
            count: how many.
            states: the types.
            look_seconds: how often the server is asked.
            patience_seconds: how long at most.

        Raises:
            TimeoutError: when they are not in time.
        """
        deadline = time.monotonic() + patience_seconds
        while (found := self.count_items(queue, *states)) < count:
            if time.monotonic() > deadline:
                names = ", ".join(state.value for state in states)
                raise TimeoutError(f"{found} items of {queue!r}, not {count}, were {names} in {patience_seconds:g} s")
            time.sleep(look_seconds)

    @cached_property
    def engine(self) -> docker.DockerClient:
        """A client of the Docker Engine; from now on this process's settings lead to it."""
        engine = DockerEngine.find_or_start()
        self._stack.callback(engine.stop)
        os.environ["DOCKER_HOST"] = engine.host
        client = engine.client()
        self._stack.callback(client.close)
        return client

    @cached_property
    def shell_image(self) -> str:
        """Name of a 2 MB image with a shell, on the engine."""
        return ensure_shell_image(self.engine)


@contextmanager
def open_place(*, quick: bool, deepest: int = 10_000) -> Iterator[Place]:
    """Make the place, in an environment that knows no other Prefect server; clear it away at the end."""
    folder = Path(tempfile.mkdtemp(prefix="launch-bench-"))
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["PREFECT_HOME"] = str(folder / "home")
    os.environ["PREFECT_LAUNCH_HOME"] = str(folder / "launch")
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    try:
        with ExitStack() as stack:
            yield Place(folder, stack, quick=quick, deepest=deepest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
