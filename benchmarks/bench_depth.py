"""What calls cost beside few and many waiting items: time, CPU time of server and database, requests and bytes.

A queue is made deep in the database itself (`benchmarks.deep_queue`), on SQLite, and on PostgreSQL where that is there.
A call that looks through all items shows at once: its requests and bytes grow with the depth.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import fmean, median
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.cpu import cpu_ms
from benchmarks.deep_queue import fill
from benchmarks.figures import Figure, at_most_times
from benchmarks.place import Place
from benchmarks.requests import counted
from prefect_launch.agent.polling.author_gate import AuthorGate
from prefect_launch.agent.polling.candidates import Candidates
from prefect_launch.agent.polling.predecessor_gate import PredecessorGate
from prefect_launch.agent.polling.queue_poller import QueuePoller
from prefect_launch.agent.recovery.unlistable import UnlistableItems
from prefect_launch.client.api import Api, use_api
from prefect_launch.client.launch_add import launch_add
from prefect_launch.queues.claim import release_claim
from prefect_launch.queues.presence import Holder
from prefect_launch.server.values import Item

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

_QUEUE: Final = "deep"
_EMPTY: Final = "empty"
_AUTHORS: Final = ("ann", "bob", "cleo", "dan")
_ROUNDS: Final = 5
#: How often more a call may cost at the deepest than at the shallowest.
_GROWTH: Final = 2.0
_WIDTH: Final = 150


@dataclass(frozen=True)
class Database:
    """A server with its database.

    Attributes:
        name: of the kind of database.
        url: of the database.
        api: the way to the server.
        cpu: returns the CPU time that server and database have used, ms.
    """

    name: str
    url: str
    api: Api
    cpu: Callable[[], float]


@dataclass(frozen=True)
class Cost:
    """What a call costs at one depth: by the clock, of the server's CPU, in requests, in bytes of the answers."""

    ms: float
    server_ms: float
    requests: float
    kilobytes: float

    def __str__(self) -> str:
        return f"{self.ms:,.0f} ms, {self.server_ms:,.0f} CPU, {self.requests:.0f} req, {self.kilobytes:,.0f} kB"


def measure(place: Place) -> list[Figure]:
    """Measure each call at each depth."""
    figures = _measure_on(place, _on_sqlite(place))
    with _on_postgres(place) as postgres:
        return figures + (_measure_on(place, postgres) if postgres else [])


def _on_sqlite(place: Place) -> Database:
    server = place.server
    return Database(
        "SQLite", f"sqlite+aiosqlite:///{server.home}/prefect.db", place.api, lambda: cpu_ms(server.pid or 0)
    )


@contextmanager
def _on_postgres(place: Place) -> Iterator[Database | None]:
    """Start a server on PostgreSQL; `None` where that is not there, or when it is to be quick."""
    from tests.support.postgres import PostgresMissingError, PostgresServer
    from tests.support.prefect_server import PrefectServerProcess, client_settings

    try:
        postgres = None if place.quick else PostgresServer()
    except PostgresMissingError:
        postgres = None
    if postgres is None:
        yield None
        return
    server = PrefectServerProcess(place.folder / "server-postgres", database_url=postgres.create_database())
    try:
        server.start()
        with client_settings(server):
            yield Database(
                "PostgreSQL",
                server.database_url or "",
                Api(url=server.api_url),
                lambda: cpu_ms(server.pid or 0) + cpu_ms(postgres.pid, children=True),
            )
    finally:
        server.stop()
        postgres.stop()


def _measure_on(place: Place, database: Database) -> list[Figure]:
    for name in (_QUEUE, _EMPTY):
        database.api.create_run_queue(name, "local-container")
    depths = place.depths
    costs: dict[str, list[Cost]] = {}
    with use_api(database.api):
        templates = [_added(author) for author in _AUTHORS]
        filled = 0
        for depth in depths:
            fill(database.url, templates, range(filled, depth))
            filled = depth
            for name, call in _Calls(database.api, _added("dan")).all.items():
                costs.setdefault(name, []).append(_cost(call, database.cpu, place.rounds(_ROUNDS)))
                print(f"  {database.name}, {depth:,} waiting, {name}: {costs[name][-1]}", flush=True)
    _print(database, depths, costs)
    where = f"{database.name}, {depths[-1]:,} waiting"
    floor = f"{depths[0]:,} waiting"
    return [
        Figure(
            f"{name}, {where}: CPU",
            of[-1].server_ms,
            "ms",
            of[0].server_ms,
            floor,
            at_most_times(of[0].server_ms, _GROWTH),
        )
        for name, of in costs.items()
    ]


