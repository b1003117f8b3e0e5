"""What an agent adds to a cluster: an in-memory one, and each real engine that this machine has.

Of a real engine: an item's start beside that of a bare job, in turns; 200 short items beside as many bare jobs; the
agent's memory for 200 items that the engine has accepted and not started; a new agent until it has all of them in hand.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks import in_memory_cluster
from benchmarks.agents import config_of, running_agent
from benchmarks.bare_server import calls_per_item
from benchmarks.bench_memory import pss_mib
from benchmarks.engines import ENGINES, Engine, EngineMissingError
from benchmarks.figures import Figure, Goal, at_least_times, at_most_over
from benchmarks.place import Place
from prefect_launch.agent import LaunchAgent
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add, launch_add_many
from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.errors import LaunchError
from tests.support.agent_thread import running

if TYPE_CHECKING:
    from prefect_launch.server.values import Item

_STARTS = 20
_JOBS = 200
#: Clients that submit bare jobs at the same time.
_CLIENTS = 4
#: After an item has ended: the agent has looked for the next one, and sleeps again. So much longer at most, by chance:
#: engines look at their queues once a second or so.
_PAUSE_SECONDS, _CHANCE_SECONDS = 1.0, 1.0
#: Until what a burst of work has used is given back.
_SETTLE_SECONDS = 5.0
_PATIENCE_SECONDS = 900.0


def measure(place: Place, name: str) -> list[Figure]:
    """Measure the in-memory cluster, or a real engine by its name; nothing where this machine does not have it."""
    if name == "memory":
        return in_memory_cluster.measure(place)
    kind = next(kind for kind in ENGINES if kind.name == name)
    _ = place.api  # The server is started before an engine takes the machine.
    with ExitStack() as stack:
        try:
            engine = kind(place)
        except EngineMissingError as missing:
            print(f"  {name} is not measured: {missing}", flush=True)
            return []
        stack.callback(engine.close)
        stack.enter_context(patch.dict(os.environ, engine.environment))
        bench = _Bench(place, engine)
        return [*bench.starts(), *bench.rates(), *bench.many()]


class _Bench:
    def __init__(self, place: Place, engine: Engine) -> None:
        self._place, self._engine, self._marks = place, engine, engine.marks
        self._jobs = place.rounds(_JOBS)

    # --- one after another ---

    def starts(self) -> list[Figure]:
        """An item's start beside that of a bare job, in turns."""
        bare, called, queued = list[float](), list[float](), list[float]()
        with self._queue("starts") as queue, running_agent(self._place, queue, max_jobs=4), use_api(self._place.api):
            for count in range(self._place.warm_up + self._place.rounds(_STARTS)):
                floor, whole, rest = self._bare_start(f"bare-{count}."), *self._start(queue, f"item-{count}.")
                if count >= self._place.warm_up:
                    bare.append(floor)
                    called.append(whole)
                    queued.append(rest)
        name, floor = self._engine.name, median(bare)
        goal = at_most_over(floor, 150, "ms")
        words = f"{self._engine.floor} → first line"
        return [
            Figure(f"{name}: queued → first line, p50 of {len(queued)}", median(queued), "ms", floor, words, goal),
            Figure(f"{name}: call of launch_add → first line, p50", median(called), "ms", floor, words),
        ]

    def _bare_start(self, mark: str) -> float:
        begun = time.time()
        self._engine.submit(mark)
        took = (self._marks.wait(mark)[0] - begun) * 1000
        _pause()
        return took

    def _start(self, queue: str, mark: str) -> tuple[float, float]:
        """Return the time from the call of `launch_add`, and that from its return."""
        begun = time.time()
        spec = self._engine.spec(mark)
        image = spec.get("docker", {}).get("docker_image")
        item = launch_add(
            job=spec.get("job"),
            docker_image=image,
            entry_point=spec["overrides"]["entry_point"],
            queue_name=queue,
        )
        queued = time.time()
        [started] = self._marks.wait(mark)
        item.wait_until_finished(_PATIENCE_SECONDS)
        _pause()
        return (started - begun) * 1000, (started - queued) * 1000

    # --- many at once ---

    def rates(self) -> list[Figure]:
        """Short items a second, beside bare jobs before and after them, and beside both parts' own work at once."""
        half = max(2, self._jobs // 2)
        before = self._bare_rate("before.", half)
        rate = self._rate()
        after = self._bare_rate("after.", half)
        both = self._floor_of_both(self._jobs)
        name, alone = f"{self._engine.name}: {self._jobs} short jobs", (before + after) / 2
        words = f"{self._engine.floor}, {_CLIENTS} at once"
        return [
            Figure(name, rate, "jobs/s", alone, words, at_least_times(alone, 0.9)),
            Figure(f"{name}, with the server's part", rate, "jobs/s", both, "both parts' own work at once"),
        ]

    def _bare_rate(self, prefix: str, count: int) -> float:
        with ThreadPoolExecutor(_CLIENTS) as pool:
            list(pool.map(self._engine.submit, (f"{prefix}{number}" for number in range(count))))
        return _rate(self._marks.wait(prefix, count))

    def _rate(self) -> float:
        with self._queue("rate") as queue:
            specs = [self._engine.spec(f"rate.{number}") for number in range(self._jobs)]
            launch_add_many(specs, queue, api=self._place.api)
            with running_agent(self._place, queue, max_jobs=self._engine.slots):
                times = self._marks.wait("rate.", self._jobs)
                self._place.until_items(queue, self._jobs, *TERMINAL, patience_seconds=_PATIENCE_SECONDS)
            self._check(queue)
        return _rate(times)

    def _floor_of_both(self, count: int) -> float:
        """Return the rate of bare jobs while the server gets the calls of as many items."""
        with self._queue("calls") as queue:
            launch_add_many([self._engine.spec("none")] * count, queue, api=self._place.api)
            calls = threading.Thread(target=lambda: calls_per_item(self._place.api, queue, slots=8))
            begun = time.perf_counter()
            calls.start()
            self._bare_rate("both.", count)
            calls.join()
        return count / (time.perf_counter() - begun)

    def _check(self, queue: str) -> None:
        failed = [item for item in self._items(queue) if item.state_type is not StateType.COMPLETED]
        if failed:
            raise RuntimeError(f"{len(failed)} items did not complete: {failed[0].state_name} {failed[0].message}")

    # --- many that wait there ---

    def many(self) -> list[Figure]:
        """The agent's memory for items that wait in the engine, and how soon a new agent has all of them in hand."""
        jobs, name = self._jobs, self._engine.name
        with self._queue("many") as queue, running_agent(self._place, queue, max_jobs=jobs) as agent:
            launch_add_many([self._engine.spec("warm")], queue, api=self._place.api)
            self._place.until_items(queue, 1, *TERMINAL)
            time.sleep(_SETTLE_SECONDS)
            at_rest = pss_mib(agent.pid)
            with self._engine.full():
                launch_add_many([self._engine.spec("held")] * jobs, queue, api=self._place.api)
                _until(lambda: sum(_waits_there(item) for item in self._items(queue)) >= jobs)
                time.sleep(_SETTLE_SECONDS)
                memory = (pss_mib(agent.pid) - at_rest) / jobs
                agent.kill()
                restarts = [self._adopt(queue) for _ in range(3)]
        return [
            Figure(f"{name}: agent's memory a job, of {jobs}", memory, "MiB", None, "–", Goal("≤ 1 MiB", 1.0)),
            Figure(
                f"{name}: restart, {jobs} jobs found again", median(restarts), "ms", None, "–", Goal("≤ 3,000 ms", 3000)
            ),
        ]

    def _adopt(self, queue: str) -> float:
        """Start an agent, wait until it has all in hand, and let it leave."""
        agent = LaunchAgent(self._place.api, config_of(queue, max_jobs=self._jobs))
        with running(agent):
            _until(lambda: _is_connected(agent), 0.002)
            begun = time.perf_counter()
            _until(lambda: len(agent.thread_ids) >= self._jobs, 0.002)
            return (time.perf_counter() - begun) * 1000

    # --- details ---

    @contextmanager
    def _queue(self, name: str) -> Iterator[str]:
        queue = f"clusters-{self._engine.name}-{name}"
        self._place.api.create_run_queue(queue, self._engine.name, config=self._engine.config)
        yield queue

    def _items(self, queue: str) -> list[Item]:
        return self._place.api.read_items(queue=queue, limit=None)


def _pause() -> None:
    time.sleep(_PAUSE_SECONDS + random.uniform(0, _CHANCE_SECONDS))


def _rate(times: list[float]) -> float:
    """Return how many jobs began a second, from the first one to the last one."""
    return (len(times) - 1) / (max(times) - min(times))


def _waits_there(item: Item) -> bool:
    return item.state_name == ItemState.SUBMITTED.label


def _is_connected(agent: LaunchAgent) -> bool:
    try:
        return agent.poller is not None
    except LaunchError:
        return False


def _until(is_so: Callable[[], bool], look_seconds: float = 1.0) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {_PATIENCE_SECONDS:g} s")
        time.sleep(look_seconds)
