"""Clocks that are set while a job runs: its time is told right, and never as less than nothing."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from prefect_launch.agent.item.hooks import seconds_left
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.process import supervisor
from tests.support.bench import Bench

NOW = datetime.now(timezone.utc)


@pytest.mark.parametrize("jump_seconds", [-3600.0, 3600.0])
def test_time_of_a_process_does_not_depend_on_who_sets_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_seconds: float
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    set_clock = time.time() + jump_seconds
    monkeypatch.setattr(time, "time", lambda: set_clock)
    supervisor.finish({"exit_code": 0, "started_at": begun[0]}, begun)
    told = json.loads((tmp_path / supervisor.EXIT).read_text())
    assert 0 <= told["ended_at"] - told["started_at"] < 5


def test_run_that_ended_before_it_started_by_its_engines_clock_took_no_time() -> None:
    end = ExitStatus(exit_code=0, started_at=NOW, ended_at=NOW - timedelta(hours=1))
    assert end.duration_seconds == 0.0


async def test_run_that_has_started_in_the_future_has_its_whole_time_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING)
    found = await bench.read(item.id)
    assert found.state is not None
    assert found.state.type is StateType.RUNNING
    ahead = found.state.model_copy(update={"timestamp": NOW + timedelta(hours=1)})
    assert seconds_left(found.model_copy(update={"state": ahead}), 60.0) == 60.0
