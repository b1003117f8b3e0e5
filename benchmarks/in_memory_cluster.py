"""What an agent adds to an in-memory cluster: a job's start, short jobs a second, memory a job, a restart with many.

What is measured is the agent with a real Prefect server. The floor of a start is the runner alone: created, released,
and seen to run. The floor of a restart is one list call.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

from benchmarks.agents import config_of
from benchmarks.bench_memory import pss_mib
from benchmarks.figures import Figure, Goal
from benchmarks.place import Place
from prefect_launch.agent import LaunchAgent
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.testing import InMemoryCluster, InMemoryRemoteRunner, Script

_JOBS = 200
#: So many jobs one agent holds in a cluster.
_HELD_JOBS = 500
_STARTS = 20
#: A queue of images; the agent gets a runner of the in-memory cluster for it.
_RESOURCE = "local-container"
_LOOK_SECONDS = 0.002


def measure(place: Place) -> list[Figure]:
    """Measure all of it with one agent after another."""
    bench = _Bench(place)  # The server is started before the event loop: it sets this thread's settings.
    return asyncio.run(bench.measure())


class _Bench:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._api = place.api
        self._jobs, self._held = place.few(_JOBS), place.few(_HELD_JOBS)
        self._cluster = InMemoryCluster()

    async def measure(self) -> list[Figure]:
        """Measure starts, a rate, memory and a restart, in this order."""
        queue = f"clusters-{uuid4().hex[:8]}"
        await asyncio.to_thread(self._api.create_run_queue, queue, _RESOURCE)
        async with self._running(queue):
            starts = [await self._start(queue) for _ in range(self._place.rounds(_STARTS))]
        floor = median([await self._floor() for _ in range(self._place.rounds(_STARTS))])
        rate = await self._rate(queue)
        memory, restart, listed = await self._many(queue)
        return [
            Figure("start in a cluster, queued → started", median(starts), "ms", floor, "the runner alone"),
            Figure(f"{self._jobs} short jobs in a cluster", rate, "items/s", None, "–"),
            Figure(
                f"agent's memory per job in a cluster, of {self._held}", memory, "MiB", None, "–", Goal("≤ 1 MiB", 1.0)
            ),
            Figure(
                f"restart, {self._held} jobs in a cluster found again",
                restart,
                "ms",
                listed,
                "one list call",
                Goal("≤ 3,000 ms", 3000),
            ),
        ]

    @asynccontextmanager
    async def _running(self, queue: str) -> AsyncIterator[LaunchAgent]:
        runner = InMemoryRemoteRunner(self._place.folder, self._cluster)
        config = config_of(queue, max_jobs=self._held)
        agent = LaunchAgent(self._api, config, runners={_RESOURCE: runner})
        loop = asyncio.create_task(agent.loop())
        try:
            yield agent
            agent.stop()
            await loop
        finally:
            loop.cancel()
            await asyncio.wait({loop})

    async def _add(self, queue: str, count: int) -> None:
        specs = [{"docker": {"docker_image": "busybox:1"}} for _ in range(count)]
        await alaunch_add_many(specs, queue, api=self._api)

    async def _start(self, queue: str) -> float:
        before = len(self._cluster.started)
        await self._add(queue, 1)
        return await _until(lambda: len(self._cluster.started) > before)

    async def _floor(self) -> float:
        runner, item = InMemoryRemoteRunner(self._place.folder, self._cluster), str(uuid4())
        run_dir = self._place.folder / item
        await asyncio.to_thread(run_dir.mkdir)
        plan = RunPlan(item_id=item, run_id=item[:8], run_dir=run_dir, labels={Labels.ITEM: item})
        begun = time.perf_counter()
        handle = await runner.create(plan)
        await runner.start(handle)
        await runner.wait_running(handle, _nothing)
        took = (time.perf_counter() - begun) * 1000
        await runner.aclose()
        return took

    async def _rate(self, queue: str) -> float:
        """Return how many jobs that end at once an agent runs a second, from its connection to the last end."""
        await self._add(queue, self._jobs)
        begun = time.perf_counter()
        async with self._running(queue) as agent:
            done = len(self._cluster.started) + self._jobs
            await _until(lambda: len(self._cluster.started) >= done and not agent.thread_ids)
            return self._jobs / (time.perf_counter() - begun)

    async def _many(self, queue: str) -> tuple[float, float, float]:
        """Return the memory a running job, the time of a restart, and that of one list call."""
        self._cluster.script = lambda plan: Script(seconds=3600)
        async with self._running(queue):
            at_rest, before = pss_mib(os.getpid()), len(self._cluster.started)
            await self._add(queue, self._held)
            await _until(lambda: len(self._cluster.started) - before >= self._held)
            memory = (pss_mib(os.getpid()) - at_rest) / self._held
        async with self._running(queue) as agent:
            restart = await _until(lambda: len(agent.thread_ids) >= self._held)
            listed = await _timed(lambda: InMemoryRemoteRunner(Path(), self._cluster).find({}))
            for job in list(self._cluster.jobs.values()):
                job.finish()
            await _until(lambda: not agent.thread_ids)
        return memory, restart, listed


async def _until(is_so: Callable[[], bool]) -> float:
    """Wait until it is so; return how long that took, in milliseconds."""
    begun = time.perf_counter()
    while not is_so():  # noqa: ASYNC110 - what is looked at belongs to an agent
        await asyncio.sleep(_LOOK_SECONDS)
    return (time.perf_counter() - begun) * 1000


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


async def _nothing(reason: str) -> None:
    """Hear why a run waits."""
