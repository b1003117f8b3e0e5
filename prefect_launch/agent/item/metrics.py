"""Metrics of a run: read from its log as that grows, and written to the server in few and bounded writes.

The log is the truth. A file next to it says how far it was read and what was found, so that the next agent continues
there. Reading a part of it twice changes nothing, for the steps of a metric are a set. What is wrong with a run's
metrics is noted in its log once, not once a line.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from uuid import UUID

import anyio

from prefect_launch.agent.item.attempt import Attempt, Hook
from prefect_launch.agent.item.logs import whole
from prefect_launch.agent.item.outputs import read_outputs
from prefect_launch.agent.item.wandb_summary import read_wandb_summary
from prefect_launch.agent.log_notes import write_log_note
from prefect_launch.core.metric_lines import MARK_BYTES, without_metrics
from prefect_launch.core.metrics import MAX_METRICS, MAX_POINTS, Metrics, numbers_in, parse_line
from prefect_launch.core.pace import Pace
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.errors import LaunchError, ServerFailedError, ServerUnavailableError
from prefect_launch.inputs.metrics import MARK, MAX_LINE_BYTES, METRICS_FILE
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import RunPlan
from prefect_launch.server.metrics import METRIC_LABEL, draw_metrics, read_metrics, write_metrics
from prefect_launch.server.protocol import Server
from prefect_launch.spec.item_parameters import options_of
from prefect_launch.spec.metric_pattern import MetricPattern

log = logging.getLogger(__name__)

READ_SECONDS: Final = 1.0
#: The reads of the metrics of all runs of this process, a second at most.
_PACE: Final = Pace(100.0)
#: From one write about an item to the next. It grows with the run, for each costs the server 25 ms and more: a metric
#: that is watched for an hour need not be as fresh as one that is watched for a minute.
MIN_WRITE_SECONDS: Final = 2.0
MAX_WRITE_SECONDS: Final = 10.0
_SHARE_OF_RUN: Final = 30
#: The values are written so many times as often as the chart.
_WRITES_A_CHART: Final = 5
#: The most that is read at a time.
_CHUNK_BYTES: Final = 1 << 20
_VALUES: Final = "values"
_CHART: Final = "chart"
#: How much of a line an expression is searched in, and for how long: one that takes longer is not searched again.
_SEARCHED_CHARS: Final = 1_000
_SEARCH_SECONDS: Final = 1.0
_STATE_FILE: Final = "metrics-read.json"
_LINES: Final = re.compile(re.escape(MARK_BYTES) + rb"([^\n]*)")
_LINE_ENDS: Final = re.compile(rb"[\r\n]+")
_SHOWN_CHARS: Final = 80


class MetricsReader:
    """Reads metrics from a run's log; every method may block, and may be called from any thread.

    Args:
        plan: of the run.
        wanted: the metric that is kept however many others are reported; by default that of the plan's pattern.

    Attributes:
        metrics: what was found.
        previous: what an earlier attempt has reported: it stays up to the step that this attempt begins at.
        faults: what is wrong and was not noted in the log yet, in words.
        revision: grows whenever something is found.
        artifacts: ids of the artifacts that the metrics are written to, by what they are.
    """

    def __init__(self, plan: RunPlan, wanted: str | None = None) -> None:
        self.wanted = wanted or (plan.metric.name if plan.metric else None)
        self._path = plan.log_path
        self._state = plan.run_dir / _STATE_FILE
        self._mask = plan.mask
        self._pattern = _Pattern(plan.metric) if plan.metric else None
        self._lock = threading.Lock()
        self.metrics = Metrics(attempt=plan.attempt)
        self.previous: Metrics | None = None
        self.faults: list[str] = []
        self.revision = 0
        self.artifacts: dict[str, UUID] = {}
        self._known_faults: set[str] = set()
        self._position = 0
        self._in_long_line = False

    def load(self) -> bool:
        """Continue where an earlier agent has ended; return whether one has read this log."""
        try:
            kept = json.loads(self._state.read_bytes())
            metrics, ids = Metrics.load(kept["metrics"]), {name: UUID(one) for name, one in kept["artifacts"].items()}
            position, matches = int(kept["position"]), int(kept["matches"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("cannot read %s, reading the log anew: %r", self._state, error)
            return False
        self.metrics, self.artifacts, self._position = metrics, ids, position
        self.revision = int(bool(metrics))  # That agent may have died before it wrote this to the server.
        self._in_long_line, self._known_faults = bool(kept.get("in_long_line")), set(map(str, kept.get("faults", ())))
        if self._pattern:
            self._pattern.matches = matches
        return True

    def save(self) -> None:
        """Note what was found, and how far the log was read."""
        with self._lock:
            kept = {
                "position": self._position,
                "in_long_line": self._in_long_line,
                "matches": self._pattern.matches if self._pattern else 0,
                "faults": sorted(self._known_faults),
                "artifacts": {name: str(one) for name, one in self.artifacts.items()},
                "metrics": self.metrics.dump(),
            }
        part = self._state.with_suffix(".part")
        try:
            part.write_text(json.dumps(kept))
            part.replace(self._state)
        except OSError as error:
            # On a full disk the metrics are sent all the same; the next agent reads them again.
            log.warning("not noted how far the metrics of %s were read: %s", self._path, error)

    def read(self, *, ended: bool = False) -> None:
        """Read what is new in the log.

        Args:
            ended: whether nothing more is written, so that a line without its end is whole.
        """
        with self._lock:
            for data in self._chunks(ended=ended):
                self._take(data)

    def _chunks(self, *, ended: bool) -> Iterator[bytes]:
        """Yield what is new by whole lines, without what is left of a line that is too long to be one of metrics."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            while True:
                file.seek(self._position)
                data = file.read(_CHUNK_BYTES)
                is_full = len(data) == _CHUNK_BYTES
                end = data.rfind(b"\n") + 1
                if not data or (not end and not is_full and not ended):
                    return
                skipped = data.find(b"\n") + 1 if self._in_long_line else 0
                if not end and (is_full or self._in_long_line):
                    if not self._in_long_line and MARK_BYTES in data:
                        self._fault_of_line(b"", f"it is longer than {MAX_LINE_BYTES:,} bytes")
                    self._in_long_line = True
                    self._position += len(data)
                    continue
                end = end or len(data)
                self._in_long_line = False
                whole = data[skipped:end]
                if self._mask and (self._pattern or MARK_BYTES in whole):
                    whole = self._mask.read(self._path, self._position + skipped, len(whole))
                yield whole
                self._position += end

    def _take(self, data: bytes) -> None:
        points = list(self._marked(data)) if MARK_BYTES in data else []
        if self._pattern:
            points += self._searched(without_metrics(data))
        if points and self.previous is not None:
            begin = min(step for step, _ in points)
            attempt, self.metrics = self.metrics.attempt, self.previous.before(begin)
            self.metrics.attempt, self.previous = attempt, None
        for step, values in points:
            if not self.metrics.add(step, values, wanted=self.wanted):
                self._fault("names", f"it reports more than {MAX_METRICS} metrics; the first {MAX_METRICS} are kept")
        thinned = [name for name, series in self.metrics.series.items() if series.stride > 1] if points else []
        if thinned:
            reason = f"{thinned[0]!r} has more than {MAX_POINTS} steps: its history is thinned evenly."
            self._fault("thinned", f"{reason} {METRICS_FILE} among the outputs has all that log_metrics() reports")
        self.revision += bool(points)

    def _marked(self, data: bytes) -> Iterator[tuple[int, dict[str, float]]]:
        for line in _LINES.finditer(data):
            try:
                yield parse_line(line[1])
            except ValueError as error:
                self._fault_of_line(line[1], str(error))

    def _fault_of_line(self, line: bytes, why: str) -> None:
        start = self._mask.shown(line).decode("utf-8", "replace")[:_SHOWN_CHARS].rstrip()
        shown = f" ({start!r}…)" if start else ""
        self._fault("line", f"a line after {MARK.strip()!r} is left out{shown}: {why}. Write it with log_metrics()")

    def _searched(self, data: bytes) -> Iterator[tuple[int, dict[str, float]]]:
        assert self._pattern is not None, "it is asked only then"
        for piece in _LINE_ENDS.split(self._mask.shown(data)):
            try:
                found = self._pattern.find(piece[:_SEARCHED_CHARS].decode("utf-8", "replace"))
            except _PatternError as error:
                self._fault(error.kind, str(error))
            else:
                if found is not None:
                    yield found

    def _fault(self, kind: str, text: str) -> None:
        if kind not in self._known_faults:
            self._known_faults.add(kind)
            self.faults.append(text)


