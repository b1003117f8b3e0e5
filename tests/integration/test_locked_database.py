"""A SQLite database that somebody else keeps locked: the server's 503s are waited out, whatever is asked of it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch import launch_add
from prefect_launch.client.api import use_api
from prefect_launch.queues.agent_status import cancel_drain, drain_scheduled_runs, read_statuses
from tests.support.agent_thread import running
from tests.support.live import Site, until
from tests.support.relay import relay_to

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.prefect_server import PrefectServerProcess

HELD_SECONDS = 3.0
#: Long enough that a request of the server which has read meanwhile must not write any more ("database is locked").
TURN_SECONDS = 0.1
#: Between two turns the server gets to write.
PAUSE_SECONDS = 0.2


@contextmanager
def locked(database: Path, *, seconds: float) -> Iterator[None]:
    """Lock a database, again and again for this long each, for as long as the block lasts."""
    over = threading.Event()
    first = threading.Event()

    def work() -> None:
        with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS somebody_else (at REAL)")
            while not over.is_set():
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO somebody_else VALUES (?)", (time.time(),))
                first.set()
                over.wait(seconds)
                connection.execute("COMMIT")
                over.wait(PAUSE_SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    first.wait(60)
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def site(own_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    """A queue on a server of the test's own."""
    site = Site(own_prefect_server.api_url, tmp_path, unique)
    site.job("echo hello")
    return site


def add_one(site: Site) -> QueuedRun:
    """Put an item on the queue, as a user does."""
    with use_api(site.api):
        return launch_add(job=site.name, queue_name=site.name)


def test_launch_add_waits_out_a_database_that_is_locked_for_three_seconds(
    site: Site, own_prefect_server: PrefectServerProcess
) -> None:
    added: list[QueuedRun] = []
    adding = threading.Thread(target=lambda: added.append(add_one(site)))
    with locked(own_prefect_server.home / "prefect.db", seconds=60):
        adding.start()
        time.sleep(HELD_SECONDS)
        assert added == []
    adding.join(30)
    assert [item.id for item in site.api.items(queue=site.name, limit=None)] == [added[0].id]


@pytest.mark.timeout(240)
def test_all_that_users_and_agents_ask_gets_through_between_the_locks_of_another(
    site: Site, own_prefect_server: PrefectServerProcess
) -> None:
    with relay_to(own_prefect_server.port) as relay:
        far = site.by(relay.api_url)
        with locked(own_prefect_server.home / "prefect.db", seconds=TURN_SECONDS):
            cancelled = add_one(far)
            assert cancelled.cancel() == "Cancelled"
            runs = [add_one(far), *far.add(*[{}] * 3)]
            far.api.call(lambda session: drain_scheduled_runs(session.server, "somebody"))
            with running(far.agent(poll_seconds=1, max_jobs=2)):
                until(lambda: far.api.call(lambda session: read_statuses(session.server)), 60)
                for run in runs:
                    run.wait_until_finished(timeout=120)
            assert far.api.call(lambda session: cancel_drain(session.server, "somebody"))
    assert relay.refused, "the server was never too busy: this tests nothing"
    for run in runs:
        states = [state for state in site.states(run) if state != "Building"]
        assert states == ["Queued", "Pending", "Running", "Completed"]
        assert site.log(run) == "hello"
    assert site.states(cancelled) == ["Queued", "Cancelled", "Cancelled"]  # by the server, then with its reason
    assert len(site.api.items(queue=site.name, limit=None)) == len(runs) + 1
