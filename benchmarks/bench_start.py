"""What `prefect-launch agent start` takes until its first claim, in CPU time and by the clock.

The floor is `prefect --version`, in turns with the agents: a program that imports Prefect and does nothing with it. An
item waits when each agent starts. The CPU time is the agent's own, read when its log tells of the claim.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.bench_throughput import instant_job
from benchmarks.cpu import cpu_ms
from benchmarks.figures import Figure, at_most_times, print_table
from benchmarks.place import Place, open_place
from prefect_launch.client.launch_add import launch_add_many

_ROUNDS = 9
_QUEUE = "start"
_BIN = Path(sys.executable).parent


class _Took(NamedTuple):
    """How long something took, in milliseconds."""

    cpu: float
    clock: float


def measure(place: Place) -> list[Figure]:
    """Start agents one after another, each with one item to claim."""
    job = instant_job(place)
    place.api.create_run_queue(_QUEUE, "local-process")
    pairs = []
    for _ in range(place.warm_up + (1 if place.quick else _ROUNDS)):
        launch_add_many([{"job": job}], _QUEUE, api=place.api)
        pairs.append((_until_first_claim(), _prefect_version()))
    claims, floors = zip(*pairs[place.warm_up :], strict=True)
    cpu, clock = _middle(claims), _middle(floors)
    name = "prefect --version"
    return [
        Figure("agent start → first claim, CPU", cpu.cpu, "ms", clock.cpu, name, at_most_times(clock.cpu, 1.5)),
        Figure("agent start → first claim", cpu.clock, "ms", clock.clock, name, at_most_times(clock.clock, 1.5)),
    ]


def _middle(many: tuple[_Took, ...]) -> _Took:
    return _Took(median(one.cpu for one in many), median(one.clock for one in many))


def _until_first_claim() -> _Took:
    command = [str(_BIN / "prefect-launch"), "agent", "start", "-q", _QUEUE, "--name", "bench-start", "--until-empty"]
    begun = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
        assert agent.stderr is not None
        took, told = None, []
        for line in agent.stderr:
            told.append(line)
            if took is None and " claimed " in line:
                took = _Took(cpu_ms(agent.pid), (time.perf_counter() - begun) * 1000)
    if took is None:
        raise RuntimeError(f"The agent has claimed nothing: {''.join(told)}")
    return took


def _prefect_version() -> _Took:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(_BIN / "prefect"), "--version"], check=True, stdout=subprocess.DEVNULL)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Took(cpu * 1000, (ended - begun) * 1000)


if __name__ == "__main__":
    with open_place(quick="--quick" in sys.argv) as here:
        print_table(measure(here))
