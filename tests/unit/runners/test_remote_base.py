"""The base of runners of clusters: what a cluster may do wrong, and what the runner makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote import base
from prefect_launch.runners.remote.base import RemoteJob
from prefect_launch.testing import InMemoryCluster, InMemoryRemoteRunner, Script


def plan_in(folder: Path) -> RunPlan:
    item = str(uuid4())
    (folder / item).mkdir()
    labels = {Labels.ITEM: item, Labels.CLAIM: str(uuid4())}
    return RunPlan(item_id=item, run_id=item[:8], run_dir=folder / item, command=("train",), labels=labels)


async def started(runner: InMemoryRemoteRunner, plan: RunPlan) -> str:
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle


async def test_stop_that_cannot_be_proved_says_so_and_where_the_job_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_STOP_MARGIN_SECONDS", 0.2)
    cluster = InMemoryCluster(lambda plan: Script(seconds=60), is_deaf=True)
    runner = InMemoryRemoteRunner(tmp_path, cluster)
    handle = await started(runner, plan_in(tmp_path))
    with pytest.raises(InfrastructureError, match=r"was told to end, and 0\.3 s later it is still running"):
        await runner.stop(handle, 0.0)
    cluster.is_deaf = False
    await runner.stop(handle, 0.0)


async def test_job_that_some_polls_do_not_show_is_not_gone(tmp_path: Path) -> None:
    class Lagging(InMemoryRemoteRunner):
        lag_seconds = 20.0
        polls = 0

        async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
            self.polls += 1
            return {} if self.polls % 4 else await super().poll(handles)

    plan = plan_in(tmp_path)
    runner = Lagging(tmp_path, InMemoryCluster(lambda plan: Script(seconds=0.3, exit_code=3)))
    assert (await runner.watch(await started(runner, plan), plan)).exit_code == 3


async def test_job_that_somebody_deletes_is_reported_as_such_and_not_as_a_stop(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plan = InMemoryRemoteRunner(tmp_path, cluster), plan_in(tmp_path)
    handle = await started(runner, plan)
    watching = asyncio.create_task(runner.watch(handle, plan))
    await asyncio.sleep(0.2)
    cluster.lose(plan.name)
    end = await asyncio.wait_for(watching, 10)
    assert (end.exit_code, end.stopped) == (None, False)
    assert end.describe() == "somebody else removed it from in-memory-cluster, and its exit code with it"


async def test_job_of_another_item_that_has_the_name_is_left_alone(tmp_path: Path) -> None:
    cluster = InMemoryCluster(lambda plan: Script(seconds=60))
    runner, plan = InMemoryRemoteRunner(tmp_path, cluster), plan_in(tmp_path)
    foreign = plan.model_copy(update={"labels": {Labels.ITEM: "another"}})
    await started(runner, foreign)
    with pytest.raises(InfrastructureError, match="is not of this item"):
        await runner.create(plan)
    assert len(cluster.started) == len(cluster.jobs) == 1


async def test_end_of_a_log_that_cannot_be_read_is_reported_and_the_job_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LOG_END_SECONDS", 0.2)
    runner, plan = (
        InMemoryRemoteRunner(tmp_path, InMemoryCluster(lambda plan: Script(log=(b"one\n",)))),
        plan_in(tmp_path),
    )
    plan.log_path.mkdir()
    end = await runner.watch(await started(runner, plan), plan)
    assert (end.exit_code, end.log_complete) == (0, False)
    assert "the log could not be copied" in end.warnings[0]
