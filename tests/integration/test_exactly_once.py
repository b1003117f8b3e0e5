"""Four agents, as processes of their own, on one queue of instant items: each item runs exactly once."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.support.live import Site

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


def run_all_once(server: PrefectServerProcess, folder: Path, name: str, count: int) -> None:
    starts = folder / "starts"
    site = Site(server.api_url, folder, name, config={"env": {"COUNT_FILE": str(starts)}})
    site.job(COUNT_ITSELF)
    runs = site.add(*({"run_id": f"{site.name}-{number}"} for number in range(count)))
    agents = [site.agent_process(f"box-{number}", "--until-empty", jobs=2) for number in range(AGENTS)]
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
    run_all_once(prefect_server, tmp_path, unique, count)


@items
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_each_item_of_four_agents_runs_once_on_postgresql(
    postgres_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, count: int
) -> None:
    run_all_once(postgres_prefect_server, tmp_path, unique, count)
