"""Where the unit tests of the resource `prefect` run: a server in memory, a work pool, and a worker of processes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect_launch.errors import ServerUnavailableError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.prefect.runner import PrefectRunner
from prefect_launch.server.protocol import Server
from prefect_launch.testing import InMemoryServer
from prefect_launch.testing.runner_contract import MISSING
from tests.support.prefect_worker import InMemoryWorker, PrefectApi, view_of

POOL = "elsewhere"
LOOK_SECONDS = 0.1


class QuickRunner(PrefectRunner):
    """A runner that asks its server in memory more often than a real one could bear."""

    lag_seconds = 0.1
    poll_seconds = 0.1
    log_seconds = 0.1


class PrefectWorld:
    """A work pool and its worker, and runners that hand plans to it.

    Args:
        folder: of the test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = InMemoryServer()
        self.server.add_pool(POOL, "process")
        self.api = PrefectApi(view_of(self.server))
        self.worker = InMemoryWorker(view_of(self.server), POOL, self.api.url, folder / "worker", sys.executable)
        self._lost = 0
        self.runners: list[PrefectRunner] = []

    def close(self) -> None:
        """End all of it."""
        self.worker.close()
        self.api.close()

    def runner(self, **given: float) -> PrefectRunner:
        """Return a new runner, as an agent that has just started makes one."""
        mine = view_of(self.server)
        mine.after_call = self._after_call

        def connect() -> AbstractAsyncContextManager[Server]:
            return _connected(mine)

        runner = QuickRunner(self.folder / "home", connect, look_seconds=LOOK_SECONDS, **given)
        self.runners.append(runner)
        return runner

    def plan(
        self, script: str, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None, **changes: Any
    ) -> RunPlan:
        """Return a plan whose command runs a script."""
        item = str(uuid4())
        run_dir = self.folder / item
        run_dir.mkdir()
        fields: dict[str, Any] = {
            "command": (MISSING,) if script == MISSING else ("sh", "-c", script, "sh"),
            "args": tuple(args),
            "env": dict(env or {}),
            "options": {"work-pool": POOL},
            "labels": {Labels.ITEM: item, Labels.AGENT: "contract"},
        }
        return RunPlan(item_id=item, run_id=item[:8], run_dir=run_dir, **{**fields, **changes})

    def fill(self) -> None:
        """Let no further run start."""
        self._pause(True)

    def free(self) -> None:
        """Let what waits start."""
        self._pause(False)

    def lose_answers(self, count: int) -> None:
        """Do the work of the runners' next calls, and lose their answers."""
        self._lost = count

    async def _after_call(self, method: str) -> None:
        if self._lost > 0:
            self._lost -= 1
            raise ServerUnavailableError("The answer was lost. Ask again.")

    def _pause(self, is_paused: bool) -> None:
        with self.server._store.lock:
            stored = self.server._store.pools[POOL]
            stored.pool = stored.pool.model_copy(update={"is_paused": is_paused})


@asynccontextmanager
async def _connected(server: InMemoryServer) -> AsyncIterator[Server]:
    yield server
