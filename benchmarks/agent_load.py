"""Several agents on one queue: the rate at which instant items end, and what each item costs.

The items wait on a paused queue until all agents have started and are idle, so that no start is measured. Then the
queue is resumed, which wakes the agents of the first API process; one more item wakes those of each other. Load by
others makes a rate lower; it hardly touches what an item costs: requests by kind, and the CPU time of server, database
and agents.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from benchmarks.agents import Front, running_agent
from benchmarks.bare_server import BEGIN, READY
from benchmarks.calls import Counted, read_calls
from benchmarks.cpu import cpu_ms
from benchmarks.other_work import CoresUsed, Pace
from benchmarks.place import Place
from prefect_launch.client.api import Api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import TERMINAL
from prefect_launch.queues.presence import read_presences

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from tests.support.processes import ChildProcess

SLOTS: Final = 4
_LOOK_SECONDS: Final = 2.0
_SETTLE_SECONDS: Final = 3.0
_IDLE_SECONDS: Final = 10.0
_TURNS: Final = 2
_START_SECONDS: Final = 120.0
_WAKES: Final = 5


@dataclass(frozen=True)
class Site:
    """A Prefect server, of one or more API processes.

    Attributes:
        api_urls: of its API processes.
        pids: of the same.
        database_pid: of a database that is a process of its own.
    """

    api_urls: Sequence[str]
    pids: Sequence[int]
    database_pid: int | None = None

    @property
    def programs(self) -> list[int]:
        """The process ids of API processes and database."""
        return [*self.pids, *([self.database_pid] if self.database_pid else [])]

    @cached_property
    def apis(self) -> list[Api]:
        """The ways to it."""
        return [Api(url=url) for url in self.api_urls]

    def cpu(self) -> tuple[float, float]:
        """Return the CPU time that server and database have used so far, in ms."""
        database = cpu_ms(self.database_pid, children=True) if self.database_pid else 0.0
        return sum(map(cpu_ms, self.pids)), database


@dataclass(frozen=True)
class Load:
    """What was measured with so many agents.

    Attributes:
        agents: how many, or how many processes send the calls alone.
        pace: items a second, and the cores that all programs took.
        server_ms: CPU time of all API processes for an item; so are the next two, of the database and of all
            agents, or of who sends the calls.
        calls: requests for an item, by kind.
        idle: of all agents while nothing waits: requests by kind, each a minute.
        idle_server_ms: CPU time of the server a second meanwhile.
        woken: polls for one item that is added to idle agents.
    """

    agents: int
    pace: Pace
    server_ms: float
    database_ms: float = 0.0
    agents_ms: float = 0.0
    calls: Mapping[str, float] = field(default_factory=dict)
    idle: Mapping[str, float] = field(default_factory=dict)
    idle_server_ms: float = 0.0
    woken: float = 0.0

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.pace.rate

    @property
    def polls(self) -> float:
        """Polls for an item."""
        return self.calls.get("poll", 0.0) + self.calls.get("poll without an item", 0.0)

    @property
    def lost_claims(self) -> float:
        """Claims for an item that the server refused."""
        return self.calls.get("set state, refused", 0.0)

    @property
    def busy(self) -> float:
        """Requests for an item that the server was too busy for."""
        return sum(count for kind, count in self.calls.items() if kind.startswith("busy"))


def bare_load(
    place: Place, site: Site, name: str, spec: Mapping[str, Any], count: int, *, clients: int, slots: int = SLOTS
) -> Load:
    """Measure the calls alone; each client is a process with a queue of its own, so none takes another's items."""
    api, each = site.apis[0], count // clients
    queues = [f"{name}-{number}" for number in range(clients)]
    made = [api.create_run_queue(queue, "local-process") for queue in queues]
    for queue in queues:
        launch_add_many([spec] * each, queue, api=api)
    with ExitStack() as stack:
        senders = [
            stack.enter_context(_counted(place, site, queue, number, slots=slots, front="calls"))
            for number, queue in enumerate(queues)
        ]
        for sender in senders:
            sender.process.wait_until(sender.says_ready, _START_SECONDS)

        def work() -> None:
            for sender in senders:
                os.kill(sender.process.pid, BEGIN)
            for queue in queues:
                _until(lambda queue=queue: _ended(api, queue) >= each, 60.0 + count)  # type: ignore[misc]

        with CoresUsed() as used:
            spent = _during(site, senders, work)
    ends = [_ends(site, queue, each) for queue in queues]
    first_done = min(map(max, ends))  # From then on fewer ask than are measured.
    pace = used.pace([end for of in ends for end in of if end <= first_done], slots * clients)
    for one in made:
        one.delete()
    return Load(clients, pace, **spent.per_item(each * clients))


