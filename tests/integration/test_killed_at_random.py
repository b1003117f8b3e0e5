"""Agents that are killed at random moments, and a server that is restarted: every item runs exactly once.

The moments come from a seed that is logged; `LAUNCH_TEST_SEED` sets it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import TERMINAL, StateType
from tests.support.live import Site
from tests.support.prefect_server import PrefectServerProcess

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.processes import ChildProcess

#: One write to a file opened for appending: lines of several processes never mix.
COUNT_ITSELF = 'echo "$LAUNCH_RUN_ID" >> "$COUNT_FILE"; sleep 0.2\n'
LOOK_SECONDS = 0.5
FEW = 25
MANY = 100


class Crowd:
    """A queue of items that count themselves, and agents as processes that are started again when they have ended.

    Args:
        server: where the queue is.
        folder: of the test's own.
        name: of the queue.
        agents: how many.
        jobs: how many items each works on at a time.
    """

    def __init__(self, server: PrefectServerProcess, folder: Path, name: str, *, agents: int, jobs: int) -> None:
        self._count_file = folder / "count"
        self._jobs = jobs
        self.site = Site(server.api_url, folder, name, config={"env": {"COUNT_FILE": str(self._count_file)}})
        self.site.job(COUNT_ITSELF)
        self.runs: list[QueuedRun] = []
        self.agents = {f"box-{number}": self._start(f"box-{number}") for number in range(agents)}
        self.deaths = 0

    def add(self, count: int) -> None:
        """Put items on the queue."""
        self.runs += self.site.add(*({"run_id": f"{self.site.name}-{number}"} for number in range(count)))

    def kill(self, name: str) -> None:
        """Kill an agent, as a crash would, and start it again."""
        self.agents[name].kill()
        self.deaths += 1
        self.agents[name] = self._start(name)

    @property
    def started(self) -> int:
        """How many items have begun to run."""
        return len(self._count_file.read_text().split()) if self._count_file.exists() else 0

    def is_done(self) -> bool:
        """Whether all items have ended."""
        done = self.site.api.call(lambda session: session.server.count_items(pool=self.site.name, state_types=TERMINAL))
        return done == len(self.runs)

    def stop(self) -> None:
        """Stop all agents."""
        for agent in self.agents.values():
            agent.stop()

    def check(self) -> None:
        """Every item has run exactly once, and is completed."""
        assert Counter(self._count_file.read_text().split()) == Counter(run.run_id for run in self.runs)
        items = [run.item for run in self.site.api.items(queue=self.site.name, limit=None)]
        assert {str(item.id) for item in items} == {run.id for run in self.runs}
        ends = Counter((item.state_type, item.run_count) for item in items)
        assert ends == {(StateType.COMPLETED, 1): len(self.runs)}

    def _start(self, name: str) -> ChildProcess:
        return self.site.agent_process(name, jobs=self._jobs)


@contextmanager
def crowd(server: PrefectServerProcess, folder: Path, name: str, *, agents: int, jobs: int) -> Iterator[Crowd]:
    """A crowd whose agents are stopped at the end."""
    made = Crowd(server, folder, name, agents=agents, jobs=jobs)
    try:
        yield made
    finally:
        made.stop()


def watch(made: Crowd, seconds: float, do: Callable[[], None]) -> None:
    """Do something again and again until all items have ended, for so long at most."""
    deadline = time.monotonic() + seconds
    while not made.is_done():
        assert time.monotonic() < deadline, [agent.tail()[-800:] for agent in made.agents.values()]
        do()
        time.sleep(LOOK_SECONDS)


def killed_again_and_again(server: PrefectServerProcess, folder: Path, name: str, count: int) -> None:
    """Run items on two agents, one of which is killed every few seconds, and twice however fast the machine is."""
    seed = int(os.environ.get("LAUNCH_TEST_SEED", time.time_ns() % 100_000))
    logging.getLogger(__name__).warning("seed %d", seed)
    chance = random.Random(seed)
    with crowd(server, folder, name, agents=2, jobs=3) as made:
        made.add(count)
        due = time.monotonic() + chance.uniform(3, 9)
        marks = [int(count * chance.uniform(0.05, 0.3)), int(count * chance.uniform(0.4, 0.7))]

        def kill_when_due() -> None:
            nonlocal due
            is_marked = bool(marks) and made.started >= marks[0]
            if is_marked or time.monotonic() >= due:
                del marks[: int(is_marked)]
                time.sleep(chance.uniform(0, LOOK_SECONDS))
                made.kill("box-0")
                due = time.monotonic() + chance.uniform(3, 9)

        watch(made, 400, kill_when_due)
        assert made.deaths >= 2
    made.check()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_each_item_of_two_agents_of_which_one_is_killed_at_random_runs_once_on_sqlite(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    killed_again_and_again(prefect_server, tmp_path, unique, MANY)


@pytest.mark.postgres
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
@pytest.mark.timeout(600)
def test_each_item_of_two_agents_of_which_one_is_killed_at_random_runs_once_on_postgresql(
    postgres_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, count: int
) -> None:
    killed_again_and_again(postgres_prefect_server, tmp_path, unique, count)


@pytest.mark.soak
@pytest.mark.postgres
@pytest.mark.timeout(900)
def test_soak_of_300_items_on_three_agents_outlives_two_restarts_of_the_server(
    own_postgres_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    server = own_postgres_prefect_server
    restarts = [server.kill, server.stop]  # a crash, then an orderly end
    with crowd(server, tmp_path, unique, agents=3, jobs=4) as made:
        made.add(300)

        def restart_when_due() -> None:
            if restarts and made.started >= 100 * (3 - len(restarts)):
                restarts.pop(0)()
                server.start()

        watch(made, 700, restart_when_due)
        assert not restarts
    made.check()
