"""Metrics of runs in a cluster: their marked lines come with the log, and a stopped run keeps what it has reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import ItemState
from prefect_launch.inputs.metrics import MARK
from prefect_launch.server.metrics import read_metrics
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from tests.support.bench import eventually
from tests.support.cluster_bench import ClusterBench, registered_runner


def line(step: int, loss: float) -> bytes:
    """Return what `log_metrics(step=step, loss=loss)` writes."""
    return f'{MARK}{{"step": {step}, "loss": {loss}}}\n'.encode()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterBench]:
    with registered_runner(tmp_path, monkeypatch):
        yield ClusterBench(tmp_path / "home")


async def metrics_of(bench: ClusterBench, item: Item) -> Metrics:
    """Return the metrics of an item, as a sweep reads them."""
    return (await read_metrics(bench.api.server, [item.id])).get(item.id, Metrics())


async def test_metrics_of_a_run_in_a_cluster_are_taken_from_its_log_and_not_shown_in_it(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(log=(b"begins\n", line(0, 2.0), line(1, 0.5)), late_log=(b"done\n",))
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Completed")
    assert (await metrics_of(bench, item)).value("loss") == 0.5
    assert await bench.log(item) == ["begins", "done"]


async def test_trial_in_a_cluster_that_is_pruned_by_its_metric_is_stopped_there_and_keeps_it(
    bench: ClusterBench,
) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600, log=(line(0, 2.0), line(1, 1.5)))
    (item,) = await bench.add()
    async with bench.running():
        await eventually(lambda: metrics_of(bench, item), lambda metrics: metrics.value("loss") == 1.5)
        assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        await bench.until(item, "Cancelled")
    assert bench.cluster.jobs == {}
    assert (await metrics_of(bench, item)).value("loss") == 1.5
