"""Runs as rows: filters, order, and what a row holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefect_launch import create_job, launch_add, runs_table
from prefect_launch.cli.main import app
from prefect_launch.client.item_fields import duration_of
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.client.run_filter import Condition, RunFilter, parse_moment
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi
from tests.support.ended_runs import end, queues

Runs = dict[str, QueuedRun]
Command = Callable[..., Result]

api = pytest.fixture(queues)


@pytest.fixture
def command(api: InMemoryApi) -> Command:
    def run(*arguments: str, columns: int = 80) -> Result:
        return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})

    return run


def add(name: str, queue: str = "gpu", **inputs: Any) -> QueuedRun:
    return launch_add(
        docker_image="busybox:1", config={"overrides": {"run_config": inputs}}, queue_name=queue, name=name
    )


@pytest.fixture
def three(api: InMemoryApi, tmp_path: Path) -> Runs:
    runs = {name: add(name, lr=lr, model={"depth": 2}) for name, lr in (("slow", 0.1), ("good", 0.5), ("waits", 0.9))}
    end(api, runs["slow"], tmp_path / "slow", {"accuracy": 0.8, "note": "so-so"}, loss=2.0)
    end(api, runs["good"], tmp_path / "good", {"accuracy": 0.95}, loss=0.5)
    return runs


def names(**wanted: Any) -> list[str]:
    return [row["name"] for row in runs_table(**wanted)]


def test_row_holds_inputs_results_and_last_metrics_by_their_names(three: Runs) -> None:
    row = next(row for row in runs_table() if row["name"] == "slow")

    assert row["id"] == three["slow"].id
    assert (row["state"], row["queue"], row["attempts"]) == ("completed", "gpu", 1)
    assert (row["inputs.lr"], row["inputs.model.depth"]) == (0.1, 2)
    assert (row["outputs.accuracy"], row["outputs.note"], row["metrics.loss"]) == (0.8, "so-so", 2.0)
    assert row["duration_seconds"] >= 0
    assert row["waited_seconds"] >= 0


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("outputs.accuracy > 0.9", ["good"]),
        ("outputs.accuracy<=0.8", ["slow"]),
        ("metrics.loss >= 0.5", ["good", "slow"]),
        ("inputs.lr != 0.5", ["waits", "slow"]),
        ("outputs.note = so-so", ["slow"]),
        ("name == good", ["good"]),
        ("state == queued", ["waits"]),
        ("created > 1h", ["waits", "good", "slow"]),
        ("outputs.note > 3", []),
        ("outputs.note > m", ["slow"]),
        ("outputs.accuracy > high", []),
        (["outputs.accuracy > 0.1", "inputs.lr < 0.2"], ["slow"]),
        ("age < 1h", ["waits", "good", "slow"]),
        ("took < 1min", ["good", "slow"]),
        ("waited < 1h30m", ["good", "slow"]),
        ("prio == medium", ["waits", "good", "slow"]),
        ("priority < medium", []),
    ],
)
def test_condition_chooses_runs(three: Runs, where: Any, found: list[str]) -> None:
    assert sorted(names(where=where)) == sorted(found)


def test_order_puts_runs_without_a_value_last(three: Runs) -> None:
    assert names(sort="-outputs.accuracy") == ["good", "slow", "waits"]
    assert names(sort="outputs.accuracy") == ["slow", "good", "waits"]
    assert names(sort="-outputs.accuracy", limit=1) == ["good"]


def test_order_is_by_the_headings_of_a_list_too(three: Runs) -> None:
    assert names(sort="age") == ["waits", "good", "slow"]
    assert names(sort="-age") == ["slow", "good", "waits"]
    assert names(sort="-took")[-1] == "waits"


@pytest.mark.parametrize(
    ("text", "said"), [("took > high", "Invalid duration 'high'"), ("prio = urgent", "Invalid priority")]
)
def test_value_that_a_column_cannot_have_is_refused(text: str, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        Condition.parse(text)


def test_filter_by_the_queue_the_state_and_the_time(three: Runs) -> None:
    add("elsewhere", queue="other")

    assert names(queue="other") == ["elsewhere"]
    assert names(queue="gpu", states=["Queued"]) == ["waits"]
    assert names(since=datetime.now(timezone.utc) + timedelta(hours=1)) == []
    assert len(names(since="1h")) == 4


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"where": "outputs.acuracy > 0.9"}, r"Did you mean 'outputs.accuracy'\?"),
        ({"sort": "-metrics.los"}, r"Did you mean 'metrics.loss'\?"),
        ({"where": "naem == good"}, r"Did you mean 'name'\?"),
        ({"states": ["complted"]}, r"Did you mean 'completed'\?"),
        ({"queue": "gpuu"}, r"Did you mean 'gpu'\?"),
        ({"job": "nothing"}, "nothing"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(three: Runs, wanted: Any, said: str) -> None:
    with pytest.raises(NotFoundError, match=said):
        runs_table(**wanted)


@pytest.mark.parametrize("text", ["accuracy", "outputs.accuracy >", "> 0.9", "outputs > 3", "", "metrics.loss >> 3"])
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match=r"such as 'outputs.accuracy > 0.9'"):
        Condition.parse(text)


def test_group_is_no_order() -> None:
    with pytest.raises(SpecError, match=r"name one of its columns, such as outputs.NAME"):
        RunFilter(sort="outputs")


@pytest.mark.parametrize("text", ["yesterday", "-3h", ""])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match="such as 90min or 7d"):
        parse_moment(text)


def test_short_list_asks_the_server_for_no_more_than_it_shows(
    three: Runs, api: InMemoryApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    list_items = type(api.server).list_items

    async def counted(server: Any, *, limit: int = 200, **wanted: Any) -> Any:
        asked.append(limit)
        return await list_items(server, limit=limit, **wanted)

    monkeypatch.setattr(type(api.server), "list_items", counted)

    assert names(limit=2) == ["waits", "good"]
    assert asked == [2]


def test_metrics_that_a_condition_has_read_are_not_read_again(three: Runs, api: InMemoryApi) -> None:
    asked = list[str]()

    async def note(method: str) -> None:
        asked.append(method)

    api.server.before_call = note

    assert names(where="metrics.loss < 1") == ["good"]
    assert asked.count("read_artifacts") == 1


def test_duration_leaves_out_the_time_between_attempts(three: Runs) -> None:
    now = datetime.now(timezone.utc)
    retried = three["slow"].item.model_copy(update={"start_time": now - timedelta(hours=2), "total_run_time": 3.0})

    assert duration_of(retried) == 3.0
    running = State.of(ItemState.RUNNING).model_copy(update={"timestamp": now - timedelta(seconds=60)})
    again = retried.model_copy(update={"state": running, "state_type": running.type, "end_time": None})
    assert duration_of(again) == pytest.approx(63.0, abs=5)


def test_job_means_all_its_versions_and_with_a_version_that_one(api: InMemoryApi) -> None:
    for number in range(2):
        create_job(f"busybox:{number}", "image", name="train")
        launch_add(job="train", queue_name="gpu", name=f"run-{number}")
    create_job("busybox:1", "image", name="train-more")
    launch_add(job="train-more", queue_name="gpu", name="another")

    assert sorted(names(job="train")) == ["run-0", "run-1"]
    assert names(job="train:v0") == ["run-0"]
    assert names(job="train:latest") == ["run-1"]


def test_items_of_a_deleted_job_are_listed_by_the_name_that_they_have(api: InMemoryApi) -> None:
    create_job("busybox:1", "image", name="train")
    launch_add(job="train", queue_name="gpu", name="run")
    api.delete_job("train", force=True)

    assert names(job="train") == names(job="train:v0") == ["run"]
    for unknown in ("train:v1", "trian"):
        with pytest.raises(NotFoundError, match="no job"):
            runs_table(job=unknown)


def test_list_shows_the_columns_of_choice(three: Runs, command: Command) -> None:
    shown = command("item", "list", "-C", "name,inputs.lr,outputs,took", "--sort", "-outputs.accuracy").stdout

    head, *rows = shown.splitlines()
    assert head.split() == ["NAME", "lr", "accuracy", "note", "TOOK"]
    assert rows[0].split()[:3] == ["good", "0.5", "0.95"]
    assert rows[1].split()[:4] == ["slow", "0.1", "0.8", "so-so"]


def test_empty_list_says_whether_its_options_leave_items_out(three: Runs, command: Command) -> None:
    assert command("item", "list", "--where", "outputs.accuracy > 1").stdout == "No item matches these options.\n"
    for run in three.values():
        run.delete()
    assert "prefect-launch add" in command("item", "list").stdout


def test_list_for_programs_has_the_chosen_columns_by_their_names(three: Runs, command: Command) -> None:
    found = json.loads(command("item", "list", "-w", "metrics.loss < 1", "-C", "outputs,inputs.lr", "--json").stdout)

    assert [(row["name"], row["outputs.accuracy"], row["inputs.lr"]) for row in found] == [("good", 0.95, 0.5)]


def test_wide_terminal_shows_authors_and_the_inputs_of_one_job(three: Runs, command: Command) -> None:
    launch_add(docker_image="busybox:1", queue_name="gpu", author="ada")

    assert "lr" not in command("item", "list", columns=80).stdout
    assert command("item", "list", columns=160).stdout.splitlines()[0].split()[-3:] == ["AUTHOR", "lr", "model.depth"]


def test_columns_of_one_name_are_told_apart_by_their_groups(three: Runs, command: Command) -> None:
    add("lossy", loss="l1")

    assert command("item", "list", "-C", "inputs.loss,metrics").stdout.split()[:2] == ["inputs.loss", "metrics.loss"]


def test_columns_that_do_not_fit_are_all_shown(three: Runs, command: Command) -> None:
    shown = command("item", "list", "-C", "name,outputs,duration_seconds,waited_seconds,state", columns=30).stdout

    assert [line.split()[0][:4] for line in shown.splitlines()] == ["NAME", "wait", "good", "slow"]
