"""Four agents, as processes of their own, on one queue of 200 instant items: each item runs exactly once."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.support.live import Site
from tests.support.prefect_server import server_on_sqlite

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

ITEMS = 200
AGENTS = 4
#: 40 s on a quiet machine of two cores. Now and then a Prefect server on SQLite stands still for the 60 s of its lock
#: timeout, when several agents write: its event loop waits for a connection that waits for the lock of another request.
DEADLINE_SECONDS = 420.0
#: The services of the server that write beside the agents make it stand still more often.
QUIET = {
    f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
    for service in ("EVENT_PERSISTER", "FOREMAN", "LATE_RUNS", "TASK_RUN_RECORDER", "TRIGGERS")
}
#: One write to a file opened for appending: lines of several processes never mix.
COUNT_ITSELF = 'echo "$LAUNCH_RUN_ID" >> "$COUNT_FILE"\n'


def run_all_once(server: PrefectServerProcess, folder: Path, name: str) -> None:
    count = folder / "count"
    site = Site(server.api_url, folder, name, config={"env": {"COUNT_FILE": str(count)}})
    site.job(COUNT_ITSELF)
    runs = site.add(*({"run_id": f"{site.name}-{number}"} for number in range(ITEMS)))
    agents = [site.agent_process(f"box-{number}", "--until-empty", jobs=2) for number in range(AGENTS)]
    started = time.monotonic()
    try:
        while any(agent.running for agent in agents):
            assert time.monotonic() - started < DEADLINE_SECONDS, [agent.tail()[-500:] for agent in agents]
            time.sleep(0.2)
    finally:
        for agent in agents:
            agent.stop()

    executions = Counter(count.read_text().split())
    assert executions == Counter(run.run_id for run in runs)
    items = site.api.items(queue=name, limit=None)
    assert {item.id for item in items} == {run.id for run in runs}
    ends = Counter((run.item.state_type, run.item.run_count) for run in items)
    assert ends == {(StateType.COMPLETED, 1): ITEMS}


@pytest.mark.timeout(600)
def test_each_of_200_items_runs_once_on_sqlite(tmp_path: Path, unique: str) -> None:
    server = server_on_sqlite(tmp_path / "server", QUIET)
    server.start()
    try:
        run_all_once(server, tmp_path, unique)
    finally:
        server.stop()


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_each_of_200_items_runs_once_on_postgresql(
    postgres_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    run_all_once(postgres_prefect_server, tmp_path, unique)
