"""Instant items through one agent and through two, on a server on SQLite, beside the server alone.

A server on SQLite is the narrow place: two agents get no more out of it than one, and must not get less, for all that
they poll, claim and lose to each other. The floor is the calls that an agent makes for such an item, with no job
between, from as many processes, each with a queue of its own. The server has a core of its own, for both: agents and
jobs take no time of it.
"""

from __future__ import annotations

from benchmarks.agent_load import SLOTS, Compared, Site, in_turns
from benchmarks.bench_throughput import instant_job
from benchmarks.cores import on_cores_of_their_own
from benchmarks.figures import Figure, at_least_times
from benchmarks.place import Place

#: In each of two turns.
_ITEMS = 200
_CALLS = "the same calls, no job"


def measure(place: Place) -> list[Figure]:
    """Measure one agent, then two."""
    pid = place.server.pid
    assert pid is not None
    site, spec, numbers = Site([place.server.api_url], [pid]), {"job": instant_job(place)}, (1, 2)
    count = place.at_a_time(_ITEMS, max(numbers) * SLOTS)
    with on_cores_of_their_own(site.pids, 1):
        one, two = in_turns(place, site, "several", spec, count, numbers)
    against_one = two.load.rate / one.load.rate
    return [
        *figures_of(one, "SQLite"),
        *figures_of(two, "SQLite"),
        Figure("2 agents against one, SQLite", against_one, "×", 1.0, "one agent", at_least_times(1.0, 1.0)),
    ]


def figures_of(found: Compared, where: str) -> list[Figure]:
    """Return what so many agents came to, and what an item cost."""
    load, floor = found.load, found.floor
    name = f"{load.agents} agents, {where}"
    return [
        Figure(name, load.rate, "items/s", floor.rate, _CALLS, at_least_times(floor.rate, 0.9)),
        Figure(f"{name}: server's CPU", load.server_ms, "ms/item", floor.server_ms, _CALLS),
        Figure(f"{name}: database's CPU", load.database_ms, "ms/item", floor.database_ms, _CALLS),
        Figure(f"{name}: agents' CPU", load.agents_ms, "ms/item", floor.agents_ms, _CALLS),
        Figure(f"{name}: cores in use", load.pace.cores, "", floor.pace.cores, _CALLS),
        Figure(f"{name}: polls", load.polls, "/item", None, ""),
        Figure(f"{name}: claims lost", load.lost_claims, "/item", None, ""),
        Figure(f"{name}: asked again (503)", load.busy, "/item", None, ""),
        Figure(f"{name}, idle: requests", sum(load.idle.values()), "/min", None, ""),
        Figure(f"{name}, idle: server's CPU", load.idle_server_ms, "ms/s", None, ""),
        Figure(f"{name}, idle: polls for one new item", load.woken, "", None, ""),
    ]
