"""Four agents, as processes of their own, on one queue of instant items: each item runs exactly once.

On PostgreSQL half of them are at a second API process, which knows nothing of the first one's events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.support.agent_thread import running
from tests.support.live import Site, until

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

#: Enough for the agents to claim against each other: without a guard, 200 items ran 692 times.
FEW = 20
MANY = 200
AGENTS = 4
#: For a hang: 200 items take 40 s on a quiet machine of two cores.
DEADLINE_SECONDS = 420.0
#: One write to a file opened for appending: lines of several processes never mix.
COUNT_ITSELF = 'echo "$LAUNCH_RUN_ID" >> "$COUNT_FILE"\n'


def run_all_once(servers: Sequence[PrefectServerProcess], folder: Path, name: str, count: int) -> None:
    starts = folder / "starts"
    site = Site(servers[0].api_url, folder, name, config={"env": {"COUNT_FILE": str(starts)}})
    site.job(COUNT_ITSELF)
    runs = site.add(*({"run_id": f"{site.name}-{number}"} for number in range(count)))
    agents = [
        site.by(server.api_url).agent_process(f"box-{number}", "--until-empty", jobs=2)
        for number, server in zip(range(AGENTS), cycle(servers), strict=False)
    ]
    started = time.monotonic()
    try:
        while any(agent.running for agent in agents):
            assert time.monotonic() - started < DEADLINE_SECONDS, [agent.tail()[-500:] for agent in agents]
            time.sleep(0.2)
    finally:
        for agent in agents:
            agent.stop()

    executions = Counter(starts.read_text().split())
    assert executions == Counter(run.run_id for run in runs)
    items = site.api.items(queue=name, limit=None)
    assert {item.id for item in items} == {run.id for run in runs}
    ends = Counter((run.item.state_type, run.item.run_count) for run in items)
    assert ends == {(StateType.COMPLETED, 1): count}


items = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])


@items
@pytest.mark.timeout(600)
def test_each_item_of_four_agents_runs_once_on_sqlite(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, count: int
) -> None:
    run_all_once([prefect_server], tmp_path, unique, count)


@pytest.fixture(scope="module")
def second_api_process(_postgres_server: PrefectServerProcess, session_folder: Path) -> Iterator[PrefectServerProcess]:
    """Another API process on the database of the run's server on PostgreSQL."""
    from tests.support.prefect_server import PrefectServerProcess

    server = PrefectServerProcess(session_folder / "server-second", database_url=_postgres_server.database_url)
    server.start()
    yield server
    server.stop()


@items
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_each_item_of_four_agents_runs_once_on_two_api_processes_and_postgresql(
    postgres_prefect_server: PrefectServerProcess,
    second_api_process: PrefectServerProcess,
    tmp_path: Path,
    unique: str,
    count: int,
) -> None:
    run_all_once([postgres_prefect_server, second_api_process], tmp_path, unique, count)


@pytest.mark.postgres
def test_agent_takes_and_stops_what_another_api_process_was_asked_for(
    postgres_prefect_server: PrefectServerProcess, second_api_process: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(postgres_prefect_server.api_url, tmp_path, unique)
    site.job("exec sleep 300")
    with running(site.by(second_api_process.api_url).agent(poll_seconds=0.5)):
        (run,) = site.add()
        until(lambda: run.item.state_type is StateType.RUNNING)
        run.cancel()
        until(lambda: run.item.state_type is StateType.CANCELLED)
    assert "process group gone" in run.message
