"""What a sweep adds: the time from one trial to the next, the CPU time of its scheduler, and reading it anew.

One trial after another runs on an agent with one slot; the floor is plain items that wait in a row on the same agent,
before and after the sweep. The end of one and the start of the next are the times that the server noted. The scheduler
runs in this process, which does nothing else meanwhile.

A sweep is read anew as a scheduler does when it starts: it reads the items and their metrics, and asks the sampler for
one trial. The floor is the same requests, with nothing made of their answers; the CPU time is that of this process.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID, uuid4

import httpx
from prefect.logging import disable_run_logger

from benchmarks.agents import running_agent
from benchmarks.bench_throughput import instant_job
from benchmarks.figures import Figure, Goal, at_most_over
from benchmarks.place import Place
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.server.metrics import metrics_key, write_metrics
from prefect_launch.server.values import PAGE, ItemDraft, State
from prefect_launch.sweeps.flow import begin_sweep, run_sweep
from prefect_launch.sweeps.samplers.base import next_params
from prefect_launch.sweeps.samplers.registry import make_sampler
from prefect_launch.sweeps.scheduler import Control, Outcome, decide
from prefect_launch.sweeps.search_space import random_point
from prefect_launch.sweeps.sweep_run import sweep_config
from prefect_launch.sweeps.trial_items import TRIAL_LABEL, SweepTrials, TrialRecord, sweep_tag, trial_key
from prefect_launch.sweeps.trial_reader import read_trials

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

_QUEUE: Final = "sweep"
_TRIALS: Final = 20
_READ_TRIALS: Final = 1000
_READS: Final = 5
_STEPS: Final = 20
_PATIENCE_SECONDS: Final = 300.0
_ARTIFACTS: Final = 100
_POINTS: Final = {"x": {"min": 0.0, "max": 1.0}, "y": {"min": 0, "max": 100}, "z": {"values": ["a", "b", "c"]}}


def measure(place: Place) -> list[Figure]:
    """Measure trials in a row, then reading many."""
    place.api.create_run_queue(_QUEUE, "local-process")
    return [*_in_a_row(place), *_read_anew(place)]


# --- one trial after another ---


def _in_a_row(place: Place) -> list[Figure]:
    job, count = instant_job(place), 3 if place.quick else _TRIALS
    with use_api(place.api), running_agent(place, _QUEUE, max_jobs=1):
        _plain(place, job, 1)  # What an agent loads with its first item is loaded.
        floors = _plain(place, job, count)
        begun = time.process_time()
        tag = sweep_tag(_sweep(place, job, count))
        spent = (time.process_time() - begun) * 1000
        gaps = _gaps(place.api.call(lambda session: session.server.list_items(tags=[tag])))
        floors += _plain(place, job, count)
    floor, name = median(floors), f"plain items in a row, median of {len(floors)}"
    what = f"trial's end → next start, median of {len(gaps)}"
    return [
        Figure(what, median(gaps), "ms", floor, name, at_most_over(floor, 150, "ms")),
        Figure("the same, slowest", max(gaps), "ms", max(floors), "the same, slowest"),
        Figure("scheduler's CPU time a trial", spent / count, "ms", None, f"{count} trials, one at a time"),
    ]


def _plain(place: Place, job: str, count: int) -> list[float]:
    done = place.count_items(_QUEUE, *TERMINAL)
    ids = [UUID(one.id) for one in launch_add_many([{"job": job}] * count, _QUEUE, api=place.api)]
    place.until_items(_QUEUE, done + count, *TERMINAL)
    return _gaps(place.api.call(lambda session: session.server.list_items(ids=ids)))


def _sweep(place: Place, job: str, count: int) -> UUID:
    given = {"queue": _QUEUE, "job": job, "num_workers": 1, "run_cap": count}

    async def run() -> UUID:
        sweep_id = await begin_sweep(place.api, {"config": {"method": "random", "parameters": _POINTS}, **given})
        with disable_run_logger():  # Its lines would stand among the benchmarks' own.
            end = await run_sweep(place.api, sweep_id)
        if end.outcome is not Outcome.FINISHED:
            raise RuntimeError(f"The sweep did not finish: {end.message}")
        return sweep_id

    return asyncio.run(run())


def _gaps(items: list[Any]) -> list[float]:
    """Return the times between items that ran one after another, in milliseconds."""
    if bad := [item.message for item in items if item.state_type is not StateType.COMPLETED]:
        raise RuntimeError(f"{len(bad)} of {len(items)} items did not complete: {bad[:3]}")
    in_turn = sorted(items, key=lambda item: item.start_time)
    return [(later.start_time - one.end_time).total_seconds() * 1000 for one, later in pairwise(in_turn)]


# --- a sweep that is read anew ---


class _Read(NamedTuple):
    """How long the parts of one reading took, in milliseconds."""

    requests: float
    trials: float
    random: float
    bayes: float
    cpu_random: float
    cpu_bayes: float


def _read_anew(place: Place) -> list[Figure]:
    count = 20 if place.quick else _READ_TRIALS

    async def read(session: Session) -> list[_Read]:
        sweep_id = uuid4()
        ids = await _make_trials(session, sweep_id, count)
        url = session.server.api_url
        async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE_SECONDS) as client:
            return [await _read(session, client, sweep_id, ids) for _ in range(1 + (1 if place.quick else _READS))]

    reads = place.api.call(read)[1:]  # The first has imported what the samplers need.
    floor = median(read.requests for read in reads)
    figures, goal = [], Goal("≤ 1,000 ms", 1000)
    for name in ("random", "bayes"):
        what = f"{count:,} trials read, next one asked, {name}"
        took = median(read.trials + getattr(read, name) for read in reads)
        cpu = median(getattr(read, f"cpu_{name}") for read in reads)
        figures += [
            Figure(what, took, "ms", floor, "the same requests", goal),
            Figure("the same, scheduler's CPU time", cpu, "ms", None, "the server's is not in it"),
        ]
    return figures


def _config(method: str) -> Any:
    return sweep_config({"method": method, "metric": {"name": "loss"}, "parameters": _POINTS}, num_workers=1)


async def _make_trials(session: Session, sweep_id: UUID, count: int) -> list[UUID]:
    """Make trials that have ended, each with a history of its metric; return the ids of their items."""
    queue, config = await session.queue(_QUEUE), _config("random")
    drafts = []
    for number in range(count):
        params = random_point(config.parameters, str(number))
        record = TrialRecord(number=number, attempt=1, params=params)
        drafts.append(
            ItemDraft(
                name=str(number),
                parameters={"job": "instant", "overrides": {"run_config": params}, "sweep_id": str(sweep_id)},
                tags=(sweep_tag(sweep_id),),
                labels={TRIAL_LABEL: record.model_dump_json()},
                idempotency_key=trial_key(sweep_id, record),
                state=State.of(ItemState.COMPLETED),
                enforce_parameter_schema=False,
            )
        )
    made = await session.server.create_items(queue.deployment_id, drafts)
    for number, item in enumerate(made):
        metrics = Metrics()
        for step in range(_STEPS):
            metrics.add(step, {"loss": 1 / (step + 1) + number % 97})
        await write_metrics(session.server, item.id, metrics)
    return [item.id for item in made]


async def _read(session: Session, client: httpx.AsyncClient, sweep_id: UUID, ids: list[UUID]) -> _Read:
    begun = time.perf_counter()
    await _only_requests(client, sweep_id, ids)
    requests = time.perf_counter() - begun
    begun, cpu = time.perf_counter(), time.process_time()
    trials = await read_trials(session.server, sweep_id, _config("random"))
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    if len(trials.history.trials) != len(ids):
        raise RuntimeError(f"{len(trials.history.trials)} trials were read, not {len(ids)}.")
    (random, cpu_random), (bayes, cpu_bayes) = (_ask(sweep_id, trials, method) for method in ("random", "bayes"))
    seconds = (requests, took, random, bayes, cpu + cpu_random, cpu + cpu_bayes)
    return _Read(*(one * 1000 for one in seconds))


def _ask(sweep_id: UUID, trials: SweepTrials, method: str) -> tuple[float, float]:
    """Return how long it takes to decide on one more trial, by the clock and in CPU time."""
    begun, cpu = time.perf_counter(), time.process_time()
    config = _config(method)
    sampler = make_sampler(config, str(sweep_id))
    actions = decide(config, trials.history, Control(), lambda history: next_params(sampler, history))
    took = time.perf_counter() - begun, time.process_time() - cpu
    if [getattr(action, "number", None) for action in actions] != [len(trials.history.trials)]:
        raise RuntimeError(f"The scheduler would not queue one trial: {actions}")
    return took


async def _only_requests(client: httpx.AsyncClient, sweep_id: UUID, ids: list[UUID]) -> None:
    """Ask the server for the items and their metrics, and make nothing of its answers."""
    runs = {"flow_runs": {"tags": {"all_": [sweep_tag(sweep_id)]}}, "flows": {"name": {"any_": ["launch"]}}}
    pages = [
        ("/flow_runs/filter", {**runs, "sort": "EXPECTED_START_TIME_DESC", "limit": PAGE, "offset": start})
        for start in range(0, len(ids) + 1, PAGE)
    ]
    for start in range(0, len(ids), _ARTIFACTS):
        keys = [metrics_key(item_id) for item_id in ids[start : start + _ARTIFACTS]]
        pages.append(("/artifacts/filter", {"artifacts": {"key": {"any_": keys}}, "sort": "UPDATED_DESC"}))
    for path, body in pages:
        (await client.post(path, json=body)).raise_for_status()