@dataclass(frozen=True)
class Compared:
    """Agents, and the calls alone from as many processes.

    Attributes:
        load: of the agents.
        floor: of the calls alone, just before the agents and just after.
    """

    load: Load
    floor: Load

    @property
    def share(self) -> float:
        """How much of the floor's rate the agents come to."""
        return self.load.rate / self.floor.rate


def in_turns(
    place: Place, site: Site, name: str, spec: Mapping[str, Any], count: int, numbers: Sequence[int]
) -> list[Compared]:
    """Measure numbers of agents, each between its floors, in turns; return the means, in the order of the numbers.

    The server slows down as its database grows. In turns, up and down the numbers, that touches all alike.
    """
    found: dict[int, list[Compared]] = {number: [] for number in numbers}
    for turn in range(1 if place.quick else _TURNS):
        for agents in numbers if turn % 2 == 0 else reversed(numbers):
            found[agents].append(_between_floors(place, site, f"{name}-{turn}", spec, count, agents))
    return [Compared(_mean([one.load for one in many]), _mean([one.floor for one in many])) for many in found.values()]


def _between_floors(place: Place, site: Site, name: str, spec: Mapping[str, Any], count: int, agents: int) -> Compared:
    """Measure agents, and the floor before and after them, with half as many items each.

    A machine that others use is at times 1.4 times as fast as at others, for a minute or some.
    """

    def floor(when: str) -> Load:
        some = count if place.quick else count // 2
        return bare_load(place, site, f"{name}-{when}-{agents}", spec, some, clients=agents)

    before = floor("before")
    load = agents_load(place, site, f"{name}-agents-{agents}", spec, count, agents=agents)
    return Compared(load, _mean([before, floor("after")]))


def _mean(loads: Sequence[Load]) -> Load:
    """Return the mean of several measurements of the same."""
    return Load(
        loads[0].agents,
        Pace(mean(one.rate for one in loads), mean(one.pace.cores for one in loads)),
        server_ms=mean(one.server_ms for one in loads),
        database_ms=mean(one.database_ms for one in loads),
        agents_ms=mean(one.agents_ms for one in loads),
        calls=_mean_of_kinds([one.calls for one in loads]),
        idle=_mean_of_kinds([one.idle for one in loads]),
        idle_server_ms=mean(one.idle_server_ms for one in loads),
        woken=mean(one.woken for one in loads),
    )


