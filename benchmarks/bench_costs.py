"""What a Prefect server spends on each thing that it carries, and how fast items are on it: CPU time, rates, waits.

What a server carries is computed from this. It is kept in `benchmarks/costs.json`, each set-up
by itself. Rates and waits are worth something on a machine that does nothing else.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeVar

from benchmarks.agent_load import SLOTS, Site, agents_load, bare_load, items_of
from benchmarks.agents import running_agent
from benchmarks.bench_agents_postgres import postgres_site
from benchmarks.bench_throughput import instant_job
from benchmarks.figures import Figure, percentile
from benchmarks.place import Place
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import TERMINAL, StateType

if TYPE_CHECKING:
    from prefect_launch.client.api import Api

_Found = TypeVar("_Found")

FILE: Final = Path(__file__).with_name("costs.json")
#: Agents that wait, that share a backlog, and that items come to.
AGENTS: Final = 4
_ITEMS: Final = 100
_ADDED: Final = 40
#: Clients, and items at a time of each.
_CALLS: Final = ((1, 1), (1, 4), (2, 4))
#: Items a second that come to agents with free slots.
_RATES: Final = (2.0, 4.0)
_JOBS: Final = 20
_WINDOW_SECONDS: Final = 12.0
_LOOK_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 300.0
#: A quiet job sleeps; a chatty one prints five lines a second.
_JOB: Final = """
[ "$1" = quiet ] && exec sleep "$2"
for line in $(seq $(($2 * 5))); do echo "step $line: loss 0.1234"; sleep 0.2; done
"""


@dataclass(frozen=True)
class Backlog:
    """Items that all wait, worked off by the calls alone, or by agents.

    Attributes:
        clients: how many programs work on them, agents or not.
        slots: items at a time, of each.
        rate: items a second.
        server_ms: CPU time of the API processes for an item.
        database_ms: the same of PostgreSQL.
        client_ms: the same of agents; that of the calls alone is not taken.
    """

    clients: int
    slots: int
    rate: float
    server_ms: float
    database_ms: float
    client_ms: float = 0.0


@dataclass(frozen=True)
class Arrivals:
    """Items that come one by one, at random times, to agents with free slots.

    Attributes:
        rate: items a second.
        server_ms: CPU time of the API processes for an item, its making included.
        database_ms: the same of PostgreSQL.
        median_ms: from an item's making to its start.
        p90_ms: the same of nine in ten items, at most.
    """

    rate: float
    server_ms: float
    database_ms: float
    median_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Costs:
    """What was measured of one set-up.

    Attributes:
        date: of the measurement.
        processes: API processes.
        calls: the calls alone, one at a time and several.
        agents: agents on one queue.
        add_ms: CPU time of the API processes for the making of an item.
        rest_ms: the same for nothing at all, a second; so are the next three: of an agent that waits, of a running job
            that prints nothing, and of one that prints five lines a second.
        arrivals: at several rates.
    """

    date: str
    processes: int
    calls: Sequence[Backlog]
    agents: Sequence[Backlog] = ()
    add_ms: float = 0.0
    rest_ms: float = 0.0
    idle_agent_ms: float = 0.0
    quiet_job_ms: float = 0.0
    chatty_job_ms: float = 0.0
    arrivals: Sequence[Arrivals] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Costs:
        """Read what is kept."""
        lists = {"calls": Backlog, "agents": Backlog, "arrivals": Arrivals}
        return cls(**{**data, **{name: [kind(**one) for one in data[name]] for name, kind in lists.items()}})


def read_costs() -> dict[str, Costs]:
    """Return what is kept, by the name of the set-up."""
    return {name: Costs.of(data) for name, data in json.loads(FILE.read_text()).items()}


def measure(place: Place, part: str) -> list[Figure]:
    """Measure the set-ups of one database, and keep what they cost.

    Args:
        place: where to.
        part: `sqlite` or `postgres`.
    """
    found = {}
    if part == "sqlite":
        assert place.server.pid is not None
        found["SQLite"] = _of(place, Site([place.server.api_url], [place.server.pid]), "sqlite")
    else:
        with postgres_site(place, 1) as site:
            found["PostgreSQL"] = _of(place, site, "postgres")
        with postgres_site(place, 2) as site:
            calls = [_calls(place, site, "postgres-2", *one) for one in _CALLS[1:]]
            found["PostgreSQL, 2 API processes"] = Costs(date.today().isoformat(), 2, calls)
    if not place.quick:
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}
        kept |= {name: asdict(costs) for name, costs in found.items()}
        FILE.write_text(json.dumps(kept, indent=1) + "\n")
    return [figure for name, costs in found.items() for figure in _figures(name, costs)]


def _of(place: Place, site: Site, name: str) -> Costs:
    seconds = 0.3 if place.quick else _WINDOW_SECONDS
    rest = _told("at rest", _spent(site, seconds))
    calls = [_calls(place, site, name, *one) for one in _CALLS[: 1 if place.quick else None]]
    agents, spec = place.few(AGENTS), _spec(place, site)
    load = agents_load(place, site, f"{name}-agents", spec, items_of(place, _ITEMS), agents=agents)
    _told("agents", load)
    with _agents(place, site, f"{name}-items", agents) as queue:
        arrivals = [_arrivals(site, queue, spec, rate, seconds, load.idle_server_ms) for rate in _RATES]
        jobs, ended, job = place.few(_JOBS), _count(site.apis[0], queue, *TERMINAL), _job(place, site)
        quiet = _beside_jobs(site, queue, job, jobs, ["quiet", f"{2 * seconds + 14:.0f}"], seconds)
        chatty = _beside_jobs(site, queue, job, jobs, ["chatty", f"{seconds + 7:.0f}"], seconds)
        _until(site.apis[0], queue, ended + 2 * jobs, *TERMINAL)
    return Costs(
        date=date.today().isoformat(),
        processes=1,
        calls=calls,
        agents=[Backlog(agents, SLOTS, load.rate, load.server_ms, load.database_ms, load.agents_ms)],
        add_ms=_add_ms(site, f"{name}-added", spec, place.rounds(_ADDED)),
        rest_ms=rest,
        idle_agent_ms=(load.idle_server_ms - rest) / agents,
        quiet_job_ms=(quiet - load.idle_server_ms) / jobs,
        chatty_job_ms=(chatty - quiet) / jobs,
        arrivals=arrivals,
    )


def _spec(place: Place, site: Site) -> dict[str, Any]:
    return {"job": instant_job(place, site.apis[0])}


def _job(place: Place, site: Site) -> str:
    folder = place.folder / "job"
    folder.mkdir(exist_ok=True)
    (folder / "main.sh").write_text(_JOB)
    return create_job(folder, "code", name="job", entrypoint=["sh", "main.sh"], api=site.apis[0]).reference


def _told(what: str, found: _Found) -> _Found:
    """Print what was found, with the time: a run that is broken off has told what it knew."""
    print(f"  {time.strftime('%X')} {what}: {found}", flush=True)
    return found


def _spent(site: Site, seconds: float) -> float:
    """Return the API processes' CPU time a second, in ms."""
    (before, _), begun = site.cpu(), time.monotonic()
    time.sleep(seconds)
    return (site.cpu()[0] - before) / (time.monotonic() - begun)


