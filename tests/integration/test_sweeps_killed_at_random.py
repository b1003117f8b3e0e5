"""A sweep whose scheduler and agents are killed at random moments: each trial is queued once and runs once.

The moments come from a seed that is logged; `LAUNCH_TEST_SEED` sets it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from prefect_launch.core.states import TERMINAL, StateType
from prefect_launch.server.paging import all_items
from prefect_launch.server.values import Item
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.samplers.registry import make_sampler
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_items import SweepTrials, TrialItem, sweep_tag
from prefect_launch.sweeps.trial_reader import read_trials
from tests.support.live import Site, until
from tests.support.processes import ChildProcess

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from tests.support.prefect_server import PrefectServerProcess

TRAIN = """
echo "$LAUNCH_RUN_ID" >> "$COUNT_FILE"
sleep 0.2
echo "{\\"loss\\": 0.$#}" > "$LAUNCH_OUTPUT_DIR/outputs.json"
"""
LOOK_SECONDS = 0.2
AGENTS = 2


class KilledSweep:
    """A random sweep, its scheduler and two agents, each a process that is started again when it was killed.

    Args:
        server: where it runs.
        folder: of the test's own.
        name: of the queue and the sweep.
        trials: the cap.
        workers: trials at a time.
    """

    def __init__(self, server: PrefectServerProcess, folder: Path, name: str, *, trials: int, workers: int) -> None:
        self.trials, self.workers = trials, workers
        self._count_file, self._told, self._name = folder / "count", folder / "scheduler.log", name
        self.site = Site(server.api_url, folder, name, config={"env": {"COUNT_FILE": str(self._count_file)}})
        self._job = self.site.job(TRAIN)
        sweep = {"method": "random", "metric": {"name": "loss"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}}
        (folder / "sweep.json").write_text(json.dumps({**sweep, "name": name, "args": "hyphens"}))
        given = ["-q", name, "-j", self._job, "--num-workers", str(workers), "--run-cap", str(trials)]
        self._processes = {number: self._agent(number) for number in range(AGENTS)}
        self.scheduler = self._sweep(str(folder / "sweep.json"), *given)
        self.kills: Counter[str] = Counter()

    @property
    def started(self) -> int:
        """How many trials have begun to run."""
        return len(self._count_file.read_text().split()) if self._count_file.exists() else 0

    def id(self) -> UUID:
        """The sweep's id, once its scheduler has told it."""
        return UUID(until(lambda: self._told.read_text().partition("sweep: ")[2].partition("\n")[0]))

    def kill_scheduler(self) -> None:
        """Kill the scheduler, as a crash would, and let another one go on, unless the sweep has ended."""
        sweep_id = self.id()
        self.scheduler.kill()
        self.kills["scheduler"] += 1
        if self._read(sweep_id).state_type not in TERMINAL:
            self.scheduler = self._sweep("--resume", str(sweep_id))

    def kill_agent(self, number: int) -> None:
        """Kill an agent with what it works on left alone, and start it again."""
        self._processes[number].kill()
        self.kills["agent"] += 1
        self._processes[number] = self._agent(number)

    def check(self) -> None:
        """The sweep has its trials, each queued once and run once, and has ended once."""
        sweep_id = self.id()
        sweep, items = self._read(sweep_id), self._items(sweep_id)
        assert (sweep.state_type, sweep.message) == (StateType.COMPLETED, f"All {self.trials} trials have ended.")
        read = [TrialItem.of(item) for item in items]
        assert sorted((one.record.number, one.record.attempt) for one in read if one) == [
            (k, 1) for k in range(self.trials)
        ]
        assert Counter(item.state_type for item in items) == {StateType.COMPLETED: self.trials}
        runs = Counter(self._count_file.read_text().split())
        assert set(runs.values()) == {1}
        assert len(runs) == self.trials
        config = config_of(sweep)
        sampler = make_sampler(config, str(sweep_id))
        for one in filter(None, read):
            before = History(tuple(Trial(k, {}) for k in range(one.record.number)))
            assert one.record.params == sampler.ask(before)
        trials = self.site.api.call(lambda session: read_trials(session.server, sweep_id, config))
        self._check_report(sweep_id, trials)
        assert _most_at_a_time(items) <= self.workers

    def _check_report(self, sweep_id: UUID, trials: SweepTrials) -> None:
        assert trials.counts == {TrialState.FINISHED: self.trials}
        keys = [one["key"] for one in self.site.api.call(lambda session: session.server.list_artifacts(sweep_id))]
        assert sorted(keys) == [f"sweep-{sweep_id}", f"sweep-report-{sweep_id}"]
        states = self.site.api.call(lambda session: session.server.read_states(sweep_id))
        assert sum(state.type in TERMINAL for state in states) == 1

    def stop(self) -> None:
        """End all processes."""
        for process in (self.scheduler, *self._processes.values()):
            process.kill()

    def _read(self, sweep_id: UUID) -> Item:
        return self.site.api.call(lambda session: read_sweep(session, sweep_id))

    def _items(self, sweep_id: UUID) -> list[Item]:
        async def read(session: Session) -> list[Item]:
            return [item async for item in all_items(session.server, tags=[sweep_tag(sweep_id)])]

        return self.site.api.call(read)

    def _agent(self, number: int) -> ChildProcess:
        return self.site.agent_process(f"box-{number}", jobs=self.workers // AGENTS, home=f"home-{number}")

    def _sweep(self, *arguments: str) -> ChildProcess:
        return self.site.process("sweep", "run", *arguments, log=self._told)


def _most_at_a_time(items: list[Item]) -> int:
    """The most items that waited or ran at a time; the next one is made after the end of one before is kept."""
    changes = []
    for item in items:
        assert item.created is not None
        assert item.end_time is not None
        changes += [(item.created, 1), (item.end_time, -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def killed_at_random(
    server: PrefectServerProcess, folder: Path, name: str, *, trials: int, workers: int, kills: int, seconds: float
) -> None:
    """Run a sweep whose scheduler and agents are killed in turn, at random numbers of trials that have begun."""
    seed = int(os.environ.get("LAUNCH_TEST_SEED", time.time_ns() % 100_000))
    logging.getLogger(__name__).warning("seed %d", seed)
    chance = random.Random(seed)
    marks = sorted(chance.sample(range(1, trials), kills))
    sweep = KilledSweep(server, folder, name, trials=trials, workers=workers)
    try:
        deadline = time.monotonic() + seconds
        while sweep.scheduler.running or marks:
            assert time.monotonic() < deadline, sweep.scheduler.tail()
            if marks and sweep.started >= marks[0]:
                time.sleep(chance.uniform(0, LOOK_SECONDS))
                marks.pop(0)
                if len(marks) % 2 == 0:
                    sweep.kill_scheduler()
                else:
                    sweep.kill_agent(chance.randrange(AGENTS))
            time.sleep(LOOK_SECONDS)
        assert sum(sweep.kills.values()) == kills
        sweep.check()
    finally:
        sweep.stop()


def test_each_trial_of_a_sweep_whose_scheduler_and_agents_are_killed_is_queued_and_runs_once(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    killed_at_random(prefect_server, tmp_path, unique, trials=16, workers=4, kills=3, seconds=400)


@pytest.mark.soak
@pytest.mark.postgres
@pytest.mark.timeout(1200)
def test_soak_of_200_trials_on_20_workers_whose_scheduler_and_agents_are_killed_at_random(
    postgres_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    killed_at_random(postgres_prefect_server, tmp_path, unique, trials=200, workers=20, kills=24, seconds=1100)
