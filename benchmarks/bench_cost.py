"""What one item costs in CPU time: of its agent, of the server, of the Docker Engine.

Other programs on the machine change these figures little, unlike a rate. The items wait in a paused queue, so that
their making is not counted; what the server and the agent use at rest is taken off. The floor of the server is its CPU
time for the calls alone that an agent makes for such an item.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.agents import running_agent
from benchmarks.bare_server import calls_per_item
from benchmarks.bench_throughput import PROCESS_SLOTS, instant_job
from benchmarks.cpu import cpu_ms
from benchmarks.figures import Figure
from benchmarks.place import Place
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import TERMINAL

_ITEMS = 60
_CONTAINER_SLOTS = 3
_WARM_UP = 3
_REST_SECONDS = 5.0
_LOOK_SECONDS = 1.0

CpuTimes = dict[str, float]


def measure(place: Place) -> list[Figure]:
    """Measure an item of each resource."""
    container = {"docker": {"docker_image": place.shell_image}, "overrides": {"entry_point": ["true"]}}
    process = {"job": instant_job(place)}
    count = place.rounds(_ITEMS)
    calls = _calls_alone(place, process, count)
    figures = []
    for resource, spec, slots in (
        ("local-process", process, PROCESS_SLOTS),
        ("local-container", container, _CONTAINER_SLOTS),
    ):
        cost = _cost(place, resource, spec, count, slots)
        name = f"{resource} item, CPU of"
        figures += [
            Figure(f"{name} the agent", cost["agent"], "ms", None, "–"),
            Figure(f"{name} the server", cost["server"], "ms", calls, "the same calls, no job"),
        ]
        if "engine" in cost:
            figures.append(Figure(f"{name} the engine", cost["engine"], "ms", None, "–"))
    return figures


def _calls_alone(place: Place, spec: Mapping[str, Any], count: int) -> float:
    """Return the server's CPU time for the calls of one item."""
    made = place.api.create_run_queue("cost-calls", "local-process")
    launch_add_many([spec] * count, "cost-calls", api=place.api)
    pid = place.server.pid
    assert pid is not None

    def read() -> CpuTimes:
        return {"server": cpu_ms(pid)}

    rest = _at_rest(read)
    used = _used(read, rest, lambda: calls_per_item(place.api, "cost-calls", slots=PROCESS_SLOTS))
    made.delete()
    return used["server"] / count


def _cost(place: Place, resource: str, spec: Mapping[str, Any], count: int, slots: int) -> CpuTimes:
    """Return the CPU times of one item."""
    queue = f"cost-{resource}"
    made = place.api.create_run_queue(queue, resource)
    pids = {"server": place.server.pid}
    if resource == "local-container":
        pids["engine"] = _pid_of("dockerd")
    with running_agent(place, queue, max_jobs=slots) as agent:
        pids["agent"] = agent.pid
        launch_add_many([spec] * _WARM_UP, queue, api=place.api)
        place.until_items(queue, _WARM_UP, *TERMINAL)
        place.api.call(lambda session: session.server.update_pool(queue, is_paused=True))
        launch_add_many([spec] * (count - 1), queue, api=place.api)

        def read() -> CpuTimes:
            return {who: cpu_ms(pid) for who, pid in pids.items() if pid is not None}

        def work() -> None:
            place.api.call(lambda session: session.server.update_pool(queue, is_paused=False))
            launch_add_many([spec], queue, api=place.api)  # Its event wakes the agent.
            place.until_items(queue, _WARM_UP + count, *TERMINAL, look_seconds=_LOOK_SECONDS)

        used = _used(read, _at_rest(read), work)
    made.delete()
    return {who: ms / count for who, ms in used.items()}


def _at_rest(read: Callable[[], CpuTimes]) -> CpuTimes:
    """Return the CPU times of a second in which nothing is to be done."""
    time.sleep(_REST_SECONDS)  # What the making of the items has left to do is done.
    return {who: ms / _REST_SECONDS for who, ms in _used(read, {}, lambda: time.sleep(_REST_SECONDS)).items()}


def _used(read: Callable[[], CpuTimes], rest: CpuTimes, work: Callable[[], object]) -> CpuTimes:
    """Return the CPU times of some work, without what is used at rest."""
    before, begun = read(), time.monotonic()
    work()
    time.sleep(_LOOK_SECONDS)  # The server handles events after it has answered.
    seconds = time.monotonic() - begun
    return {who: ms - before[who] - rest.get(who, 0.0) * seconds for who, ms in read().items()}


def _pid_of(program: str) -> int | None:
    """Return the process of a program, where this machine shows one."""
    for file in Path("/proc").glob("[0-9]*/comm"):
        try:
            if file.read_text().strip() == program:
                return int(file.parent.name)
        except OSError:  # ended meanwhile
            continue
    return None
