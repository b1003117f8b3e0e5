"""What a Prefect server spends on each thing that it carries, and how fast items are on it: CPU time, rates, waits.

The page on limits is computed from this (`benchmarks.bench_limits`). It is kept in `benchmarks/costs.json`, each set-up
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
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from benchmarks.agent_load import SLOTS, Site, agents_load, bare_load
from benchmarks.agents import running_agent
from benchmarks.bench_agents_postgres import postgres_site
from benchmarks.bench_throughput import instant_job
from benchmarks.cpu import machine_cpu_ms
from benchmarks.figures import Figure, percentile
from benchmarks.place import Place
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import add_items, launch_add_many
from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.spec.launch_spec import parse_spec

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session
    from prefect_launch.spec.launch_spec import LaunchSpec

_Found = TypeVar("_Found")

FILE: Final = Path(__file__).with_name("costs.json")
SQLITE: Final = "SQLite"
POSTGRES: Final = "PostgreSQL, 1 API process"
#: Names of the set-ups, and their API processes.
_SET_UPS: Final = {
    "sqlite": (SQLITE, 1),
    "postgres": (POSTGRES, 1),
    "postgres-2": ("PostgreSQL, 2 API processes", 2),
}
#: Agents that wait, that share a backlog, and that items come to.
AGENTS: Final = 4
_ITEMS: Final = 100
_ADDED: Final = 40
#: Clients, and items at a time of each.
_CALLS: Final = ((1, 1), (1, 4), (2, 4))
#: Items a second that come to agents with free slots.
_RATES: Final = (1.0, 4.0)
#: Running jobs: a quiet one costs so little that many are needed to see it.
_QUIET: Final = 60
_CHATTY: Final = 20
_WINDOW_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 1.0
#: Less than this is not told apart from nothing.
_LEAST_MS: Final = 0.1
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
        client_ms: the same of who sends the calls; of agents, with their jobs, as of items that come one by one.
        items: how many there were.
    """

    clients: int
    slots: int
    rate: float
    server_ms: float
    database_ms: float
    client_ms: float
    items: int


@dataclass(frozen=True)
class Arrivals:
    """Items that come one by one, at random times, to agents with free slots.

    Attributes:
        rate: items a second.
        server_ms: CPU time of the API processes for an item, its making included.
        database_ms: the same of PostgreSQL.
        client_ms: the same of agents and jobs: all else on a machine that does nothing else.
        median_ms: from an item's making to its start.
        p90_ms: the same of nine in ten items, at most.
        items: how many there were.
    """

    rate: float
    server_ms: float
    database_ms: float
    client_ms: float
    median_ms: float
    p90_ms: float
    items: int


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
        lists: dict[str, Any] = {"calls": Backlog, "agents": Backlog, "arrivals": Arrivals}
        return cls(**{**data, **{name: [kind(**one) for one in data[name]] for name, kind in lists.items()}})


def read_costs() -> dict[str, Costs]:
    """Return what is kept, by the name of the set-up."""
    return {name: Costs.of(data) for name, data in json.loads(FILE.read_text()).items()}


def measure(place: Place, part: str) -> list[Figure]:
    """Measure one set-up, and keep what it costs.

    Args:
        place: where to.
        part: `sqlite`, `postgres`, or `postgres-2`: with two API processes, the calls alone.
    """
    name, processes = _SET_UPS[part]
    if part == "sqlite":
        assert place.server.pid is not None
        costs = _of(place, Site([place.server.api_url], [place.server.pid]), part)
    else:
        with postgres_site(place, processes) as site:
            costs = _of(place, site, part) if processes == 1 else _of_calls(place, site, part)
    if not place.quick:
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.write_text(json.dumps(kept | {name: asdict(costs)}, indent=1) + "\n")
    return [*_figures(name, costs)]


def _of_calls(place: Place, site: Site, name: str) -> Costs:
    return Costs(date.today().isoformat(), len(site.apis), [_calls(place, site, name, *one) for one in _CALLS[1:]])