def _mean_of_kinds(many: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {kind: mean(one.get(kind, 0.0) for one in many) for kind in sorted(set().union(*many))}


def agents_load(place: Place, site: Site, queue: str, spec: Mapping[str, Any], count: int, *, agents: int) -> Load:
    """Measure agents, which take turns at the API processes."""
    api = site.apis[0]
    whole, wakes = count + len(site.apis), place.few(_WAKES)
    made = api.create_run_queue(queue, "local-process")
    launch_add_many([spec] * count, queue, api=api)
    _pause(api, queue, paused=True)
    with ExitStack() as stack:
        counters = [stack.enter_context(_counted(place, site, queue, number)) for number in range(agents)]
        _until(lambda: _present(api, queue) == agents, _START_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        seconds = 1.0 if place.quick else _IDLE_SECONDS
        idle = _during(site, counters, lambda: time.sleep(seconds))

        def work() -> None:
            _pause(api, queue, paused=False)
            for one in site.apis:  # The event of an item reaches the agents of its API process.
                launch_add_many([spec], queue, api=one)
            _until(lambda: _ended(api, queue) >= whole, 60.0 + count)

        with CoresUsed() as used:
            busy = _during(site, counters, work)
        time.sleep(_SETTLE_SECONDS)

        def wake() -> None:
            for _ in range(wakes):
                launch_add_many([spec], queue, api=api)
                time.sleep(1.0)

        woken = _during(site, counters, wake)
        _until(lambda: _ended(api, queue) >= whole + wakes, 60.0)  # Agents that stop would put back one in work.
    pace = used.pace(_ends(site, queue, whole)[:whole], SLOTS * agents)
    made.delete()
    return Load(
        agents,
        pace,
        **busy.per_item(whole),
        idle={kind: found * 60 / seconds for kind, found in idle.calls.items()},
        idle_server_ms=idle.server_ms / seconds,
        woken=(woken.calls["poll"] + woken.calls["poll without an item"]) / wakes,
    )


@dataclass(frozen=True)
class _Spent:
    server_ms: float
    database_ms: float
    agents_ms: float
    calls: Counter[str]

    def per_item(self, count: int) -> dict[str, Any]:
        """Return what a load says of an item."""
        return {
            "server_ms": self.server_ms / count,
            "database_ms": self.database_ms / count,
            "agents_ms": self.agents_ms / count,
            "calls": {kind: found / count for kind, found in self.calls.items()},
        }


@dataclass(frozen=True)
class _CountedProcess:
    process: ChildProcess
    file: Path

    def says_ready(self) -> bool:
        """Whether a process that only sends calls waits for its signal."""
        return READY in self.process.log.read_text()

    def take(self) -> tuple[float, Counter[str]]:
        """Return the CPU time and the requests since the last time."""
        self.file.unlink(missing_ok=True)
        os.kill(self.process.pid, Counted.SIGNAL)
        _until(self.file.exists, 30.0)
        return read_calls(self.file)


@contextmanager
def _counted(
    place: Place, site: Site, queue: str, number: int, *, slots: int = SLOTS, front: Front = "loop"
) -> Iterator[_CountedProcess]:
    file = place.folder / f"calls-{queue}-{number}.json"
    url = site.api_urls[number % len(site.api_urls)]
    with running_agent(
        place, queue, max_jobs=slots, front=front, name=f"bench-{number}", api_url=url, counts=file
    ) as process:
        yield _CountedProcess(process, file)


def _during(site: Site, agents: Sequence[_CountedProcess], work: Callable[[], None]) -> _Spent:
    for agent in agents:
        agent.take()
    before = site.cpu()
    work()
    server, database = (now - then for now, then in zip(site.cpu(), before, strict=True))
    taken = [agent.take() for agent in agents]
    calls: Counter[str] = Counter()
    for _, counts in taken:
        calls += counts
    return _Spent(server, database, sum(cpu for cpu, _ in taken), calls)


def _ends(site: Site, queue: str, count: int) -> list[float]:
    items = site.apis[0].read_items(queue=queue, limit=None)
    ends = sorted(item.end_time.timestamp() for item in items if item.end_time is not None)
    if len(ends) < count:
        raise RuntimeError(f"{len(ends)} of {count} items of {queue!r} ended")
    again = [f"{item.name} ({item.state_name}, run {item.run_count} times)" for item in items if item.run_count != 1]
    if again:
        raise RuntimeError(f"{len(again)} items of {queue!r} did not run once, such as {again[0]}")
    return ends


def _ended(api: Api, queue: str) -> int:
    return api.call(lambda session: session.server.count_items(pool=queue, state_types=TERMINAL))


def _present(api: Api, queue: str) -> int:
    async def online(session: Session) -> int:
        lives = await read_presences(session.server)
        workers = {worker.name for worker in await session.server.list_workers(queue)}
        return sum(queue in life.queues and life.holder.agent in workers for life in lives)

    return api.call(online)


def _pause(api: Api, queue: str, *, paused: bool) -> None:
    api.call(lambda session: session.server.update_pool(queue, is_paused=paused))


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so in {seconds:g} s")
        time.sleep(_LOOK_SECONDS if seconds > _START_SECONDS else 0.05)
