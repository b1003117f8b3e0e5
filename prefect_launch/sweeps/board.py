"""What a sweep shows on its page: a live table of its trials, written in place.

Writes are bounded, and come only when something has changed. A failure to draw or to write is logged once, and never
hurts the sweep. A second scheduler, or the next one, goes on with the same artifact: it is found by its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio
import anyio.to_thread

from prefect_launch.errors import ServerFailedError, ServerUnavailableError
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.trial_items import SweepTrials
from prefect_launch.sweeps.trial_table import MAX_ROWS, counts_in_words, table_artifact, trial_table

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

#: From one write of the table to the next. Each costs the server 25 ms and more.
TABLE_SECONDS: Final = 5.0
#: What the last writes of a sweep get, when the server is slow or away.
_LAST_SECONDS: Final = 30.0
_RETRY_SECONDS: Final = 1.0


def table_key(sweep_id: UUID) -> str:
    """Return the key of the artifact that is the table of a sweep's trials."""
    return f"sweep-{sweep_id}"


class SweepBoard:
    """Writes what a sweep shows on its page.

    Args:
        server: the Prefect server.
        sweep_id: id of the sweep's flow run.
        config: of the sweep.
        pause_seconds: from one write to the next.
    """

    def __init__(
        self, server: Server, sweep_id: UUID, config: SweepConfig, *, pause_seconds: float = TABLE_SECONDS
    ) -> None:
        self._server = server
        self._sweep_id = sweep_id
        self._config = config
        self._pause_seconds = pause_seconds
        self._trials: SweepTrials | None = None
        self._changed = asyncio.Event()
        #: By the artifact's key: what was written last, and the artifact's id.
        self._written: dict[str, tuple[str, UUID]] = {}
        self._has_failed = False
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write what `update` is given, beside what is done in the block."""
        writer = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            writer.cancel()
            await asyncio.wait({writer})

    def update(self, trials: SweepTrials) -> None:
        """Show these trials; they are written soon. Call it on the event loop."""
        self._trials = trials
        self._changed.set()

    async def finish(self) -> None:
        """Write what `update` was given last, now that the sweep has ended."""
        with anyio.move_on_after(_LAST_SECONDS):
            while True:
                if await self._write():
                    return
                await anyio.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._write()
            await anyio.sleep(self._pause_seconds)

    async def _write(self) -> bool:
        """Write what has changed; return whether a second try is of no use."""
        trials = self._trials
        if trials is None:
            return True
        try:
            async with self._lock:
                await self._put(table_key(self._sweep_id), "table", lambda: self._table(trials))
        except (ServerUnavailableError, ServerFailedError):
            return False
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the drawing, the trials go on
            if not self._has_failed:
                self._has_failed = True
                log.warning("sweep %s cannot be shown on its page: %r", self._sweep_id, error)
        return True

    async def _put(self, key: str, kind: str, draw: Callable[[], tuple[str, str]]) -> None:
        data, description = await anyio.to_thread.run_sync(draw)
        last, known = self._written.get(key, (None, None))
        if data + description != last:
            made = await self._server.put_artifact(
                self._sweep_id, key=key, kind=kind, data=data, description=description, artifact_id=known
            )
            self._written[key] = (data + description, made)

    def _table(self, trials: SweepTrials) -> tuple[str, str]:
        table = trial_table(trials, self._config, max_rows=MAX_ROWS)
        more = f" {table.left_out:,} more are not in this table." if table.left_out else ""
        return table_artifact(table), f"Trials: {counts_in_words(trials)}; the best first.{more}"
