"""What runs use: sampled beside them, bounded, on the item's page and in its end, and never in their way."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.devices.gpus import GpuLoad
from prefect_launch.agent.item import usage as module
from prefect_launch.agent.item.usage import UsageCollector
from prefect_launch.agent.reporting import status
from prefect_launch.core.metrics import MAX_POINTS, Metrics
from prefect_launch.core.pace import Pace
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.usage import mean, present_in_words, totals_in_words, usage_markdown
from prefect_launch.planning.plan import load_plan
from prefect_launch.queues.agent_status import read_statuses, read_usage
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.runners.usage import Usage
from prefect_launch.server.metrics import USAGE, metrics_key, read_metrics
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryGpus, InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, outcome_data
from tests.support.devices import agent_of, wants

MIB = 1024**2
#: A job that holds 3 GiB and keeps half a CPU busy.
BUSY = Script(seconds=60, memory_bytes=3 * 1024 * MIB, cpus=0.5)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "YOUNG_SECONDS", 0.02)
    monkeypatch.setattr(module, "_PACE", Pace(1_000.0))
    monkeypatch.setattr(module, "CHARTED_SECONDS", 0.0)
    monkeypatch.setattr(status, "USAGE_SECONDS", 0.02)
    monkeypatch.setattr(status, "WRITE_SECONDS", 0.02)
    monkeypatch.setattr(status, "_CHECK_SECONDS", 0.02)


async def used(bench: Bench, item: Item) -> Mapping[str, float]:
    return (await read_usage(bench.server)).get(str(item.id), {})


async def history(bench: Bench, item: Item) -> Metrics:
    return (await read_metrics(bench.server, [item.id], USAGE)).get(item.id, Metrics())


async def test_item_tells_what_it_uses_while_it_runs_and_what_it_has_used_at_its_end(bench: Bench) -> None:
    bench.machine.script = lambda plan: BUSY
    (item,) = await bench.add(**wants(memory="8g", cpus=2))
    async with bench.running(bench.agent()):
        present = await eventually(lambda: used(bench, item), lambda seen: seen.get("cpus"))
        bench.machine.finish()
        ended = await bench.until_state(item, ItemState.COMPLETED)

    assert (present["memory"], present["cpus_asked"], present["memory_asked_bytes"]) == (3 * 1024 * MIB, 2, 8 * 1024**3)
    totals = outcome_data(ended)["usage"]
    assert totals["peak_memory_bytes"] == 3 * 1024 * MIB
    assert totals["mean_cpus"] >= 0.5  # Its CPU time begins a little before it is followed.
    assert re.fullmatch(r"3\.0 of 8\.0 GiB of memory at most, [\d.]+ of 2 CPUs on average", totals_in_words(totals))
    kept = await history(bench, item)
    assert kept.outputs == totals
    assert {value for _, value in kept.series["memory"].points()} == {3 * 1024 * MIB}
    chart = await bench.server.read_artifacts([f"usage-chart-{item.id}"])
    assert "data:image/svg+xml" in chart[f"usage-chart-{item.id}"]


async def test_item_that_has_ended_is_not_in_what_its_agent_tells_any_more(bench: Bench) -> None:
    bench.machine.script = lambda plan: BUSY
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await eventually(lambda: used(bench, item), bool)
        bench.machine.finish()
        await bench.until_state(item, ItemState.COMPLETED)
        await eventually(lambda: used(bench, item), lambda seen: not seen)


async def test_gpus_of_an_item_are_measured_and_those_of_others_are_not(bench: Bench) -> None:
    gpus = InMemoryGpus(3)
    gpus.loads = {"0": GpuLoad(80, 1000 * MIB), "1": GpuLoad(40, 500 * MIB), "2": GpuLoad(99, 9000 * MIB)}
    bench.machine.script = lambda plan: BUSY
    (item, plain) = [*await bench.add(**wants(2)), *await bench.add()]
    async with bench.running(agent_of(bench, gpus)):
        present = await eventually(lambda: used(bench, item), lambda seen: seen.get("gpu"))
        without = await eventually(lambda: used(bench, plain), bool)
        bench.machine.finish()
        ended = [await bench.until_state(one, ItemState.COMPLETED) for one in (item, plain)]

    assert (present["gpu"], present["gpu memory"]) == (60, 1500 * MIB)
    assert present_in_words(present).endswith("its GPUs 60 % of the time, 1.5 GiB of GPU memory")
    totals = outcome_data(ended[0])["usage"]
    assert (totals["mean_gpu_percent"], totals["peak_gpu_memory_bytes"]) == (60, 1500 * MIB)
    assert {"gpu 0", "gpu 1", "gpu memory 0", "gpu memory 1"} < (await history(bench, item)).series.keys()
    assert not any("gpu" in name for name in [*without, *outcome_data(ended[1])["usage"]])


async def test_run_is_sampled_by_the_next_agent_into_the_same_history(bench: Bench) -> None:
    bench.machine.script = lambda plan: BUSY
    (item,) = await bench.add(**wants(memory="8g"))
    async with bench.running(bench.agent()):
        await eventually(lambda: used(bench, item), bool)
    (run,) = bench.machine.runs.values()
    plan = load_plan(run.plan.run_dir)
    assert plan is not None

    class Smaller(InMemoryRunner):
        async def usage(self, handle: str) -> Usage | None:
            return Usage(1.0, MIB)

    runner = Smaller(bench.folder, bench.machine)
    seen = list[Mapping[str, float]]()
    next_one = UsageCollector(plan, runner, plan.name, age_seconds=100.0, on_sample=seen.append)
    next_one.follow()
    await eventually(lambda: asyncio.sleep(0, seen), bool)
    await next_one.let_go()
    totals = next_one.totals(ExitStatus(exit_code=0))
    assert (totals["peak_memory_bytes"], totals["memory_asked_bytes"]) == (3 * 1024 * MIB, 8 * 1024 * MIB)
    assert [value for _, value in next_one._history.series["memory"].points()] == [3 * 1024 * MIB, MIB]


async def test_run_that_ended_while_no_agent_was_there_keeps_what_was_sampled(bench: Bench) -> None:
    bench.machine.script = lambda plan: BUSY
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await eventually(lambda: used(bench, item), lambda seen: seen.get("cpus"))
    bench.machine.finish()
    async with bench.running(bench.agent()):
        ended = await bench.until_state(item, ItemState.COMPLETED)

    totals = outcome_data(ended)["usage"]
    assert totals["peak_memory_bytes"] == 3 * 1024 * MIB
    assert totals["mean_cpus"] > 0
    assert (await history(bench, item)).outputs == totals


async def test_short_run_has_its_totals_and_no_chart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHARTED_SECONDS", 60.0)
    bench.machine.script = lambda plan: Script(seconds=0.2, memory_bytes=5 * MIB)
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        ended = await bench.until_state(item, ItemState.COMPLETED)

    assert outcome_data(ended)["usage"]["peak_memory_bytes"] == 5 * MIB
    assert not await bench.server.read_artifacts([metrics_key(item.id, USAGE)])


async def test_run_that_does_not_tell_what_it_uses_has_nothing_invented(bench: Bench) -> None:
    bench.machine.script = lambda plan: Script(seconds=0.1)
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        ended = await bench.until_state(item, ItemState.COMPLETED)

    assert "usage" not in outcome_data(ended)


def agent_with(bench: Bench, runner: type[InMemoryRunner]) -> LaunchAgent:
    settings = {"name": "box", "queues": [QUEUE], "home": bench.folder, "poll_seconds": 0.05}
    return LaunchAgent(bench.api, settings, runners={RESOURCE: runner(bench.folder, bench.machine)})


class Broken(InMemoryRunner):
    """A runner whose samples fail."""

    async def usage(self, handle: str) -> Usage | None:
        raise RuntimeError("no such file")


async def test_sampling_that_fails_is_logged_once_and_harms_no_run(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.machine.script = lambda plan: Script(seconds=0.3)
    agent = agent_with(bench, Broken)
    (item,) = await bench.add()
    with caplog.at_level(logging.WARNING):
        async with bench.running(agent):
            await bench.until_state(item, ItemState.COMPLETED)

    told = [record.getMessage() for record in caplog.records if "not-sampled" in record.getMessage()]
    assert told == [f"{item.id} not-sampled: what it uses is not shown: RuntimeError('no such file')"]


class Hanging(InMemoryRunner):
    """A runner whose samples never come."""

    async def usage(self, handle: str) -> Usage | None:
        await asyncio.Event().wait()
        return None


async def test_sample_that_hangs_keeps_no_run_from_its_end(bench: Bench) -> None:
    bench.machine.script = lambda plan: Script(seconds=0.2)
    agent = agent_with(bench, Hanging)
    (item,) = await bench.add()
    async with bench.running(agent):
        await bench.until(item, StateType.COMPLETED)


async def test_agent_writes_no_more_often_for_what_its_runs_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "USAGE_SECONDS", 3600.0)
    bench.machine.script = lambda plan: BUSY
    items = await bench.add(2)
    async with bench.running(bench.agent(max_jobs=2)):
        for item in items:
            await bench.until(item, StateType.RUNNING)

        async def running() -> int:
            return sum(len(one.running) for one in (await read_statuses(bench.server)).values())

        await eventually(running, lambda count: count == 2)
        before = bench.server.calls["write_variable"]
        await asyncio.sleep(0.5)
        assert bench.server.calls["write_variable"] == before
        bench.machine.finish()


def collector(tmp_path: Path, **options: Any) -> UsageCollector:
    plan = RunPlan(item_id="a", run_id="a", run_dir=tmp_path)
    return UsageCollector(plan, InMemoryRunner(tmp_path), "a", **options)


@pytest.mark.parametrize(("age", "pause"), [(0, 0.02), (11, 5), (1_200, 5), (3_600, 15), (14_400, 60), (1_000_000, 60)])
def test_pace_falls_with_the_age_of_a_run(tmp_path: Path, age: float, pause: float) -> None:
    assert collector(tmp_path, age_seconds=age)._pause == pytest.approx(pause, rel=0.01)


async def test_run_whose_samples_take_long_is_sampled_less_often_the_more_runs_there_are(tmp_path: Path) -> None:
    class Costly(InMemoryRunner):
        async def usage(self, handle: str) -> Usage | None:
            return Usage(1.0, 9_000 * MIB, cost_seconds=0.03)

    plan = RunPlan(item_id="a", run_id="a", run_dir=tmp_path)
    seen = list[Mapping[str, float]]()
    costly = UsageCollector(plan, Costly(tmp_path), "a", age_seconds=11.0, on_sample=seen.append)
    assert costly._pause == 5
    await costly._sample()
    pace = module._PACE
    with pace, pace:
        assert costly._pause == 7.5
        with pace, pace:
            assert costly._pause == 15


def test_history_of_a_run_of_a_month_is_bounded() -> None:
    history, second = Metrics(), 0
    for sample in range(50_000):
        second += 60
        history.add(second, {"cpus": sample % 7, "memory": float(sample)})

    assert all(len(series.kept) <= MAX_POINTS for series in history.series.values())
    assert history.series["memory"].high == (50_000 * 60, 49_999)


def test_peak_is_the_larger_of_what_was_sampled_and_what_the_kernel_has_seen(tmp_path: Path) -> None:
    one = collector(tmp_path)
    one._history.add(1, {"memory": 100.0})

    assert one.totals(ExitStatus(exit_code=0, peak_memory_bytes=70))["peak_memory_bytes"] == 100
    assert one.totals(ExitStatus(exit_code=0, peak_memory_bytes=170))["peak_memory_bytes"] == 170


def test_mean_holds_each_value_since_the_one_before() -> None:
    assert mean([(0, 0.0), (1, 1.0), (10, 3.0)]) == pytest.approx(2.8)
    assert mean([]) == 0.0


def test_page_shows_sizes_in_their_units_and_each_gpu() -> None:
    usage = Metrics(outputs={"peak_memory_bytes": 300 * MIB, "mean_cpus": 1.5})
    for second in range(1, 100):
        usage.add(second, {"cpus": 1.5, "memory": 3.0 * MIB * second, "gpu 0": 80.0, "gpu memory 0": 2048.0 * MIB})

    page = usage_markdown(usage, "r1")

    assert "300.0 MiB of memory at most, 1.5 CPUs on average." in page
    assert "| CPUs | 1.5 | 1.5 | 1.5 |" in page
    assert "| Memory | 150.0 MiB | 297.0 MiB | 297.0 MiB |" in page
    assert "| GPU 0 use, % | 80 | 80 | 80 |" in page
    assert "| GPU 0 memory | 2.0 GiB | 2.0 GiB | 2.0 GiB |" in page
