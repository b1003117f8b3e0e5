"""100 process items through two agents, beside one agent, and beside the server alone.

The server is the narrow place: two agents get no more out of it than one, and must not get less, for all that they
poll, claim and lose to each other. The floor is the calls that an agent makes for such an item, with no job between.
"""

from __future__ import annotations

from benchmarks.bench_throughput import PROCESS_SLOTS, agents_rate, bare_rate, instant_job
from benchmarks.figures import Figure, at_least_times
from benchmarks.place import Place

_ITEMS = 100


def measure(place: Place) -> list[Figure]:
    """Measure one agent, then two."""
    specs = [{"job": instant_job(place)}] * place.rounds(_ITEMS)
    floor = bare_rate(place, "agents-none", specs)
    one = agents_rate(place, "agents-one", "local-process", specs, PROCESS_SLOTS)
    two = agents_rate(place, "agents-two", "local-process", specs, PROCESS_SLOTS, agents=2)
    name = "the same calls, no job"
    return [
        Figure(f"{len(specs)} items, one agent", one, "items/s", floor, name, at_least_times(floor, 0.8)),
        Figure(f"{len(specs)} items, two agents", two, "items/s", floor, name, at_least_times(floor, 0.8)),
        Figure(f"{len(specs)} items, two agents against one", two, "items/s", one, "one agent"),
    ]