def _calls(place: Place, site: Site, name: str, clients: int, slots: int) -> Backlog:
    queue, count = f"{name}-calls-{clients}-{slots}", items_of(place, _ITEMS)
    load = bare_load(site, queue, _spec(place, site), count, clients=clients, slots=slots)
    return _told("the calls alone", Backlog(clients, slots, load.rate, load.server_ms, load.database_ms))


@contextmanager
def _agents(place: Place, site: Site, queue: str, count: int) -> Iterator[str]:
    """Have agents with slots for all jobs on a queue."""
    api = site.apis[0]
    made = api.create_run_queue(queue, "local-process")
    with ExitStack() as stack:
        for number in range(count):
            agent = running_agent(place, queue, max_jobs=_JOBS, name=f"bench-{number}", api_url=site.api_urls[0])
            stack.enter_context(agent)
        while len(api.call(lambda session: session.server.list_workers(queue))) < count:
            time.sleep(_LOOK_SECONDS)
        yield queue
    made.delete()


def _arrivals(site: Site, queue: str, spec: Mapping[str, Any], rate: float, seconds: float, idle_ms: float) -> Arrivals:
    """Let items come at random times, the same ones in each run."""
    api, chance, count = site.apis[0], random.Random(1), max(2, round(rate * seconds))
    ended, ids = _count(api, queue, *TERMINAL), set[str]()
    (before, database_before), begun = site.cpu(), time.monotonic()
    due = begun
    for _ in range(count):
        due += chance.expovariate(rate)
        time.sleep(max(0.0, due - time.monotonic()))
        ids |= {run.id for run in launch_add_many([spec], queue, api=api)}
    came = count / (time.monotonic() - begun)
    _until(api, queue, ended + count, *TERMINAL)
    took, (server, database) = time.monotonic() - begun, site.cpu()
    items = [item for item in api.read_items(queue=queue, limit=None) if str(item.id) in ids]
    waits = [_ms(item.start_time - item.created) for item in items if item.start_time and item.created]
    found = Arrivals(
        rate=came,
        server_ms=(server - before - idle_ms * took) / count,
        database_ms=(database - database_before) / count,
        median_ms=median(waits),
        p90_ms=percentile(waits, 0.9),
    )
    return _told("arrivals", found)