def _added(author: str) -> UUID:
    return UUID(launch_add(docker_image="busybox:1", queue_name=_QUEUE, author=author).id)


def _cost(call: Callable[[], None], cpu: Callable[[], float], rounds: int) -> Cost:
    call()
    times, requests, received = [], [], []
    before = cpu()
    for _ in range(rounds):
        begin = time.perf_counter()
        with counted() as asked:
            call()
        times.append((time.perf_counter() - begin) * 1000)
        requests.append(asked.count)
        received.append(asked.received / 1000)
    # The kernel counts CPU time in steps of 10 ms.
    return Cost(median(times), (cpu() - before) / rounds, fmean(requests), fmean(received))


def _print(database: Database, depths: Collection[int], costs: Mapping[str, Collection[Cost]]) -> None:
    columns = (f"{depth:,} waiting" for depth in depths)
    table = Table("call", *columns, title=f"Depth of a queue, {database.name}", box=SIMPLE)
    for name, of in costs.items():
        table.add_row(name, *map(str, of))
    Console(width=_WIDTH).print(table)


class _Calls:
    """The calls that are measured, over a connection that is open.

    Args:
        api: the server.
        last: id of the last item in line.
    """

    def __init__(self, api: Api, last: UUID) -> None:
        self._api = api
        self._last = str(last)
        self._holder = Holder(agent="bench", instance=uuid4().hex, host="nowhere")
        # As in an agent, which lives longer than one poll.
        self._pollers: dict[str, Candidates] = {}

    @property
    def all(self) -> dict[str, Callable[[], None]]:
        return {
            "launch_add": self._add,
            "claim": self._on_session(self._claim),
            "item show, with its place": self._command("item", "show", self._last),
            "item list": self._command("item", "list", "-q", _QUEUE),
            "queue show": self._command("queue", "show", _QUEUE),
            "queue list": self._command("queue", "list"),
            "poll of an agent that takes one by one": self._on_session(self._poll_busy),
            "poll of an empty queue": self._on_session(self._poll_empty),
            "poll of an agent that can take nothing": self._on_session(self._refuse),
            "poll with authors in turn": self._on_session(self._turns),
            "agent's look for what no list can show": self._on_session(self._start),
        }

    def _add(self) -> None:
        launch_add(docker_image="busybox:1", queue_name=_QUEUE, author="ann")

    def _command(self, *arguments: str) -> Callable[[], None]:
        from typer.testing import CliRunner

        from prefect_launch.cli.main import app

        def call() -> None:
            done = CliRunner().invoke(app, arguments)
            if done.exit_code:
                raise RuntimeError(f"{' '.join(arguments)}: {done.output}") from done.exception

        return call

    def _on_session(self, function: Callable[[Session], Awaitable[None]]) -> Callable[[], None]:
        return lambda: self._api.call(function)

    async def _claim(self, session: Session) -> None:
        poller = QueuePoller(session, [_QUEUE], self._holder)
        item = await poller.pop(_QUEUE)
        if item is None:
            raise RuntimeError("nothing was claimed")
        await release_claim(session.server, item, "It was measured.", due=item.next_scheduled_start_time)

    async def _poll_empty(self, session: Session) -> None:
        await self._next(Candidates(session.server, _EMPTY), "empty", found=False)

    async def _poll_busy(self, session: Session) -> None:
        if "busy" not in self._pollers:  # Its second poll finds the bound up to which the others ask.
            await self._next(Candidates(session.server, _QUEUE), "busy", found=True)
        await self._next(self._pollers["busy"], "busy", found=True)

    async def _refuse(self, session: Session) -> None:
        await self._next(Candidates(session.server, _QUEUE, _Refusal()), "refuse", found=False)

    async def _turns(self, session: Session) -> None:
        gate = AuthorGate(session.server, _QUEUE, lambda: 2, PredecessorGate(session).startable)
        await self._next(Candidates(session.server, _QUEUE, startable=gate.startable), "turns", found=True)

    async def _next(self, new: Candidates, name: str, *, found: bool) -> None:
        candidates = self._pollers.setdefault(name, new)
        candidates.forget()
        if (await candidates.next(slots=1, skip=()) is not None) is not found:
            raise RuntimeError(f"{name}: {'nothing' if found else 'something'} was found")

    async def _start(self, session: Session) -> None:
        await UnlistableItems(session, [_QUEUE], self._holder).check(datetime.now(timezone.utc))


class _Refusal:
    """An admission that lets nothing start, as of an agent without the devices that all items ask for."""

    async def try_reserve(self, queue: str, item: Item) -> bool:
        return False

    def sync_waiting(self, queue: str, shown: Collection[UUID]) -> None:
        pass

    def release(self, item_id: UUID | str) -> None:
        pass
