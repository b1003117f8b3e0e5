"""What an agent spends to sample its runs: its CPU time with eight of them, beside the same agent that samples none.

A run is a Python program with eight threads and two children, or a container. What is measured begins when the runs are
older than the first seconds, in which they are sampled each second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from benchmarks.agents import Front, running_agent
from benchmarks.cpu import cpu_ms
from benchmarks.figures import Figure, Goal
from benchmarks.place import Place
from benchmarks.sleepers import SLEEP, queue_of_containers
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import TERMINAL, StateType

_RUNS: Final = 8
_SETTLE_SECONDS: Final = 12.0
_SECONDS: Final = 60.0
_QUEUE: Final = "usage"
_PROGRAM: Final = """
import os, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
for _ in range(2):
    if os.fork() == 0:
        time.sleep(3600)
        os._exit(0)
time.sleep(3600)
"""


def measure(place: Place) -> list[Figure]:
    """Measure processes and containers."""
    folder = place.folder / "usage"
    folder.mkdir()
    (folder / "main.py").write_text(_PROGRAM)
    job = create_job(folder, "code", name="usage", entrypoint=["python", "main.py"], api=place.api).reference
    made = place.api.create_run_queue(_QUEUE, "local-process")
    figures = [_figure(place, _QUEUE, "processes", {"job": job})]
    made.delete()
    with queue_of_containers(place, "usage-containers") as queue:
        spec = {"docker": {"docker_image": place.shell_image}, "overrides": {"entry_point": list(SLEEP)}}
        figures.append(_figure(place, queue, "containers", spec))
    return figures


def _figure(place: Place, queue: str, what: str, spec: Mapping[str, object]) -> Figure:
    count = place.few(_RUNS)
    without = _share(place, queue, spec, count, "unsampled")
    sampled = _share(place, queue, spec, count, "loop")
    goal = Goal("≤ floor + 1 % of a core", without + 1.0)
    return Figure(f"agent's CPU, {count} {what}", sampled, "% of a core", without, "the same, not sampled", goal)


def _share(place: Place, queue: str, spec: Mapping[str, object], count: int, front: Front) -> float:
    """Return the share of a core that an agent uses while its runs do nothing, in percent."""
    agent = running_agent(place, queue, max_jobs=count, front=front, stopped_run_timeout=1)
    with agent as process, _runs(place, queue, spec, count):
        time.sleep(0.5 if place.quick else _SETTLE_SECONDS)
        begun, spent = time.monotonic(), cpu_ms(process.pid)
        time.sleep(1.0 if place.quick else _SECONDS)
        return (cpu_ms(process.pid) - spent) / (time.monotonic() - begun) / 10


@contextmanager
def _runs(place: Place, queue: str, spec: Mapping[str, object], count: int) -> Iterator[list[QueuedRun]]:
    """Have runs for as long as the block lasts."""
    ended = place.count_items(queue, *TERMINAL)
    runs = launch_add_many([spec] * count, queue, api=place.api)
    place.until_items(queue, count, StateType.RUNNING)
    try:
        yield runs
    finally:
        for run in runs:
            run.cancel()
        place.until_items(queue, ended + count, *TERMINAL)