def _ms(time_between: timedelta) -> float:
    return time_between.total_seconds() * 1000


def _beside_jobs(site: Site, queue: str, job: str, count: int, args: Sequence[str], seconds: float) -> float:
    """Start so many jobs; return the API processes' CPU time a second beside them and those before, in ms."""
    running = _count(site.apis[0], queue, StateType.RUNNING)
    launch_add_many([{"job": job, "overrides": {"args": [*args]}}] * count, queue, api=site.apis[0])
    _until(site.apis[0], queue, running + count, StateType.RUNNING)
    return _told("beside jobs", _spent(site, seconds))


def _add_ms(site: Site, queue: str, spec: Mapping[str, Any], count: int) -> float:
    """Return the API processes' CPU time for the making of an item, one by one."""
    made = site.apis[0].create_run_queue(queue, "local-process")
    before = site.cpu()[0]
    for _ in range(count):
        launch_add_many([spec], queue, api=site.apis[0])
    time.sleep(_LOOK_SECONDS)  # What follows from its event comes later.
    spent = site.cpu()[0] - before
    made.delete()
    return spent / count


def _count(api: Api, queue: str, *states: StateType) -> int:
    return api.call(lambda session: session.server.count_items(pool=queue, state_types=states))


def _until(api: Api, queue: str, count: int, *states: StateType) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _count(api, queue, *states) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} items of {queue!r} were {states} in {_PATIENCE_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)


def _figures(name: str, costs: Costs) -> Iterator[Figure]:
    for backlog in (*costs.calls, *costs.agents):
        who = "the calls alone" if backlog in costs.calls else "agents"
        what = f"{name}, {who}, {backlog.clients} × {backlog.slots} at a time"
        yield Figure(what, backlog.rate, "items/s", None, "")
        yield Figure(f"{what}: server's CPU", backlog.server_ms, "ms/item", None, "")
    for arrivals in costs.arrivals:
        what = f"{name}, {arrivals.rate:.2g} items/s come"
        yield Figure(f"{what}: server's CPU", arrivals.server_ms, "ms/item", None, "")
        yield Figure(f"{what}: until the start, median", arrivals.median_ms, "ms", None, "")
    spent = {"an item's making": costs.add_ms, "rest, a second": costs.rest_ms}
    spent |= {"an idle agent, a second": costs.idle_agent_ms, "a quiet job, a second": costs.quiet_job_ms}
    spent |= {"a chatty job, a second": costs.chatty_job_ms}
    for what, server_ms in spent.items() if costs.agents else ():
        yield Figure(f"{name}, {what}: server's CPU", server_ms, "ms", None, "")
