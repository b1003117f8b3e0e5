"""Usage of a run: sampled while it runs, kept in a bounded history, and written to the server at its end.

A sample costs a fraction of a millisecond for a process, and a call of the engine for a container. Its pace falls with
the age of the run and the number of runs. Nothing here fails or delays a run: what cannot be sampled is logged once,
and is not shown.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.agent.devices.allocations import Allocation
from prefect_launch.agent.devices.gpus import GpuLoad
from prefect_launch.agent.item.attempt import Attempt, Hook, seconds_running
from prefect_launch.core import usage as names
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.pace import Pace
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.errors import LaunchError
from prefect_launch.inputs.atomic import write_atomically
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import ExitStatus, Labels, Runner, RunPlan
from prefect_launch.server.metrics import write_usage
from prefect_launch.server.protocol import Server

log = logging.getLogger(__name__)

#: From one sample of a run to the next: while it is new, then, and at most.
YOUNG_SECONDS: Final = 1.0
SAMPLE_SECONDS: Final = 5.0
MAX_SAMPLE_SECONDS: Final = 60.0
_YOUNG_UNTIL: Final = 10.0
_SHARE_OF_RUN: Final = 240
#: Of a core, for the samples of all runs: that of a run with several large processes takes milliseconds.
_SHARE_OF_CORE: Final = 0.008
#: The samples of all runs of this process, a second at most.
_PACE: Final = Pace(5.0)
#: A sample that takes longer is given up.
_LIMIT_SECONDS: Final = 10.0
#: From one note of the history in the run's folder to the next.
_NOTE_SECONDS: Final = 30.0
#: A shorter run has its totals, and no chart.
CHARTED_SECONDS: Final = 10.0
_STATE_FILE: Final = "usage.json"

#: Returns the load of each GPU that a run holds, by its index.
ReadLoads = Callable[[], Awaitable[Mapping[str, GpuLoad]]]


async def _no_gpus() -> Mapping[str, GpuLoad]:
    return {}


class UsageCollector:
    """Samples what one run uses.

    Args:
        plan: of the run.
        runner: of its resource.
        handle: of the run.
        age_seconds: how long it has been running; None: it has just been started.
        read_loads: reads the GPUs that it holds.
        on_sample: gets what it uses now, by name; nothing once it has ended.
    """

    def __init__(
        self,
        plan: RunPlan,
        runner: Runner,
        handle: str,
        *,
        age_seconds: float | None = None,
        read_loads: ReadLoads = _no_gpus,
        on_sample: Callable[[Mapping[str, float]], None] = lambda present: None,
    ) -> None:
        self._plan = plan
        self._runner = runner
        self._handle = handle
        self._read_loads = read_loads
        self._on_sample = on_sample
        self._began = time.monotonic() - (age_seconds or 0.0)
        self._is_adopted = age_seconds is not None
        self._history = Metrics(attempt=plan.attempt)
        #: The second and the CPU time of the last sample.
        self._last = None if self._is_adopted else (0.0, 0.0)
        self._cost_seconds = 0.0
        self._noted_at = time.monotonic()
        self._has_failed = False
        self._sampling = OwnedTasks()

    def follow(self) -> None:
        """Take samples, from now on."""
        if self._runner.tells_usage:
            self._sampling.start(f"usage of {self._plan.item_id}", self._follow)

    async def let_go(self) -> None:
        """Take no more samples; the next agent continues the history."""
        await self._sampling.end()
        await self._begin()
        self._on_sample({})
        await self._note()

    async def finish(self, server: Server, item_id: UUID, totals: Mapping[str, float]) -> None:
        """Write the history of a run that has ended to the server; one that was short has none.

        Args:
            server: the Prefect server.
            item_id: the item.
            totals: of the run.

        Raises:
            LaunchError: when the server refuses it.
        """
        ends = [series.last[0] for series in self._history.series.values() if series.last is not None]
        if ends and max(ends) >= CHARTED_SECONDS:
            self._history.outputs = dict(totals)
            write = partial(write_usage, server, item_id, self._history, self._plan.run_id)
            await retry_until_available(f"take the usage of {item_id}", write)

    def totals(self, end: ExitStatus) -> dict[str, float]:
        """Return what the run has used in all, by name, as far as that is known.

        Args:
            end: how it has ended.
        """
        series, found = self._history.series, dict[str, float]()
        sampled = series[names.MEMORY].high if names.MEMORY in series else None
        peak = max(end.peak_memory_bytes or 0, sampled[1] if sampled else 0)
        if peak:
            found[names.PEAK_MEMORY] = int(peak)
        seconds, taken = self._last or (0.0, 0.0)
        if end.cpu_seconds is not None:
            seconds, taken = end.duration_seconds or 0.0, end.cpu_seconds
        if seconds:
            found[names.MEAN_CPUS] = round(taken / seconds, 3)
        elif names.CPUS in series:  # It ended before the agent that found it again has looked at it.
            found[names.MEAN_CPUS] = round(names.mean(series[names.CPUS].points()), 3)
        return found | names.gpu_totals(series) | (self._asked if found else {})

    def in_end(self, end: ExitStatus) -> ExitStatus:
        """Return how the run has ended, with the largest memory that it was seen to hold."""
        peak = self.totals(end).get(names.PEAK_MEMORY)
        return end if peak is None else end.model_copy(update={"peak_memory_bytes": int(peak)})

    async def _begin(self) -> None:
        """Continue the history of the agent before."""
        if self._is_adopted and not self._history:
            await anyio.to_thread.run_sync(self._load)

    async def _follow(self) -> None:
        await self._begin()
        with _PACE:
            while True:
                await anyio.sleep(_PACE.pause(self._pause))
                try:
                    with anyio.move_on_after(_LIMIT_SECONDS):
                        await self._sample()
                except Exception as error:  # noqa: BLE001 - a run that cannot be measured goes on
                    self._log_once(error)
                if time.monotonic() - self._noted_at >= _NOTE_SECONDS:
                    await self._note()

    @property
    def _age(self) -> float:
        return time.monotonic() - self._began

    @property
    def _pause(self) -> float:
        usual = YOUNG_SECONDS if self._age < _YOUNG_UNTIL else max(self._age / _SHARE_OF_RUN, SAMPLE_SECONDS)
        affordable = self._cost_seconds * _PACE.runs / _SHARE_OF_CORE
        return min(max(usual, affordable), MAX_SAMPLE_SECONDS)

    async def _sample(self) -> None:
        usage = await self._runner.usage(self._handle)
        if usage is None:
            return
        at, self._cost_seconds = self._age, usage.cost_seconds
        values: dict[str, float] = {}
        if self._last is not None:
            since, taken = self._last
            values[names.CPUS] = round(max(0.0, usage.cpu_seconds - taken) / (at - since), 3)
        values[names.MEMORY] = float(usage.memory_bytes)
        self._last = at, usage.cpu_seconds
        for index, load in (await self._read_loads()).items():
            values[names.of_gpu(names.GPU, index)] = load.percent
            values[names.of_gpu(names.GPU_MEMORY, index)] = load.memory_bytes
        self._history.add(int(at), values)
        self._on_sample(names.present(values) | self._asked)

    @cached_property
    def _asked(self) -> dict[str, float]:
        """What it has asked for of this machine; its label says it also to the next agent."""
        given = Allocation.from_label(self._plan.labels.get(Labels.DEVICES, "{}")) or Allocation()
        asked = {names.CPUS_ASKED: given.cpus, names.MEMORY_ASKED: given.memory}
        return {name: amount for name, amount in asked.items() if amount}

    def _log_once(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.warning("%s not-sampled: what it uses is not shown: %r", self._plan.item_id, error)

    def _load(self) -> None:
        try:
            self._history = Metrics.load(json.loads((self._plan.run_dir / _STATE_FILE).read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._log_once(error)

    async def _note(self) -> None:
        """Note the history in the run's folder."""
        self._noted_at = time.monotonic()
        if self._history:
            text = json.dumps(self._history.dump())
            try:
                await anyio.to_thread.run_sync(write_atomically, self._plan.run_dir / _STATE_FILE, text)
            except OSError as error:
                self._log_once(error)


class MeasureUsage(Hook):
    """Shows what a run uses; one that cannot be measured is not a bad one."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._collector: UsageCollector | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        attempt = self.attempt
        collector = UsageCollector(
            attempt.plan,
            attempt.runner,
            attempt.handle,
            age_seconds=seconds_running(attempt.item),
            read_loads=partial(attempt.context.devices.loads_of, attempt.item.id),
            on_sample=attempt.running.note_usage,
        )
        collector.follow()
        self._collector = collector
        try:
            yield
        finally:
            await collector.let_go()

    async def ended(self) -> None:
        attempt, collector = self.attempt, self._collector
        if collector is None:
            return
        attempt.totals = collector.totals(attempt.end)
        attempt.record(end=collector.in_end(attempt.end))
        try:
            await collector.finish(attempt.server, attempt.item.id, attempt.totals)
        except LaunchError as error:
            attempt.warnings.append(f"What it used could not be shown ({error}).")
