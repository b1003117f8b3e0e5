"""What metrics cost: the writes on the server of many jobs that report them, and the agent's time for their lines.

The load is that of 20 jobs on one agent which report five times a second for a minute, beside the same jobs whose lines
are plain ones; all requests go through a relay, which counts them. The time for lines is the agent's CPU time for a job
that prints 10,000 of them, beside the same number of plain lines, in turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.agents import running_agent
from benchmarks.cpu import cpu_ms
from benchmarks.figures import Figure
from benchmarks.place import Place
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.inputs.metrics import MARK
from tests.support.relay import relay_to

if TYPE_CHECKING:
    from tests.support.processes import ChildProcess

_QUEUE: Final = "metrics"
_JOBS: Final = 20
_JOB_SECONDS: Final = 60
_LINES_A_SECOND: Final = 5
_LINES: Final = 10_000
_ROUNDS: Final = 5
#: One awk, so that twenty of them leave the machine to the server.
_REPORT: Final = """
exec awk -v before="$1" -v lines="$2" -v pause="$3" 'BEGIN {
  for (step = 0; step < lines; step++) {
    loss = 1 / (step + 1)
    printf "%s{\\"step\\": %d, \\"loss\\": %.4f, \\"accuracy\\": %.4f}\\n", before, step, loss, 1 - loss
    fflush()
    if (pause != "") system("sleep " pause)
  }
}'
"""
_PLAIN: Final = "metrics "


def measure(place: Place) -> list[Figure]:
    """Measure both."""
    folder = place.folder / "report"
    folder.mkdir()
    (folder / "main.sh").write_text(_REPORT)
    job = create_job(folder, "code", name="report", entrypoint=["sh", "main.sh"], api=place.api).reference
    place.api.create_run_queue(_QUEUE, "local-process")
    return [*_load(place, job), *_lines(place, job)]


def _spec(job: str, mark: str, lines: int, pause: str = "") -> dict[str, object]:
    return {"job": job, "overrides": {"args": [mark, str(lines), pause]}}


class _Load(NamedTuple):
    """What the server had to do, from the first job's start to the last one's end."""

    requests_a_second: float
    cpu_ms_a_second: float


def _load(place: Place, job: str) -> list[Figure]:
    jobs, seconds = (2, 1) if place.quick else (_JOBS, _JOB_SECONDS)

    def run(mark: str) -> _Load:
        spec = _spec(job, mark, seconds * _LINES_A_SECOND, str(1 / _LINES_A_SECOND))
        return _loaded(place, spec, jobs, seconds)

    plain, metrics = run(_PLAIN), run(MARK)
    name = f"{jobs} jobs with metrics"
    return [
        Figure(f"{name}: requests", metrics.requests_a_second, "/s", plain.requests_a_second, "the same, plain lines"),
        Figure(
            f"{name}: server's CPU", metrics.cpu_ms_a_second, "ms/s", plain.cpu_ms_a_second, "the same, plain lines"
        ),
    ]


def _loaded(place: Place, spec: Mapping[str, object], jobs: int, seconds: float) -> _Load:
    server = place.server
    assert server.pid is not None
    ended = place.count_items(_QUEUE, *TERMINAL)
    with relay_to(server.port) as relay, _at(relay.api_url), running_agent(place, _QUEUE, max_jobs=jobs):
        launch_add_many([spec] * jobs, _QUEUE, api=place.api)
        place.until_items(_QUEUE, ended + jobs, StateType.RUNNING, *TERMINAL)
        begun, asked, spent = time.monotonic(), relay.passed, cpu_ms(server.pid, group=True)
        time.sleep(seconds / 2)
        took = time.monotonic() - begun
        load = _Load((relay.passed - asked) / took, (cpu_ms(server.pid, group=True) - spent) / took)
        place.until_items(_QUEUE, ended + jobs, *TERMINAL)
    return load


@contextmanager
def _at(api_url: str) -> Iterator[None]:
    """Lead the agents that are started inside the block to the server by another way."""
    before = os.environ["PREFECT_API_URL"]
    os.environ["PREFECT_API_URL"] = api_url
    try:
        yield
    finally:
        os.environ["PREFECT_API_URL"] = before


def _lines(place: Place, job: str) -> list[Figure]:
    lines = 100 if place.quick else _LINES
    with running_agent(place, _QUEUE, max_jobs=1) as agent:

        def spent(mark: str, count: int) -> float:
            return _spent(place, agent, _spec(job, mark, count))

        spent(MARK, 1)  # What an agent loads with its first metric is loaded.
        pairs = [(spent(MARK, lines), spent(_PLAIN, lines)) for _ in range(1 if place.quick else _ROUNDS)]
    metrics, plain = (median(column) for column in zip(*pairs, strict=True))
    name = f"agent's CPU time, {lines:,} lines of metrics"
    return [Figure(name, metrics, "ms", plain, "the same, plain lines")]


def _spent(place: Place, agent: ChildProcess, spec: Mapping[str, object]) -> float:
    before, done = cpu_ms(agent.pid), place.count_items(_QUEUE, StateType.COMPLETED)
    launch_add_many([spec], _QUEUE, api=place.api)
    place.until_items(_QUEUE, done + 1, StateType.COMPLETED)
    return cpu_ms(agent.pid) - before
