"""Instant items through one, two, four and eight agents, on a server on PostgreSQL with one and two API processes.

Two API processes are two whole servers behind one database, which know nothing of each other: an agent hears only of
the events of its own. That each item has ended, and has run once, is checked. The floor is the calls that an agent
makes for such an item, with no job between, by as many clients as saturate the server; and the same beside a program
that takes as much of the cores as agents and jobs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Final

from benchmarks.agent_load import Load, Site, agents_load, bare_load, items_of, load_beside
from benchmarks.agents_chart import draw, keep
from benchmarks.bench_agents import figures_of
from benchmarks.bench_throughput import instant_job
from benchmarks.figures import Figure, at_least_times
from benchmarks.place import Place
from tests.support.postgres import PostgresServer
from tests.support.prefect_server import PrefectServerProcess, client_settings

_ITEMS: Final = 300
#: Numbers of agents, by that of API processes.
_AGENTS: Final = {1: (1, 2, 4, 8), 2: (2, 8)}
_MACHINE: Final = "2 cores, 24 GiB of memory"
#: For each API process: two clients always have something for it to do.
_CLIENTS: Final = 2
#: What a rate may be below that of fewer agents: the same measurement taken twice differs by as much.
_NOISE: Final = 0.03
#: By default the server keeps five connections, and opens and closes one more for each request beyond.
_SETTINGS: Final = {"PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "30"}


def measure(place: Place) -> list[Figure]:
    """Measure one API process, then two."""
    figures: list[Figure] = []
    measured: dict[int, list[Load]] = {}
    count = items_of(place, _ITEMS)
    for processes, numbers in _AGENTS.items():
        agents = numbers[: place.few(len(numbers))]
        with postgres_site(place, processes) as site:
            spec, name, clients = {"job": instant_job(place, site.apis[0])}, f"{processes}-apis", _CLIENTS * processes
            floor, loads = bare_load(site, f"{name}-none", spec, count, clients=clients), []
            for number in agents:
                loads.append(load := agents_load(place, site, f"{name}-{number}", spec, count, agents=number))
                beside = load_beside(load, floor, site, f"{name}-beside-{number}", spec, count, clients=clients)
                figures += figures_of(load, floor, beside, f"PostgreSQL, {processes} API")
        measured[processes] = [floor, *loads]
        figures += _never_falling(loads, f"PostgreSQL, {processes} API")
    if not place.quick:
        keep(_MACHINE, measured)
        draw()
    return figures


def _never_falling(loads: Sequence[Load], where: str) -> Iterator[Figure]:
    for fewer, more in pairwise(loads):
        name = f"{more.agents} agents against {fewer.agents}, {where}"
        goal = at_least_times(fewer.rate, 1 - _NOISE)
        yield Figure(name, more.rate, "items/s", fewer.rate, f"{fewer.agents} agents", goal)


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