def _of(place: Place, site: Site, name: str) -> Costs:
    seconds = 0.3 if place.quick else _WINDOW_SECONDS
    rest = _told("at rest", _Crew(site, "").spent(seconds))[0]
    calls = [_calls(place, site, name, *one) for one in _CALLS[: 1 if place.quick else None]]
    agents, spec = place.few(AGENTS), _spec(place, site)
    count = place.at_a_time(_ITEMS, agents * SLOTS)
    load = agents_load(place, site, f"{name}-agents", spec, count, agents=agents)
    _told("agents", load)
    with _crew(place, site, f"{name}-items", agents) as crew:
        idle = _told("beside idle agents", crew.spent(seconds))
        arrivals = [_arrivals(crew, spec, rate, seconds, idle) for rate in _RATES]
        job, many, few = _job(place, site), place.few(_QUIET), place.few(_CHATTY)
        ended = crew.count(*TERMINAL)
        quiet = _beside_jobs(crew, job, many, ["quiet", f"{3.3 * seconds + 10:.0f}"], seconds)
        chatty = _beside_jobs(crew, job, few, ["chatty", f"{1.3 * seconds + 7:.0f}"], seconds)
        crew.until(ended + many + few, *TERMINAL)
    return Costs(
        date=date.today().isoformat(),
        processes=1,
        calls=calls,
        agents=[Backlog(agents, SLOTS, load.rate, load.server_ms, load.database_ms, arrivals[0].client_ms, count)],
        add_ms=_add_ms(site, f"{name}-added", spec, place.rounds(_ADDED)),
        rest_ms=rest,
        idle_agent_ms=(load.idle_server_ms - rest) / agents,
        quiet_job_ms=max(_LEAST_MS, (quiet - idle[0]) / many),
        chatty_job_ms=(chatty - quiet) / few,
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


def _calls(place: Place, site: Site, name: str, clients: int, slots: int) -> Backlog:
    queue, count = f"{name}-calls-{clients}-{slots}", place.at_a_time(_ITEMS, clients * slots)
    load = bare_load(place, site, queue, _spec(place, site), count, clients=clients, slots=slots)
    found = Backlog(clients, slots, load.rate, load.server_ms, load.database_ms, load.agents_ms, count)
    return _told("the calls alone", found)


@contextmanager
def _crew(place: Place, site: Site, queue: str, count: int) -> Iterator[_Crew]:
    made = site.apis[0].create_run_queue(queue, "local-process")
    with ExitStack() as stack:
        for number in range(count):
            agent = running_agent(place, queue, max_jobs=_QUIET, name=f"bench-{number}", api_url=site.api_urls[0])
            stack.enter_context(agent)
        crew = _Crew(site, queue)
        while len(crew.api.call(lambda session: session.server.list_workers(queue))) < count:
            time.sleep(_LOOK_SECONDS)
        yield crew
    made.delete()


@dataclass(frozen=True)
class _Crew:
    """Agents on a queue of one server, with slots for all jobs."""

    site: Site
    queue: str

    @property
    def api(self) -> Api:
        return self.site.apis[0]

    def cpu(self) -> list[float]:
        """Return the CPU time that server, database, and all else but this process have used so far, in ms."""
        server, database = self.site.cpu()
        return [server, database, machine_cpu_ms() - server - database - time.process_time() * 1000]

    def spent(self, seconds: float) -> list[float]:
        """Return what they use now, a second."""
        before, begun = self.cpu(), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begun
        return [(now - then) / took for now, then in zip(self.cpu(), before, strict=True)]

    def count(self, *states: StateType) -> int:
        """Return how many items are in states of these types."""
        return self.api.call(lambda session: session.server.count_items(pool=self.queue, state_types=states))

    def until(self, count: int, *states: StateType) -> None:
        """Wait until so many items are in states of these types."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (found := self.count(*states)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{found} items of {self.queue!r}, not {count}, in {_PATIENCE_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)


def _arrivals(crew: _Crew, spec: Mapping[str, Any], rate: float, seconds: float, idle: Sequence[float]) -> Arrivals:
    """Let items come at random times, the same ones in each run; what is used at rest does not count."""
    chance, count, ended = random.Random(1), max(2, round(rate * seconds)), crew.count(*TERMINAL)
    pauses = [chance.expovariate(rate) for _ in range(count)]
    before, begun = crew.cpu(), time.monotonic()
    ids = crew.api.call(partial(_add_in_time, crew, parse_spec(spec), pauses))
    crew.until(ended + count, *TERMINAL)
    took = time.monotonic() - begun
    server, database, clients = (
        (now - then - rest * took) / count for now, then, rest in zip(crew.cpu(), before, idle, strict=True)
    )
    items = [item for item in crew.api.read_items(queue=crew.queue, limit=None) if str(item.id) in ids]
    waits = [_ms(item.start_time - item.created) for item in items if item.start_time and item.created]
    found = Arrivals(
        count / sum(pauses), server, database, max(0.0, clients), median(waits), percentile(waits, 0.9), count
    )
    return _told("arrivals", found)


async def _add_in_time(crew: _Crew, spec: LaunchSpec, pauses: Sequence[float], session: Session) -> set[str]:
    """Add an item after each pause, whether or not the one before has been made; return their ids."""
    ids = set[str]()

    async def add() -> None:
        ids.update(run.id for run in await add_items(crew.api, session, [spec], crew.queue))

    async with anyio.create_task_group() as group:
        for pause in pauses:
            await anyio.sleep(pause)
            group.start_soon(add)
    return ids


def _ms(duration: timedelta) -> float:
    return duration.total_seconds() * 1000


def _beside_jobs(crew: _Crew, job: str, count: int, args: Sequence[str], seconds: float) -> float:
    """Start so many jobs; return the API processes' CPU time a second beside them and those before, in ms."""
    running = crew.count(StateType.RUNNING)
    launch_add_many([{"job": job, "overrides": {"args": [*args]}}] * count, crew.queue, api=crew.api)
    crew.until(running + count, StateType.RUNNING)
    time.sleep(seconds / 3)  # What their start brings with it is over.
    return _told("beside jobs", crew.spent(seconds))[0]


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
