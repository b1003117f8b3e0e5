"""How many short items a second one agent gets through, as containers and as processes.

All items wait before the agent starts. The rate is taken from the first item's end to the last one's, by the times
that the server noted, so that the agent's start is left out and nothing asks the server meanwhile.

The floor of containers is the engine alone: create, start, wait, remove, one or two at a time, whichever is faster.
The floor of processes is the server alone: the calls that an agent makes for such an item, with no job between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.agents import running_agent
from benchmarks.bare_engine import cycles_per_second
from benchmarks.bare_server import calls_per_item
from benchmarks.figures import Figure, at_least_times, steady_rate
from benchmarks.place import Place
from prefect_launch.enqueue import launch_add_many
from prefect_launch.jobs import create_job
from prefect_launch.states import TERMINAL, StateType

_CONTAINERS = 60
_PROCESSES = 100
#: What is right for items that do nothing on a machine of two cores: one starts while another is reported.
_MAX_JOBS = 3
_LOOK_SECONDS = 2.0
_PATIENCE_SECONDS = 300.0


def measure(place: Place) -> list[Figure]:
    """Measure both resources."""
    return [_containers(place), _processes(place)]


def _containers(place: Place) -> Figure:
    count, image, engine = place.rounds(_CONTAINERS), place.shell_image, place.engine.api
    floor = max(cycles_per_second(engine, image, count, parallel=parallel) for parallel in (1, 2))
    spec = {"docker": {"docker_image": image}, "overrides": {"entry_point": ["true"]}}
    rate = _rate(place, "throughput-containers", "local-container", [spec] * count)
    goal = at_least_times(floor, 0.85)
    return Figure(f"container items, {_MAX_JOBS} slots", rate, "items/s", floor, "engine alone, 1 or 2 at a time", goal)


def _processes(place: Place) -> Figure:
    spec = {"job": _instant_job(place)}
    specs = [spec] * place.rounds(_PROCESSES)
    # The floor on either side of what is measured: the server slows down as its database grows.
    before = _floor(place, "throughput-calls-1", specs)
    rate = _rate(place, "throughput-processes", "local-process", specs)
    floor = (before + _floor(place, "throughput-calls-2", specs)) / 2
    goal = at_least_times(floor, 0.8)
    return Figure(f"process items, {_MAX_JOBS} slots", rate, "items/s", floor, "the same calls, no job", goal)


def _instant_job(place: Place) -> str:
    folder = Path(place.folder / "instant")
    folder.mkdir()
    (folder / "main.sh").write_text(":\n")
    job = create_job(folder, "code", name="instant", entrypoint=["sh", "main.sh"], api=place.api)
    return job.reference


def _floor(place: Place, queue: str, specs: Sequence[Mapping[str, object]]) -> float:
    return _on_queue(place, queue, "local-process", specs, lambda: calls_per_item(place.api, queue, slots=_MAX_JOBS))


def _rate(place: Place, queue: str, resource: str, specs: Sequence[Mapping[str, object]]) -> float:
    def work() -> None:
        with running_agent(place, queue, max_jobs=_MAX_JOBS):
            _wait_until_done(place, queue, len(specs))

    return _on_queue(place, queue, resource, specs, work)


def _on_queue(
    place: Place, queue: str, resource: str, specs: Sequence[Mapping[str, object]], work: Callable[[], None]
) -> float:
    """Put items on a queue of their own, have them done, and return the rate at which they ended."""
    made = place.api.create_run_queue(queue, resource)
    launch_add_many(specs, queue, api=place.api)
    work()
    items = place.api.read_items(queue=queue, limit=None)
    failed = [item for item in items if item.state_type is not StateType.COMPLETED]
    if failed or len(items) != len(specs):
        reasons = [item.message for item in failed[:3]]
        raise RuntimeError(f"{len(failed)} of {len(items)} items did not complete; {len(specs)} were queued. {reasons}")
    ends = [item.end_time for item in items if item.end_time is not None]
    made.delete()
    return steady_rate([end.timestamp() for end in ends], _MAX_JOBS)


def _wait_until_done(place: Place, queue: str, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _done(place, queue) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} items on {queue!r} were not done after {_PATIENCE_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)


def _done(place: Place, queue: str) -> int:
    return place.api.call(lambda session: session.server.count_items(pool=queue, state_types=TERMINAL))
