"""Instant items through one, two, four and eight agents, on a server on PostgreSQL with one and two API processes.

Two API processes are two whole servers behind one database, which know nothing of each other: an agent hears only of
the events of its own. That each item has ended, and has run once, is checked. The floor is the calls that an agent
makes for such an item, with no job between, from as many processes, each with a queue of its own: the more ask at a
time, the slower a server is. API processes and database have cores of their own, for agents and floor alike, as many as
API processes: agents and jobs take nothing from them. On a machine without a core more than that, all share all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Final

from benchmarks.agent_load import SLOTS, Compared, Site, in_turns
from benchmarks.agents_chart import draw, keep
from benchmarks.bench_agents import figures_of
from benchmarks.bench_throughput import instant_job
from benchmarks.cores import on_cores_of_their_own
from benchmarks.figures import Figure, at_least_times
from benchmarks.place import Place
from tests.support.postgres import PostgresServer
from tests.support.prefect_server import PrefectServerProcess, client_settings

#: In each of two turns.
_ITEMS: Final = 800
#: Numbers of agents, by that of API processes.
_AGENTS: Final = {1: (1, 2, 4, 8), 2: (2, 8)}
_MACHINE: Final = "2 cores, 24 GiB of memory"
#: What a rate may be below that of fewer agents: the same measurement taken twice differs by as much.
_NOISE: Final = 0.03
#: By default the server keeps five connections, and opens and closes one more for each request beyond.
_SETTINGS: Final = {"PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "30"}


def measure(place: Place) -> list[Figure]:
    """Measure one API process, then two."""
    figures: list[Figure] = []
    measured: dict[int, list[Compared]] = {}
    for processes, numbers in _AGENTS.items():
        agents = numbers[: place.few(len(numbers))]
        count = place.at_a_time(_ITEMS, max(agents) * SLOTS)
        with postgres_site(place, processes) as site, on_cores_of_their_own(site.programs, processes):
            spec = {"job": instant_job(place, site.apis[0])}
            found = in_turns(place, site, f"{processes}-apis", spec, count, agents)
        measured[processes] = found
        for each in found:
            figures += figures_of(each, f"PostgreSQL, {processes} API")
        figures += _never_falling(found, f"PostgreSQL, {processes} API")
    if not place.quick:
        keep(_MACHINE, measured)
        draw()
    return figures


def _never_falling(found: Sequence[Compared], where: str) -> Iterator[Figure]:
    """Compare rates, and shares of the floors: a rate falls, too, when the machine gets slower between two of them."""
    for fewer, more in pairwise(found):
        against, goal = f"{fewer.load.agents} agents", at_least_times(fewer.load.rate, 1 - _NOISE)
        name = f"{more.load.agents} agents against {fewer.load.agents}, {where}"
        yield Figure(name, more.load.rate, "items/s", fewer.load.rate, against, goal)
        yield Figure(f"{name}: share of the floor", more.share, "×", fewer.share, against)


@contextmanager
def postgres_site(place: Place, processes: int) -> Iterator[Site]:
    """Have a database and API processes on it; this process's settings lead to the first of them."""
    with ExitStack() as stack:
        postgres = PostgresServer()
        stack.callback(postgres.stop)
        url = postgres.create_database()
        servers = []
        for number in range(processes):
            home = place.folder / f"server-{processes}-{number}"
            server = PrefectServerProcess(home, database_url=url, settings=_SETTINGS)
            server.start()
            stack.callback(server.stop)
            servers.append(server)
        stack.enter_context(client_settings(servers[0]))
        pids = [server.pid for server in servers if server.pid is not None]
        yield Site([server.api_url for server in servers], pids, postgres.pid)
