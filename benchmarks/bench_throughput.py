"""How many short items a second one agent gets through, as containers and as processes.

All items wait before the agent starts. The rate is taken over the last two thirds of the items' ends, by the times
that the server noted, so that the agent's start is left out and nothing asks the server meanwhile.

The floor of containers is the engine alone: create, start, wait, remove, one or two at a time, whichever is faster.
The floor of processes is the server alone: the calls that an agent makes for such an item, with no job between, for
four items or eight at a time, whichever is faster. The server has a core of its own, for both.

The engine works on all cores, and its floor is high on few because nothing else runs beside it. So that is measured
once more beside a program that takes as much of the cores as an item takes more than its floor: what is left to that is
lost by waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.agents import running_agent
from benchmarks.bare_engine import cycles_per_second
from benchmarks.bare_server import calls_per_item
from benchmarks.cores import on_cores_of_their_own
from benchmarks.figures import Figure, at_least_times
from benchmarks.other_work import CoresUsed, Pace, other_work
from benchmarks.place import Place
from prefect_launch.client.api import Api
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import TERMINAL, StateType

Specs = Sequence[Mapping[str, Any]]

_CONTAINERS = 60
_PROCESSES = 120
#: The engine works on two containers at a time; one is being claimed and one reported meanwhile.
_CONTAINER_SLOTS = 4
#: A process item waits for the server for most of its time: with eight, the server always has something to do.
PROCESS_SLOTS = 8
#: Calls at a time of the floor, of which the fastest counts: a server that is asked too much at a time gets slower.
_CALLS = (4, PROCESS_SLOTS)
_TURNS = 2
#: One of so many items ends while the agent still reads what is there, and the event stream what was.
_OF_START = 3
_LOOK_SECONDS = 2.0


def measure(place: Place) -> list[Figure]:
    """Measure both resources."""
    return [*_containers(place), *_processes(place)]


def _containers(place: Place) -> list[Figure]:
    image, count = place.shell_image, place.at_a_time(_CONTAINERS, _CONTAINER_SLOTS)
    specs = [{"docker": {"docker_image": image}, "overrides": {"entry_point": ["true"]}}] * count

    def alone(parallel: int) -> Pace:
        with CoresUsed() as used:
            begun = time.time()
            rate = cycles_per_second(place.engine.api, image, count // 2, parallel=parallel)
            ended = time.time()
        return Pace(rate, used.between(begun, ended))

    def floor(_name: str) -> Pace:
        return max(map(alone, (1, 2)), key=attrgetter("rate"))

    def pace(name: str) -> Pace:
        return _agent_pace(place, f"throughput-containers-{name}", "local-container", specs, _CONTAINER_SLOTS)

    name = f"container items, {_CONTAINER_SLOTS} slots"
    return _in_turns(name, pace, floor, "engine alone, 1 or 2 at a time", shares_cores=True)


def _processes(place: Place) -> list[Figure]:
    specs = [{"job": instant_job(place)}] * place.at_a_time(_PROCESSES, PROCESS_SLOTS)

    def floor(name: str) -> Pace:
        paces = [_bare_pace(place, f"throughput-calls-{name}-{slots}", specs, slots) for slots in _CALLS]
        return max(paces, key=attrgetter("rate"))

    def pace(name: str) -> Pace:
        return _agent_pace(place, f"throughput-processes-{name}", "local-process", specs, PROCESS_SLOTS)

    name, pid = f"process items, {PROCESS_SLOTS} slots", place.server.pid
    assert pid is not None
    with on_cores_of_their_own([pid], 1):
        return _in_turns(name, pace, floor, "the same calls, 4 or 8 at a time", shares_cores=False)


def _in_turns(
    name: str, pace: Callable[[str], Pace], floor: Callable[[str], Pace], floor_name: str, *, shares_cores: bool
) -> list[Figure]:
    """Measure twice, with the floor before, between and after.

    The server slows down as its database grows, and others use the machine.

    Args:
        name: of the figure.
        pace: measures, given a name for the round.
        floor: measures the floor.
        floor_name: what the floor is.
        shares_cores: whether agents and jobs take cores from what the floor is of: it is measured each time beside as
            much other work, too.
    """
    floors, paces, loaded = [floor("0")], [], []
    for turn in range(1, _TURNS + 1):
        paces.append(now := pace(f"{turn}"))
        if shares_cores:
            with other_work(now.more_than(floors[-1])):
                loaded.append(floor(f"{turn}-beside"))
        floors.append(floor(f"{turn}"))
    rate, alone = (mean(one.rate for one in many) for many in (paces, floors))
    figures = [Figure(name, rate, "items/s", alone, floor_name, at_least_times(alone, 0.95))]
    if shares_cores:
        beside = mean(one.rate for one in loaded)
        figures.append(Figure(f"{name}, on the cores left", rate, "items/s", beside, "that, beside as much other work"))
    return figures


def instant_job(place: Place, api: Api | None = None) -> str:
    """Make a job that ends at once; return its reference.

    Args:
        place: where its code is written.
        api: the server that keeps it; by default the place's.
    """
    folder = Path(place.folder / "instant")
    folder.mkdir(exist_ok=True)
    (folder / "main.sh").write_text(":\n")
    job = create_job(folder, "code", name="instant", entrypoint=["sh", "main.sh"], api=api or place.api)
    return job.reference


def _bare_pace(place: Place, queue: str, specs: Specs, slots: int) -> Pace:
    """Return the pace of the calls alone."""
    return _on_queue(place, queue, "local-process", specs, lambda: calls_per_item(place.api, queue, slots=slots), slots)


def _agent_pace(place: Place, queue: str, resource: str, specs: Specs, slots: int) -> Pace:
    """Return the pace of an agent."""

    def work() -> None:
        with running_agent(place, queue, max_jobs=slots):
            place.until_items(queue, len(specs), *TERMINAL, look_seconds=_LOOK_SECONDS)

    return _on_queue(place, queue, resource, specs, work, slots)


def _on_queue(place: Place, queue: str, resource: str, specs: Specs, work: Callable[[], None], slots: int) -> Pace:
    """Put items on a queue of their own, have them done, and return the pace at which they ended."""
    made = place.api.create_run_queue(queue, resource)
    launch_add_many(specs, queue, api=place.api)
    with CoresUsed() as used:
        work()
    items = place.api.read_items(queue=queue, limit=None)
    failed = [item for item in items if item.state_type is not StateType.COMPLETED]
    if failed or len(items) != len(specs):
        reasons = [item.message for item in failed[:3]]
        raise RuntimeError(f"{len(failed)} of {len(items)} items did not complete; {len(specs)} were queued. {reasons}")
    ends = [item.end_time.timestamp() for item in items if item.end_time is not None]
    made.delete()
    return used.pace(sorted(ends)[len(ends) // _OF_START :], slots)