class _PatternError(Exception):
    """A pattern cannot be searched for, or what it found is no number."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Pattern:
    """A metric's regular expression. `regex` searches for it, for it gives up in time, as `re` does not."""

    def __init__(self, metric: MetricPattern) -> None:
        self._metric = metric
        self._compiled: Any = None
        self._is_off = False
        self.matches = 0

    def find(self, line: str) -> tuple[int, dict[str, float]] | None:
        """Return the step and the value that a line holds; `None` when it holds none.

        Raises:
            _PatternError: when it has found no number, or cannot be searched for: then nothing is found any more.
        """
        if self._is_off:
            return None
        try:
            self._compiled = self._compiled or self._compile()
            match = self._compiled.search(line, timeout=_SEARCH_SECONDS, concurrent=True)
        except TimeoutError:
            self._is_off = True
            what = f"takes longer than {_SEARCH_SECONDS:g} s on one line, and is not searched for again"
            raise self._error("slow", what) from None
        if match is None:
            return None
        try:
            value = float(match[1])
        except (TypeError, ValueError):
            raise self._error("number", f"has found {str(match[1])[:_SHOWN_CHARS]!r}, which is no number") from None
        self.matches += 1
        return self.matches - 1, {self._metric.name: value}

    def _compile(self) -> Any:
        import regex

        try:
            return regex.compile(self._metric.pattern)
        except regex.error as error:
            self._is_off = True
            raise self._error("compile", f"cannot be searched for: {error}") from None

    def _error(self, kind: str, what: str) -> _PatternError:
        return _PatternError(kind, f"the pattern {self._metric.pattern!r} of the metric {self._metric.name!r} {what}")


