"""What a sweep shows on its page: a live table of its trials, and a report with charts; both are written in place.

Writes are bounded, and come only when something has changed. A failure to draw or to write is logged once, and never
hurts the sweep. A second scheduler, or the next one, continues with the same artifacts: it finds them by their keys.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio
import anyio.to_thread

from prefect_launch.core.metrics import format_number
from prefect_launch.core.supervision import BackgroundTask, supervised
from prefect_launch.errors import ServerFailedError, ServerUnavailableError
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.report import SweepReport
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.trial_items import SweepTrials
from prefect_launch.sweeps.trial_table import MAX_ROWS, counts_in_words, table_artifact, trial_table

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server
    from prefect_launch.server.values import Item

log = logging.getLogger(__name__)

#: From one write of the table to the next. Each costs the server 25 ms and more.
TABLE_SECONDS: Final = 5.0
#: From one write of the report to the next; it grows with the sweep, for the report of a long one changes slowly.
REPORT_SECONDS: Final = 30.0
MAX_REPORT_SECONDS: Final = 300.0
_SHARE_OF_SWEEP: Final = 20
#: What the last writes of a sweep get, when the server is slow or away.
_LAST_SECONDS: Final = 30.0
_RETRY_SECONDS: Final = 1.0
_ENDS: Final[Mapping[Outcome, str]] = {
    Outcome.FINISHED: "completed",
    Outcome.FAILED: "failed",
    Outcome.STOPPED: "cancelled",
    Outcome.PAUSED: "paused",
}


def table_key(sweep_id: UUID) -> str:
    """Return the key of the artifact that is the table of a sweep's trials."""
    return f"sweep-{sweep_id}"


def report_key(sweep_id: UUID) -> str:
    """Return the key of the artifact that is a sweep's report."""
    return f"sweep-report-{sweep_id}"


class SweepBoard:
    """Writes what a sweep shows on its page.

    Args:
        server: the Prefect server.
        sweep_id: id of the sweep's flow run.
        config: of the sweep.
        ui_path: of the UI's address, where it has one: `/prefect`.
        pause_seconds: from one write of the table to the next.
        report_seconds: from one write of the report to the next, at least.
    """

    def __init__(
        self,
        server: Server,
        sweep_id: UUID,
        config: SweepConfig,
        *,
        ui_path: str = "",
        pause_seconds: float = TABLE_SECONDS,
        report_seconds: float = REPORT_SECONDS,
    ) -> None:
        self._server = server
        self._sweep_id = sweep_id
        self._config = config
        self._ui_path = ui_path.rstrip("/")
        self._pause_seconds = pause_seconds
        self._report_seconds = report_seconds
        self._report: SweepReport | None = None
        self._changed = asyncio.Event()
        #: By the artifact's key: what was written last, and the artifact's id.
        self._written: dict[str, tuple[str, UUID]] = {}
        self._has_failed = False
        self._lock = asyncio.Lock()
        self._begun_at = self._reported_at = time.monotonic()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write what `update` is given, in parallel with the block."""
        async with supervised(lambda: None) as supervisor:
            supervisor.supervise(BackgroundTask("page of the sweep", self._follow, vital=False))
            yield

    def follow(self, config: SweepConfig) -> None:
        """Show the trials by another configuration from now on."""
        self._config = config

    def update(self, sweep: Item | None, trials: SweepTrials) -> None:
        """Show these trials; they are written soon. Call it on the event loop.

        Args:
            sweep: the sweep's flow run; `None` when it is not there any more.
            trials: of the sweep.
        """
        if sweep is not None:
            state = (sweep.state_name or "unknown").lower()
            self._report = SweepReport(sweep.name, sweep.id, state, sweep.message, self._config, trials)
            self._changed.set()

    async def finish(self, end: EndSweep) -> None:
        """Write what `update` was given last, now that the sweep has ended.

        Args:
            end: how it ended; its flow run does not say so yet.
        """
        if self._report is None:
            return
        self._report = replace(self._report, state=_ENDS.get(end.outcome, end.outcome.value), message=end.message)
        with anyio.move_on_after(_LAST_SECONDS):
            while True:
                if await self._write(with_report=True):
                    return
                await anyio.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            now = time.monotonic()
            pause = min(max((now - self._begun_at) / _SHARE_OF_SWEEP, self._report_seconds), MAX_REPORT_SECONDS)
            await self._write(with_report=now - self._reported_at >= pause)
            await anyio.sleep(self._pause_seconds)

    async def _write(self, *, with_report: bool) -> bool:
        """Write what has changed; return whether a second try is of no use."""
        report = self._report
        if report is None:
            return True
        try:
            async with self._lock:
                await self._put(table_key(self._sweep_id), "table", lambda: _draw_table(report))
                if with_report:
                    self._reported_at = time.monotonic()
                    await self._put(report_key(self._sweep_id), "markdown", lambda: _draw_report(report, self._ui_path))
        except (ServerUnavailableError, ServerFailedError):
            return False
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the drawing, the trials continue
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


def _draw_table(report: SweepReport) -> tuple[str, str]:
    table = trial_table(report.trials, report.config, max_rows=MAX_ROWS)
    more = f" Not in this table: {table.left_out:,} more." if table.left_out else ""
    return table_artifact(table), f"Trials: {counts_in_words(report.trials)}; the best first.{more}"


def _draw_report(report: SweepReport, ui_path: str) -> tuple[str, str]:
    metric = report.config.objective
    best = "no trial has finished with a value yet"
    if report.best is not None and report.best.value is not None and metric is not None:
        best = f"trial {report.best.number}, {metric.name} {format_number(report.best.value)}"
    # An address without a host: the UI may have another one for people than the server has for this process.
    markdown = report.markdown(lambda item_id: f"{ui_path}/runs/flow-run/{item_id}")
    return markdown, f"Report with charts. Best: {best}."
