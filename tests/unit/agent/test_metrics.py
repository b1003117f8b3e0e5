"""Metrics on their way from a job's log to the server: joined, bounded, once, and over the death of an agent."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.agent.item import metrics as module
from prefect_launch.agent.item.failure_report import read_last_lines
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.metrics import MetricsCollector, MetricsReader
from prefect_launch.core.masking import Mask
from prefect_launch.core.metrics import MAX_METRICS, MAX_POINTS, Metrics
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.inputs.metrics import MARK
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.log_streams import Marks
from prefect_launch.server.metrics import METRIC_LABEL, metrics_key, read_metrics
from prefect_launch.spec.metric_pattern import MetricPattern
from prefect_launch.testing import InMemoryServer, Script
from prefect_launch.testing.script import Err
from tests.support.bench import Bench, eventually


def line(step: int, **values: Any) -> bytes:
    return f"{MARK}{json.dumps({'step': step, **values})}\n".encode()


class Run:
    """The folder of a run, and the server that its metrics go to."""

    def __init__(self, folder: Path, **plan: Any) -> None:
        self.server = InMemoryServer()
        self.item_id = uuid4()
        self.plan = RunPlan(item_id=str(self.item_id), run_id="r1", run_dir=folder, **plan)
        self.plan.output_dir.mkdir(exist_ok=True)

    def write(self, *pieces: bytes) -> None:
        with self.plan.log_path.open("ab") as file:
            file.write(b"".join(pieces))

    def collector(self, **options: Any) -> MetricsCollector:
        return MetricsCollector(self.server, self.item_id, self.plan, **options)

    def again(self, **plan: Any) -> None:
        """Begin the next attempt."""
        folder = self.plan.run_dir / "next"
        folder.mkdir()
        update = {"attempt": self.plan.attempt + 1, "run_dir": folder, **plan}
        self.plan = self.plan.model_copy(update=update)

    async def metrics(self) -> Metrics:
        return (await read_metrics(self.server, [self.item_id])).get(self.item_id, Metrics(attempt=0))

    async def until_read(self, name: str, value: float) -> None:
        await eventually(self.metrics, lambda metrics: metrics.value(name) == value)

    async def notes(self) -> list[str]:
        return [record.message for record in await self.server.read_logs(self.item_id)]

    @property
    def writes(self) -> int:
        return self.server.calls["put_artifact"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.01)


def points(metrics: Metrics, name: str = "loss") -> list[tuple[int, float]]:
    return metrics.series[name].points()


# --- what is shown ---


async def test_lines_of_metrics_are_not_in_the_shown_log(run: Run) -> None:
    run.write(b"one\n", line(1, loss=1), b"two\n", *(line(step, loss=1) for step in range(2, 100)), b"three\n")
    shipper = LogShipper(run.server, run.item_id, run.plan.log_path)
    await shipper.finish()

    assert "\n".join(await run.notes()).split("\n") == ["one", "two", "three"]
    assert await shipper.last_lines(2) == ["two", "three"]
    assert await read_last_lines(run.plan.log_path) == ("one", "two", "three")


async def test_log_of_metrics_alone_is_passed_over_while_the_run_goes_on(run: Run) -> None:
    run.write(*(line(step, loss=1) for step in range(100)))
    shipper = LogShipper(run.server, run.item_id, run.plan.log_path)
    shipper.follow()
    position = run.plan.log_path.parent / "log-sent.json"

    async def sent() -> int:
        return int(json.loads(position.read_text())["bytes"]) if position.exists() else 0

    await eventually(sent, lambda seen: seen == run.plan.log_path.stat().st_size)
    await shipper.let_go()
    assert run.server.calls["write_logs"] == 0


async def test_progress_bar_between_metrics_is_one_line_in_its_last_state(run: Run) -> None:
    marks = Marks(str(run.plan.log_path), 0)
    for step in range(30):
        for is_error, piece in ((True, f"\r {step}%".encode()), (False, line(step, loss=step))):
            marks.mark(run.plan.log_path.stat().st_size if run.plan.log_path.exists() else 0, is_error)
            run.write(piece)
    marks.mark(run.plan.log_path.stat().st_size, True)
    run.write(b"\r100%\n")
    marks.close()
    await LogShipper(run.server, run.item_id, run.plan.log_path).finish()
    await run.collector().finish()

    assert await run.notes() == ["100%"]
    assert points(await run.metrics()) == [(step, step) for step in range(30)]


# --- what is collected ---


async def test_metrics_are_on_the_server_while_the_run_goes_on_and_whole_at_its_end(run: Run) -> None:
    collector = run.collector()
    collector.follow()
    run.write(line(0, loss=1.0))
    await run.until_read("loss", 1.0)
    run.write(line(1, loss=0.5), line(2, loss=0.25)[:-1])
    await collector.finish()

    assert points(await run.metrics()) == [(0, 1.0), (1, 0.5), (2, 0.25)]
    [chart] = await run.server.list_artifacts(run.item_id)
    assert "data:image/svg+xml;base64," in chart["data"]
    assert "| `loss` | 0.25 | 2 |" in chart["data"]


async def test_many_lines_are_joined_into_few_writes_of_one_artifact(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(f"{module.__name__}.time", SimpleNamespace(monotonic=lambda: now[0]))
    collector = run.collector()
    await collector._begin()
    for second in range(600):
        run.write(*(line(second * 50 + one, loss=1 / (second + 1)) for one in range(50)))
        now[0] += 1
        await collector._read()
        await collector._write_when_due()
    live = run.writes
    await collector.finish()

    # At most one in 2 s at first, one in 10 s later.
    assert 600 / 10 <= live <= 600 / 5
    assert run.writes <= live + 2
    assert len(run.server._store.artifacts) == 2
    series = (await run.metrics()).series["loss"]
    assert (series.count, series.last) == (30_000, (29_999, 1 / 600))
    assert len(series.points()) <= MAX_POINTS + 3


async def test_agent_that_is_killed_loses_no_step_and_doubles_none(run: Run) -> None:
    run.write(*(line(step, loss=step) for step in range(10)), b"half a li")
    first = run.collector()
    first.follow()
    await run.until_read("loss", 9)
    await first.let_go()
    run.write(b"ne\n", *(line(step, loss=step) for step in range(10, 20)))
    second = run.collector()
    second.follow()
    await run.until_read("loss", 19)
    await second.finish()

    metrics = await run.metrics()
    assert points(metrics) == [(step, step) for step in range(20)]
    assert metrics.series["loss"].count == 20
    assert len(run.server._store.artifacts) == 2


async def test_end_of_a_run_in_the_middle_of_a_look_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, read = threading.Event(), threading.Event(), MetricsReader.read

    def slow_read(self: MetricsReader, *, ended: bool = False) -> None:
        begun.set()
        assert go_on.wait(60)
        read(self, ended=ended)

    monkeypatch.setattr(MetricsReader, "read", slow_read)
    run.write(line(0, loss=1))
    collector = run.collector()
    collector.follow()
    assert await asyncio.to_thread(begun.wait, 60)
    finish = asyncio.create_task(collector.finish())
    await asyncio.sleep(0)
    go_on.set()
    await finish

    assert points(await run.metrics()) == [(0, 1)]


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"position": 3}', '{"position": 1, "matches": 0, "metrics": 3}'])
async def test_state_that_cannot_be_read_lets_the_log_be_read_anew(run: Run, broken: str) -> None:
    run.write(line(0, loss=1), line(1, loss=2))
    (run.plan.run_dir / "metrics-read.json").write_text(broken)
    await run.collector().finish()

    assert points(await run.metrics()) == [(0, 1), (1, 2)]


async def test_server_that_is_away_for_a_while_gets_all_later(run: Run) -> None:
    collector = run.collector()
    collector.follow()
    run.server.down()
    run.write(*(line(step, loss=step) for step in range(5)))

    async def asked() -> int:
        return run.writes

    await eventually(asked, lambda count: count >= 1)
    run.server.up()
    await collector.finish()

    assert points(await run.metrics()) == [(step, step) for step in range(5)]


async def test_next_attempt_goes_on_from_the_step_that_it_begins_at(run: Run) -> None:
    run.write(*(line(step, loss=1) for step in range(10)), line(9, other=1))
    await run.collector().finish()
    run.again()
    run.write(line(6, loss=2), line(7, loss=2))
    await run.collector().finish()

    metrics = await run.metrics()
    assert points(metrics) == [(step, 1) for step in range(6)] + [(6, 2), (7, 2)]
    assert (metrics.attempt, metrics.names) == (2, ["loss"])


# --- what is wrong ---


async def test_lines_that_are_wrong_are_reported_once_and_the_others_count(run: Run) -> None:
    flood = [f"{MARK}not JSON {number}\n".encode() for number in range(10_000)]
    run.write(line(0, loss=1), *flood, MARK.encode() + b"x" * 3_000_000 + b"\n", line(1, loss=2))
    run.write(*(line(2, loss="low") for _ in range(100)))
    await run.collector().finish()

    assert points(await run.metrics()) == [(0, 1), (1, 2)]
    [note] = await run.notes()
    assert "'not JSON 0'" in note
    assert "it is not JSON" in note
    assert "log_metrics()" in note


async def test_note_that_is_under_way_when_the_run_ends_is_written_once(run: Run) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold(method: str) -> None:
        if method == "write_logs":
            begun.set()
            await go_on.wait()

    run.server.after_call = hold
    run.write(MARK.encode() + b"not JSON\n")
    collector = run.collector()
    collector.follow()
    await begun.wait()
    ending = asyncio.ensure_future(collector.finish())
    await asyncio.sleep(0.01)
    go_on.set()
    await ending
    assert len(await run.notes()) == 1


async def test_ten_thousand_names_are_bounded_and_a_name_that_is_too_long_is_reported(run: Run) -> None:
    run.write(*(line(step, **{f"metric-{step}": step}) for step in range(10_000)))
    run.write(line(0, **{"n" * 10_000: 1}), line(0, **{"n" * 101: 1}), line(10_000, **{"metric-0": 7}))
    await run.collector().finish()

    metrics = await run.metrics()
    assert len(metrics.series) == MAX_METRICS
    assert metrics.value("metric-0") == 7
    assert len(json.dumps(metrics.dump())) < 20_000
    notes = await run.notes()
    assert ["more than 50 metrics" in note for note in notes].count(True) == 1
    assert ["longer than 4,096 bytes" in note for note in notes].count(True) == 1
    assert len(notes) == 2


async def test_line_of_a_megabyte_is_reported_and_passed_over(run: Run) -> None:
    run.write(line(0, loss=1), MARK.encode() + b'{"step": 1, "a": ' + b"1" * 5_000_000 + b"}\n", line(1, loss=2))
    await run.collector().finish()

    assert points(await run.metrics()) == [(0, 1), (1, 2)]
    assert ["longer than 4,096 bytes" in note for note in await run.notes()] == [True]


async def test_history_that_is_thinned_is_reported_once(run: Run) -> None:
    collector = run.collector()
    for start in range(0, 20_000, 10_000):
        run.write(*(line(step, loss=1, other=2) for step in range(start, start + 10_000)))
        await collector._begin()
        await collector._read()
    await collector.finish()

    assert ["thinned evenly" in note for note in await run.notes()] == [True]
    assert (await run.metrics()).series["loss"].count == 20_000


async def test_secret_in_a_line_of_metrics_is_told_nowhere(tmp_path: Path) -> None:
    run = Run(tmp_path, mask=Mask(["hunter2-hunter2"]))
    run.write(line(0, loss=1), line(1, **{"hunter2-hunter2": 1}), line(2, loss=2))
    await run.collector().finish()

    assert points(await run.metrics()) == [(0, 1), (2, 2)]
    assert "hunter2" not in json.dumps(run.server._store.artifacts) + "".join(await run.notes())


# --- the pattern ---


async def test_pattern_finds_a_metric_in_the_lines_and_bars_of_any_stream(tmp_path: Path) -> None:
    run = Run(tmp_path, metric=MetricPattern(name="loss", pattern="loss: ([0-9.e+-]+|nan)"))
    run.write(b"epoch 0 loss: 0.5\nno\n", line(7, other=1), b"\r10% loss: 2.5e-1\r20% loss: nan\nloss: 0.1")
    collector = run.collector()
    await collector._begin()
    await collector._read()
    run.write(b"25\n")
    await collector.finish()

    metrics = await run.metrics()
    found = points(metrics)
    assert [found[0], found[1], found[3]] == [(0, 0.5), (1, 0.25), (3, 0.125)]
    assert math.isnan(found[2][1])
    assert metrics.value("other") == 1


async def test_pattern_goes_on_counting_after_the_death_of_an_agent(tmp_path: Path) -> None:
    run = Run(tmp_path, metric=MetricPattern(name="loss", pattern=r"loss=(\S+)"))
    run.write(b"loss=3\nloss=2\n")
    first = run.collector()
    first.follow()
    await run.until_read("loss", 2)
    await first.let_go()
    run.write(b"loss=1\n")
    await run.collector().finish()

    assert points(await run.metrics()) == [(0, 3), (1, 2), (2, 1)]


async def test_pattern_that_finds_no_number_is_reported_once(tmp_path: Path) -> None:
    run = Run(tmp_path, metric=MetricPattern(name="loss", pattern="loss: (.*)"))
    run.write(b"loss: low\n" * 100, b"loss: 0.5\n")
    await run.collector().finish()

    assert points(await run.metrics()) == [(0, 0.5)]
    assert ["'low', which is no number" in note for note in await run.notes()] == [True]


async def test_pattern_that_takes_for_ever_is_given_up_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEARCH_SECONDS", 0.05)
    run = Run(tmp_path, metric=MetricPattern(name="loss", pattern=r"^(?:(?:a|a|aa)+)+(b)$"))
    run.write((b"a" * 5_000 + b"\n") * 1_000, line(1, other=1))
    await asyncio.wait_for(run.collector().finish(), 60)

    assert (await run.metrics()).value("other") == 1
    assert ["is not searched for again" in note for note in await run.notes()] == [True]


# --- results at the end ---


async def test_outputs_and_the_summary_of_an_offline_wandb_run_count_at_the_end(run: Run) -> None:
    summary = run.plan.output_dir / "wandb/offline-run-20260101_000000-r1/files/wandb-summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text('{"val_loss": 0.3, "acc": "NaN", "_step": 9, "_runtime": 3.1, "table": {"path": "x"}, "n": 5}')
    (run.plan.output_dir / "outputs.json").write_text('{"val_loss": 0.2, "name": "best", "done": true}')
    await run.collector().finish()

    metrics = await run.metrics()
    assert (metrics.outputs, metrics.value("val_loss"), metrics.value("n")) == ({"val_loss": 0.2}, 0.2, 5)
    assert metrics.names == ["val_loss", "acc", "n"]
    assert await run.server.list_artifacts(run.item_id) == []


async def test_summary_that_wandb_prints_counts_where_it_has_left_no_file(run: Run) -> None:
    run.write(
        "wandb: Run history:\nwandb: loss ▁█\nwandb: \nwandb: Run summary:\nwandb:  loss 0.5\nwandb: \n".encode(),
        b"wandb: other 7\n",
        b"\x1b[1;34mwandb\x1b[0m: Run summary:\nwandb:    loss 0.25\nan other line\nwandb:  my acc 1e-05\n",
        b"wandb: val/loss nan\nwandb:    name x\nwandb:    flag True\nwandb:      +9 ...\nwandb: \nwandb: late 3\n",
    )
    await run.collector().finish()

    metrics = await run.metrics()
    assert metrics.names == ["loss", "my acc", "val/loss"]
    assert (metrics.wandb["loss"], metrics.wandb["my acc"]) == (0.25, 1e-05)
    assert math.isnan(metrics.wandb["val/loss"])


async def test_outputs_alone_are_kept_as_metrics_of_a_trial_and_cost_other_runs_nothing(run: Run) -> None:
    (run.plan.output_dir / "outputs.json").write_text('{"val_loss": 0.2}')
    run.write(b"a line\n")
    await run.collector().finish()
    assert run.server.calls.total() == 0
    await run.collector(keeps_results=True).finish()

    assert (await run.metrics()).value("val_loss") == 0.2


async def test_summary_that_is_a_link_or_no_json_is_not_read(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    files = [run.plan.output_dir / f"wandb/offline-run-{name}/files/wandb-summary.json" for name in "ab"]
    for file in files:
        file.parent.mkdir(parents=True)
    files[0].symlink_to(secret)
    files[1].write_text("{")
    await run.collector(keeps_results=True).finish()

    assert not await run.metrics()


def test_reader_of_a_log_that_is_not_there_finds_nothing(run: Run) -> None:
    reader = MetricsReader(run.plan)

    reader.read(ended=True)
    assert not reader.metrics


# --- through the agent ---


async def test_item_shows_its_metrics_and_its_log_does_not(bench: Bench) -> None:
    bench.plays(
        Script(
            log=(b"start\n", line(0, loss=1.0), Err(b"warn\n")),
            late_log=(line(1, loss=0.5), b"end\n"),
            outputs={"outputs.json": b'{"accuracy": 0.9}'},
        )
    )
    [item] = await bench.add()
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.COMPLETED)

    assert (await bench.log(item)).split("\n") == ["start", "warn", "end"]
    metrics = (await read_metrics(bench.server, [item.id]))[item.id]
    assert points(metrics) == [(0, 1.0), (1, 0.5)]
    assert metrics.outputs == {"accuracy": 0.9}
    shown = {one["key"] for one in await bench.server.list_artifacts(item.id)}
    assert f"metrics-chart-{item.id}" in shown
    assert metrics_key(item.id) not in shown


async def test_trial_of_a_sweep_keeps_its_outputs_as_metrics(bench: Bench) -> None:
    bench.plays(Script(outputs={"outputs.json": b'{"accuracy": 0.9}'}))
    sweep = await bench.add_scheduler()
    await bench.move(sweep, ItemState.CLAIMED, ItemState.RUNNING)
    [trial] = await bench.add(sweep_id=str(sweep.id))
    [other] = await bench.add()
    async with bench.running(bench.agent()):
        for item in (trial, other):
            await bench.until(item, StateType.COMPLETED)

    found = await read_metrics(bench.server, [trial.id, other.id])
    assert {item_id: metrics.outputs for item_id, metrics in found.items()} == {trial.id: {"accuracy": 0.9}}


async def test_metric_that_an_item_is_run_for_is_kept_however_many_others_come_first(run: Run) -> None:
    others = {f"other-{number}": number for number in range(MAX_METRICS + 10)}
    run.write(*(line(step, **{name: value}) for step, (name, value) in enumerate(others.items())), line(99, loss=0.5))
    (run.plan.output_dir / "outputs.json").write_text(json.dumps({**others, "final": 0.25}))
    summary = run.plan.output_dir / "wandb/offline-run-1/files"
    summary.mkdir(parents=True)
    (summary / "wandb-summary.json").write_text(json.dumps({**others, "final": 1}))

    for wanted, value in (("loss", 0.5), ("final", 0.25)):
        await run.collector(keeps_results=True, wanted=wanted).finish()
        assert (await run.metrics()).value(wanted) == value
        (run.plan.run_dir / "metrics-read.json").unlink()


async def test_trial_is_judged_by_its_metric_though_it_is_the_last_of_many(bench: Bench) -> None:
    bench.plays(Script(log=(*(line(0, **{f"other-{number}": 1}) for number in range(60)), line(1, loss=0.5))))
    sweep = await bench.add_scheduler()
    await bench.move(sweep, ItemState.CLAIMED, ItemState.RUNNING)
    [trial] = await bench.add(sweep_id=str(sweep.id))
    await bench.server.label_item(trial.id, {METRIC_LABEL: "loss"})
    async with bench.running(bench.agent()):
        await bench.until(trial, StateType.COMPLETED)

    metrics = (await read_metrics(bench.server, [trial.id]))[trial.id]
    assert metrics.value("loss") == 0.5
    assert len(metrics.series) == MAX_METRICS + 1


async def test_metric_that_a_pattern_finds_is_the_items(bench: Bench) -> None:
    bench.plays(Script(log=(b"loss: 0.5\n",), late_log=(b"loss: 0.25\n",)))
    [item] = await bench.add(metric={"name": "loss", "pattern": "loss: ([0-9.]+)"})
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.COMPLETED)

    assert points((await read_metrics(bench.server, [item.id]))[item.id]) == [(0, 0.5), (1, 0.25)]
