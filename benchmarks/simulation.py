"""Discrete-event simulation of items on a Prefect server: what waits for what, when only an item's cost is known.

An item is a chain of requests. Each takes its turn in an API process, which does one thing at a time, and then the
database's. A client's writes go one at a time, as in `prefect_launch.server.http`. Where a machine has too few cores
for all of this, it waits for one as well.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import simpy

from benchmarks.figures import steady_rate
from prefect_launch.agent.polling.events import SECOND_POLL_SECONDS

Process = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Cost:
    """What something takes, in seconds.

    Attributes:
        api: CPU time of an API process.
        database: CPU time of a database in processes of its own.
        client: CPU time of who asks.
        pause: what passes besides, on no core.
    """

    api: float
    database: float = 0.0
    client: float = 0.0
    pause: float = 0.0

    def part(self, share: float) -> Cost:
        """Return a share of it."""
        return Cost(self.api * share, self.database * share, self.client * share, self.pause * share)


#: Requests as shares of what an item costs; "Requests of an item" in `docs/performance.md` has them. Poll, claim.
TO_START: Final = (0.31, 0.22)
#: Running, the record of its run, its end.
TO_END: Final = (0.18, 0.03, 0.26)


@dataclass(frozen=True)
class SetUp:
    """A Prefect server.

    Attributes:
        processes: API processes.
        cores: of the machine, which API processes, database and clients share; `None`: nothing waits for a core.
    """

    processes: int = 1
    cores: int | None = None


class _Client:
    def __init__(self, env: simpy.Environment, process: simpy.Resource) -> None:
        self.process = process
        self.writing = simpy.Resource(env)


class _Site:
    """A server while it is simulated, with its clients, which take turns at the API processes."""

    def __init__(self, set_up: SetUp, clients: int) -> None:
        self.env, self.chance = simpy.Environment(), random.Random(1)
        self._cores = simpy.Resource(self.env, set_up.cores) if set_up.cores else None
        processes = [simpy.Resource(self.env) for _ in range(set_up.processes)]
        self.clients = [_Client(self.env, processes[number % len(processes)]) for number in range(clients)]

    def chain(self, client: _Client, cost: Cost, shares: Iterable[float]) -> Process:
        """Send an item's requests, one after another; a client has one of them on its way at a time."""
        for share in shares:
            part = cost.part(share)
            yield self.env.timeout(part.pause / 2)
            with client.writing.request() as turn:
                yield turn
                yield from self.ask(client, part)

    def ask(self, client: _Client, cost: Cost) -> Process:
        """Send one request."""
        yield from self._compute(cost.client)
        with client.process.request() as turn:
            yield turn
            yield from self._compute(cost.api)
        yield from self._compute(cost.database)
        yield self.env.timeout(cost.pause / 2)

    def _compute(self, seconds: float) -> Process:
        """Use a core, for a random time around this one."""
        if not seconds:
            return
        with ExitStack() as stack:
            if self._cores is not None:
                yield stack.enter_context(self._cores.request())
            yield self.env.timeout(self.chance.expovariate(1 / seconds))


def backlog_rate(set_up: SetUp, cost: Cost, *, clients: int, slots: int, items: int = 1000) -> float:
    """Return how many items a second end that all wait, as `benchmarks.figures.steady_rate` has it.

    Args:
        set_up: the server.
        cost: of an item.
        clients: programs that work on items.
        slots: items at a time, of each.
        items: that wait.
    """
    site, ends, waiting = _Site(set_up, clients), list[float](), iter(range(items))

    def work(client: _Client) -> Process:
        for _ in waiting:
            yield from site.chain(client, cost, (*TO_START, *TO_END))
            ends.append(site.env.now)

    for client in site.clients:
        for _ in range(slots):
            site.env.process(work(client))
    site.env.run()
    return steady_rate(ends, clients * slots)


def dispatch_waits(
    set_up: SetUp,
    cost: Cost,
    *,
    add: Cost,
    others: Cost,
    rate: float,
    agents: int,
    items: int = 400,
) -> list[float]:
    """Return how long items wait for their start, ascending, when they come at random times to agents with free slots.

    Args:
        set_up: the server.
        cost: of an item, from the poll to its end.
        add: of the item's making, which ends before it waits.
        others: of what the agents ask that do not get the item, when they have not heard of its claim in time.
        rate: items a second.
        agents: how many; each item goes to one of them.
        items: that come.
    """
    site, waits = _Site(set_up, agents), list[float]()

    def item() -> Process:
        client = site.chance.choice(site.clients)
        yield from site.ask(client, add)
        added = site.env.now
        for other in site.clients:
            if other is not client:
                site.env.process(look(other))
        yield from site.chain(client, cost, TO_START)
        waits.append(site.env.now - added)
        yield from site.chain(client, cost, TO_END)

    def look(client: _Client) -> Process:
        yield site.env.timeout(SECOND_POLL_SECONDS)
        each = others.part(1 / (agents - 1))
        polls = max(1, round(each.api / (cost.api * TO_START[0])))
        for _ in range(polls):
            yield from site.ask(client, each.part(1 / polls))

    def arrivals() -> Process:
        times = random.Random(1)  # The same at each rate, but for the rate.
        for _ in range(items):
            yield site.env.timeout(times.expovariate(rate))
            site.env.process(item())

    site.env.process(arrivals())
    site.env.run()
    return sorted(waits)