class MetricsCollector:
    """Follows the metrics of one run, and writes them to the server.

    Args:
        server: the Prefect server.
        item_id: the item.
        plan: of the run.
        keeps_results: whether numbers of `outputs.json` alone are metrics to be kept, as those of a sweep's trial are.
            In other runs they are shown as outputs already.
        wanted: as for `MetricsReader`.
    """

    def __init__(
        self, server: Server, item_id: UUID, plan: RunPlan, *, keeps_results: bool = False, wanted: str | None = None
    ) -> None:
        self._server = server
        self._item_id = item_id
        self._plan = plan
        self._keeps_results = keeps_results
        self._reader = MetricsReader(plan, wanted)
        self._has_begun = False
        self._written = {_VALUES: 0, _CHART: 0}
        self._first_at = self._written_at = self._drawn_at = 0.0
        self._following = OwnedTasks()

    def follow(self) -> None:
        """Write what comes, from now on."""
        self._following.start(f"metrics of {self._item_id}", self._follow)

    async def let_go(self) -> None:
        """Stop following; the next agent continues from here."""
        await self._following.end()

    async def finish(self) -> None:
        """Write all, now that the run has ended and its outputs are kept.

        Raises:
            LaunchError: when the server refuses them.
        """
        await self.let_go()
        await self._begin()
        await self._read(ended=True)
        metrics = self._reader.metrics
        metrics.outputs, metrics.wandb = await anyio.to_thread.run_sync(_results, self._plan, self._reader.wanted)
        has_results = metrics.wandb or (metrics.outputs and (metrics.series or self._keeps_results))
        self._reader.revision += bool(has_results)
        await retry_until_available(f"take the metrics of {self._item_id}", self._write_all)

    async def _follow(self) -> None:
        await self._begin()
        with _PACE:
            while True:
                await self._read()
                with suppress(ServerUnavailableError, ServerFailedError):  # it is tried again after the next read
                    await self._note_faults()
                    await self._write_when_due()
                await anyio.sleep(_PACE.pause(READ_SECONDS))

    async def _begin(self) -> None:
        if self._has_begun:
            return
        has_state = await anyio.to_thread.run_sync(self._reader.load)
        if not has_state and self._plan.attempt > 1:
            read = retry_until_available(
                f"show the metrics of {self._item_id}", lambda: read_metrics(self._server, [self._item_id])
            )
            self._reader.previous = (await read).get(self._item_id)
        self._has_begun = True

    async def _read(self, *, ended: bool = False) -> None:
        await anyio.to_thread.run_sync(lambda: self._reader.read(ended=ended))

    async def _note_faults(self) -> None:
        while self._reader.faults:
            await anyio.to_thread.run_sync(self._reader.save)
            await whole(self._note_fault(self._reader.faults[0]))

    async def _note_fault(self, fault: str) -> None:
        note = f"Metrics of this run: {fault}. Later ones like it are not listed."
        await write_log_note(self._server, self._item_id, note)
        self._reader.faults.remove(fault)

    @property
    def _due(self) -> list[str]:
        """What the server does not have yet, the values first; there is no chart of results alone."""
        kinds = [_VALUES, _CHART] if self._reader.metrics.series else [_VALUES]
        return [what for what in kinds if self._written[what] < self._reader.revision]

    async def _write_when_due(self) -> None:
        now = time.monotonic()
        pause = min(max((now - self._first_at) / _SHARE_OF_RUN, MIN_WRITE_SECONDS), MAX_WRITE_SECONDS)
        due = self._due
        if not due or (self._first_at and now - self._written_at < pause):
            return
        if not self._first_at:
            self._first_at = self._drawn_at = now
        is_charts_turn = _CHART in due and now - self._drawn_at >= _WRITES_A_CHART * pause
        await self._write(_CHART if is_charts_turn else due[0])

    async def _write_all(self) -> None:
        await self._note_faults()
        for what in self._due:
            await self._write(what)

    async def _write(self, what: str) -> None:
        """Write the values, or the chart; what comes meanwhile is due again."""
        server, item_id, reader = self._server, self._item_id, self._reader
        self._written_at, revision = time.monotonic(), reader.revision
        await anyio.to_thread.run_sync(reader.save)
        known = reader.artifacts.get(what)
        if what == _VALUES:
            made = await write_metrics(server, item_id, reader.metrics, known)
        else:
            self._drawn_at = self._written_at
            made = await draw_metrics(server, item_id, reader.metrics, self._plan.run_id, known)
        reader.artifacts[what], self._written[what] = made, revision


def _results(plan: RunPlan, wanted: str | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return the numbers of `outputs.json`, and those of the summary of an offline W&B run."""
    outputs, _ = read_outputs(plan.output_dir)
    summary = read_wandb_summary(plan.output_dir, plan.log_path, plan.mask, wanted=wanted)
    return dict(numbers_in(outputs, wanted)), summary


class CollectMetrics(Hook):
    """Shows the metrics that a run reports; one that cannot be shown does not make a good run a bad one."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._collector: MetricsCollector | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        attempt = self.attempt
        is_trial = bool(options_of(attempt.item).get("sweep_id"))
        wanted = attempt.item.labels.get(METRIC_LABEL)
        collector = MetricsCollector(
            attempt.server,
            attempt.item.id,
            attempt.plan,
            keeps_results=is_trial,
            wanted=None if wanted is None else str(wanted),
        )
        collector.follow()
        self._collector = collector
        try:
            yield
        finally:
            await collector.let_go()

    async def ended(self) -> None:
        if self._collector is None:
            return
        try:
            await self._collector.finish()
        except (LaunchError, OSError) as error:
            self.attempt.warnings.append(f"The metrics could not be shown ({error}).")
