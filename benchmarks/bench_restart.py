"""How long an agent that was killed and starts again takes to have its 20 running containers in hand.

The time runs from the moment at which the new agent is connected to the one at which all of them are in its book, each
with its item read and its watch begun. The floor is one list call: the engine's list of these containers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from benchmarks.agents import config_of
from benchmarks.figures import Figure, Goal
from benchmarks.place import Place
from benchmarks.sleepers import agent_at_rest, containers, queue_of_containers, run_sleepers
from prefect_launch.agent import LaunchAgent
from prefect_launch.errors import LaunchError
from tests.support.agent_thread import running

_CONTAINERS = 20
_ROUNDS = 3
_LISTS = 9
_LOOK_SECONDS = 0.002
_PATIENCE_SECONDS = 60.0


def measure(place: Place) -> list[Figure]:
    """Kill the agent that has started them, and start agents of its name again."""
    count = place.few(_CONTAINERS)
    with queue_of_containers(place, "restart") as queue:
        with agent_at_rest(place, queue, max_jobs=count) as agent:
            run_sleepers(place, queue, count)
            agent.kill()
        times = [_adopt(place, queue, count) for _ in range(place.few(_ROUNDS))]
        floor = median(_list(place, queue, count) for _ in range(_LISTS))
    name = f"restart, {count} containers found again"
    return [Figure(name, median(times), "ms", floor, "one list call", Goal("≤ 2,000 ms", 2000))]


def _adopt(place: Place, queue: str, count: int) -> float:
    """Start an agent, wait until it has all in hand, and let it leave: what runs goes on."""
    agent = LaunchAgent(place.api, config_of(queue, max_jobs=count))
    with running(agent):
        _until(lambda: _is_connected(agent))
        begun = time.perf_counter()
        _until(lambda: len(agent.thread_ids) == count)
        return (time.perf_counter() - begun) * 1000


def _is_connected(agent: LaunchAgent) -> bool:
    try:
        return agent.poller is not None
    except LaunchError:
        return False


def _list(place: Place, queue: str, count: int) -> float:
    begun = time.perf_counter()
    found = containers(place, queue)
    spent = (time.perf_counter() - begun) * 1000
    if len(found) != count:
        raise RuntimeError(f"{len(found)} of {count} containers are there")
    return spent


def _until(good: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not good():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {_PATIENCE_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)
