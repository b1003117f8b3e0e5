"""Items as the command line names, finds and shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner, Result

from prefect_launch import cli
from prefect_launch.cli.item_logs import LogTail
from prefect_launch.cli.main import app
from prefect_launch.cli.output import at
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.metrics import Metrics
from prefect_launch.core.names import short_id, short_ids
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import local_time
from prefect_launch.errors import InvalidNameError, NotFoundError
from prefect_launch.queues.session import Session
from prefect_launch.server.metrics import write_metrics
from prefect_launch.server.values import ItemDraft, LogRecord, State
from prefect_launch.testing import InMemoryApi

IMAGE = {"docker": {"docker_image": "busybox:1"}}
Command = Callable[..., Result]


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    api.create_run_queue("gpu", "local-container")
    with use_api(api):
        yield api


@pytest.fixture
def command(api: InMemoryApi) -> Command:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})

    return run


def add(api: InMemoryApi, *names: str) -> list[QueuedRun]:
    return launch_add_many([{**IMAGE, "name": name} for name in names], "gpu", api=api)


def test_item_that_waits_says_why_once(api: InMemoryApi, command: Command) -> None:
    (run,) = add(api, "waits")

    lines = command("item", "show", run.id).stdout.partition("TIME")[0].splitlines()

    assert [line.split()[0] for line in lines if "agent is online" in line or "agent was online" in line] == ["why"]


def test_list_that_leaves_items_out_says_so(api: InMemoryApi, command: Command) -> None:
    add(api, *(f"run-{number}" for number in range(51)))

    cut, whole = command("item", "list"), command("item", "list", "--limit", "51")

    assert len(cut.stdout.splitlines()) == 1 + 50
    assert cut.stderr == "There are more than these 50: --limit N shows more.\n"
    assert len(whole.stdout.splitlines()) == 1 + 51
    assert whole.stderr == ""


def propose(api: InMemoryApi, run: QueuedRun, state: State) -> None:
    async def call(session: Session) -> None:
        assert (await session.server.propose(UUID(run.id), state)).accepted

    api.call(call)


def schedule(api: InMemoryApi, run: QueuedRun, moment: datetime) -> None:
    details = {"scheduled_time": moment.isoformat()}
    propose(api, run, State(type=StateType.SCHEDULED, name="Scheduled", state_details=details))


def test_items_made_at_once_are_listed_with_ids_that_the_commands_take(api: InMemoryApi, command: Command) -> None:
    runs = {run.name: run for run in add(api, "first", "second", "third")}

    listed = command("item", "list").stdout

    for name, run in runs.items():
        shown = re.search(rf"^(\S+)\s+{name}\s", listed, re.MULTILINE)
        assert shown
        assert len(shown[1]) == 8
        assert run.id.endswith(shown[1])
        assert json.loads(command("item", "show", shown[1], "--json").stdout)["id"] == run.id


def test_id_that_is_told_when_an_item_is_added_is_the_one_that_is_listed_and_shown(
    api: InMemoryApi, command: Command
) -> None:
    added = command("add", "-d", "busybox:1", "-q", "gpu", "--name", "train").stdout

    told = re.search(r"id:\s+(\S+)\npage: (\S+)\n", added)
    assert told
    assert len(told[1]) == 8
    assert told[2].endswith(told[1])
    assert re.search(rf"^{told[1]}\s+train\s", command("item", "list").stdout, re.MULTILINE)
    shown = command("item", "show", told[1]).stdout
    assert re.search(rf"^id\s+{told[1]}$", shown, re.MULTILINE)
    assert f"train ({told[1]})" in command("item", "cancel", told[1]).stdout


def test_several_items_are_cancelled_at_once_and_one_that_has_ended_is_told_after_them(
    api: InMemoryApi, command: Command
) -> None:
    first, second, third = add(api, "first", "second", "third")
    first.cancel()

    refused = command("item", "cancel", first.id, "second", second.id)

    assert refused.stdout == f"The item second ({short_id(second.id)}) is cancelled.\n"
    assert f"has ended already (first ({short_id(first.id)}): cancelled)" in str(refused.exception)
    assert isinstance(command("item", "cancel", "third", "fourth").exception, NotFoundError)
    assert third.state == "queued"
    assert [one["state"] for one in json.loads(command("item", "cancel", "third", "--json").stdout)] == ["cancelled"]


def test_item_is_found_by_its_name_by_the_start_of_its_id_and_by_its_whole_id(
    api: InMemoryApi, command: Command
) -> None:
    (run,) = add(api, "My Run")

    for given in ("My Run", run.id[:12], run.id, run.id.upper()):
        assert json.loads(command("item", "show", given, "--json").stdout)["id"] == run.id


def test_item_that_is_named_ambiguously_is_refused_with_the_candidates(api: InMemoryApi, command: Command) -> None:
    (first,) = add(api, "train")
    second, third = add(api, "train", short_id(first.id))

    for given, meant in (("train", [first, second]), (third.name, [first, third])):
        refused = command("item", "show", given)
        assert isinstance(refused.exception, InvalidNameError)
        for run in meant:
            assert re.search(rf"{run.id} \({run.name}, queued, made \d s ago\)", str(refused.exception))


@pytest.mark.parametrize("given", ["nobody", "abc", "ffffffff", "00000000-0000-4000-8000-00000000dead"])
def test_item_that_is_not_there_is_told_so(given: str, api: InMemoryApi, command: Command) -> None:
    add(api, "train")

    assert isinstance(command("item", "show", given).exception, NotFoundError)


def test_option_that_is_not_below_its_resource_is_refused_with_the_queues_own(
    api: InMemoryApi, command: Command
) -> None:
    api.create_run_queue("cluster", "slurm")

    refused = command("add", "-d", "busybox:1", "-q", "cluster", "-R", '{"nodes": 2}')

    assert "{'slurm': {'nodes': 2}}" in str(refused.exception)


def test_scheduled_item_is_listed_and_shown_with_the_time_at_which_it_starts(
    api: InMemoryApi, command: Command
) -> None:
    now, later = add(api, "now", "later")
    moment = datetime.now(timezone.utc) + timedelta(hours=4, minutes=59)
    schedule(api, later, moment)

    listed, shown = command("item", "list").stdout.splitlines(), command("item", "show", "later").stdout

    assert listed[0].endswith("STARTS")
    assert [line.endswith("in 5 h") for line in listed[1:]] == [short_id(later.id) in line for line in listed[1:]]
    assert f"in 5 h, at {local_time(moment)}" in shown
    assert f"created   {at(later.item.created)}" in re.sub("  +", "   ", shown)
    assert json.loads(command("item", "show", "later", "--json").stdout)["due"] == moment.isoformat()
    schedule(api, later, datetime.now(timezone.utc))
    assert "STARTS" not in command("item", "list").stdout
    assert now.state == "queued"


def test_item_list_cuts_no_title_at_80_columns(api: InMemoryApi, command: Command) -> None:
    api.create_run_queue("a-queue-with-a-long-name", "local-container")
    spec = {"docker": {"docker_image": "registry.example/team/a-long-name:1"}, "name": "a-run-with-a-long-name"}
    (run,) = launch_add_many([{**spec, "priority": "critical"}], "a-queue-with-a-long-name", api=api)
    due = datetime.now(timezone.utc) + timedelta(minutes=110)
    details = {"scheduled_time": due.isoformat()}
    back = ItemState.AWAITING_RETRY
    propose(api, run, State(type=back.type, name=back.label, state_details=details))

    head, row = command("item", "list").stdout.splitlines()
    assert head.split() == ["ID", "NAME", "QUEUE", "STATE", "PRIO", "JOB", "AGE", "TOOK", "STARTS"]
    assert row.split()[3:5] == ["awaitingretry", "critical"]
    assert max(len(head), len(row)) <= 80


def test_item_is_shown_with_what_its_queues_limits_give_it_that_it_does_not_ask_for(
    api: InMemoryApi, command: Command
) -> None:
    api.create_run_queue("small", "local-container", config={"limits": {"memory": "8g", "cpus": 2, "timeout": "1h"}})
    spec = {**IMAGE, "resource_args": {"local-container": {"cpus": 0.5}}}
    asked = launch_add_many([spec, {**IMAGE, "timeout": "5m"}], "small", api=api)

    first, second = (json.loads(command("item", "show", run.id, "--json").stdout)["from_limits"] for run in asked)

    assert (first, second) == ({"memory": "8g", "timeout": "1h"}, {"memory": "8g", "cpus": 2})
    assert "memory 8g (the queue's limit)" in command("item", "show", asked[0].id).stdout


def test_failed_item_is_shown_with_the_last_lines_of_its_log_and_no_terminal_sequence(
    api: InMemoryApi, command: Command
) -> None:
    (run,) = add(api, "broken")
    start = datetime.now(timezone.utc)
    texts = ["first", *(f"line {number}" for number in range(18)), "\x1b]0;title\x07\x1b[31mValueError: bad\x1b[0m"]
    lines = [LogRecord(message=text, timestamp=start + timedelta(seconds=at)) for at, text in enumerate(["no", *texts])]
    api.call(lambda session: session.server.write_logs(UUID(run.id), lines))
    assert "last lines" not in command("item", "show", "broken").stdout
    for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED):
        propose(api, run, State.of(state))

    shown = command("item", "show", "broken").stdout

    assert "\n  first\n  line 0\n" in shown
    assert shown.endswith("\n  line 17\n  ValueError: bad\n")
    assert "  no\n" not in shown
    assert json.loads(command("item", "show", "broken", "--json").stdout)["last_lines"] == texts


def test_help_and_first_tutorial_name_the_same_job_and_inputs_that_it_has() -> None:
    commands = [line for path in (Path(cli.__file__).parent).glob("*.py") for line in path.read_text().splitlines()]
    commands += Path("docs/tutorials/gpu-box.md").read_text().splitlines()
    named = re.compile(r"prefect-launch (?:(?:add|run) .*-j|job (?:deploy|show)) ([a-z]\S*)")
    inputs = {name for line in commands if " -j digits" in line for name in re.findall(r"--set (\w+)=", line)}

    assert {found[1] for line in commands if (found := named.search(line))} == {"digits"}
    assert inputs <= set(re.findall(r"^    (\w+): ", Path("examples/digits/inputs.py").read_text(), re.MULTILINE))


def test_ids_that_end_alike_are_shown_longer_until_they_differ() -> None:
    first, second, third = "00000000-0000-7000-8000-00aabbccddee", "00000000-0000-7000-8000-01aabbccddee", str(uuid4())

    assert short_ids([first, second, third]) == {
        first: "0aabbccddee",
        second: "1aabbccddee",
        third: third[-8:],
    }


def test_flow_run_of_launch_is_shown_with_the_inputs_and_the_last_lines_of_its_job(
    api: InMemoryApi, command: Command
) -> None:
    call = {"job": "acme/digits/train:v0", "config": {"overrides": {"run_config": {"epochs": 3}}}, "name": "img"}
    parameters = {"api": {"entity": "acme"}, "docker_image": None, "synchronous": True, **call}
    start = datetime.now(timezone.utc)
    names = ["prefect.flow_runs", "job", "job", "prefect.task_runs", "prefect.flow_runs"]
    lines = [
        LogRecord(name=name, message=f"{name} {at}", timestamp=start + timedelta(seconds=at))
        for at, name in enumerate(names)
    ]

    async def make(session: Session) -> None:
        queue = await session.queue("gpu")
        draft = ItemDraft(name="img", parameters=parameters, idempotency_key="launched", enforce_parameter_schema=False)
        item = await session.server.create_item(queue.deployment_id, draft)
        assert item is not None
        await session.server.write_logs(item.id, lines)
        for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.FAILED):
            assert (await session.server.propose(item.id, State.of(state))).accepted

    api.call(make)
    shown = json.loads(command("item", "show", "img", "--json").stdout)
    assert (shown["job"], shown["inputs"]) == ("acme/digits/train:v0", {"epochs": 3})
    assert shown["last_lines"] == ["job 1", "job 2"]


CALL = {"api": {"entity": "acme"}, "config": None, "synchronous": True}
DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("parameters", "source", "short"),
    [
        ({"docker": {"docker_image": "registry:5000/team/busybox:1"}}, "registry:5000/team/busybox:1", "busybox:1"),
        ({"image_uri": f"box@{DIGEST}"}, f"box@{DIGEST}", "box@sha256:abababababab"),
        ({**CALL, "docker_image": "team/train:2"}, "team/train:2", "train:2"),
        ({**CALL, "config": {"docker": {"docker_image": "team/train:2"}}}, "team/train:2", "train:2"),
        ({**CALL, "config": {"uri": "https://host/team/digits.git"}}, "https://host/team/digits.git", "team/digits"),
        ({**CALL, "config": {"uri": "git@host:team/digits"}}, "git@host:team/digits", "team/digits"),
        ({**CALL, "job": "acme/digits/train:v0"}, "acme/digits/train:v0", "train:v0"),
        ({**CALL, "config": {"job": "train"}}, "train", "train"),
    ],
)
def test_what_an_item_runs_is_told_in_lists_and_for_one_also_of_an_image_and_a_uri(
    api: InMemoryApi, command: Command, parameters: dict[str, Any], source: str, short: str
) -> None:
    async def make(session: Session) -> None:
        queue = await session.queue("gpu")
        draft = ItemDraft(name="it", parameters=parameters, idempotency_key="it", enforce_parameter_schema=False)
        await session.server.create_item(queue.deployment_id, draft)

    api.call(make)
    assert f" {short} " in command("item", "list").stdout
    assert json.loads(command("item", "list", "--json").stdout)[0]["job"] == source
    assert json.loads(command("item", "show", "it", "--json").stdout)["job"] == source
    assert source in "".join(command("item", "show", "it").stdout.split())


def test_project_in_the_config_of_a_call_of_launch_is_the_run_s(api: InMemoryApi, command: Command) -> None:
    parameters = {**CALL, "config": {"docker": {"docker_image": "b"}, "project": "mnist", "run_id": "r1"}}

    async def make(session: Session) -> None:
        queue = await session.queue("gpu")
        draft = ItemDraft(name="it", parameters=parameters, idempotency_key="it", enforce_parameter_schema=False)
        await session.server.create_item(queue.deployment_id, draft)

    api.call(make)
    (listed,) = json.loads(command("item", "list", "--json").stdout)
    assert (listed["project"], listed["run_id"]) == ("mnist", "r1")


def test_empty_log_says_what_became_of_its_item(api: InMemoryApi, command: Command) -> None:
    (run,) = add(api, "broken")
    assert "The log is empty. The item is queued" in command("item", "logs", "broken").output
    for state in (ItemState.CLAIMED, ItemState.FAILED):
        propose(api, run, State.of(state, "[build] no such package"))
    assert "The log is empty. The item failed: [build] no such package" in command("item", "logs", "broken").output


async def _write_logs(item_id: UUID, records: list[LogRecord], session: Session) -> None:
    await session.server.write_logs(item_id, records)


@pytest.mark.parametrize("job_only", [True, False])
def test_log_that_is_followed_shows_each_line_once_also_one_that_comes_late(api: InMemoryApi, job_only: bool) -> None:
    [run] = add(api, "one")
    now, shown = datetime.now(timezone.utc), list[str]()
    tail = LogTail(run, lambda record: shown.append(record.message), job_only=job_only)
    for name, message, second in (("job", "start", 2), ("prefect.flow_runs", "Beginning", 1), ("job", "end", 300)):
        records = [LogRecord(name=name, message=message, timestamp=now + timedelta(seconds=second))]
        api.call(partial(_write_logs, UUID(run.id), records))
        tail.write_new()
        tail.write_new()

    assert shown == (["start", "end"] if job_only else ["start", "Beginning", "end"])


def test_log_that_is_followed_tells_what_the_item_waits_for_until_its_first_line(api: InMemoryApi) -> None:
    (run,) = add(api, "one")
    told, shown = list[str](), list[str]()

    def tell(words: str) -> None:
        told.append(words)
        if len(told) == 1:
            propose(api, run, State.of(ItemState.CLAIMED, "Taken by box."))
            propose(api, run, State.of(ItemState.BUILDING, "Building the image."))
        else:
            propose(api, run, State.of(ItemState.RUNNING, "On box."))
            records = [LogRecord(name="job", message="epoch 1", timestamp=datetime.now(timezone.utc))]
            api.call(partial(_write_logs, UUID(run.id), records))
            propose(api, run, State.of(ItemState.COMPLETED))

    LogTail(run, lambda record: shown.append(record.message)).until_end(tell=tell)

    assert told[0].startswith("The item waits: ")
    assert told[1:] == ["The item is building: Building the image."]
    assert shown == ["epoch 1"]


def test_log_shows_times_and_begins_at_a_time(api: InMemoryApi, command: Command) -> None:
    (run,) = add(api, "one")
    now = datetime.now(timezone.utc)
    records = [
        LogRecord(name="job", message=f"epoch {n}\nloss", timestamp=now - timedelta(hours=2 - n)) for n in range(2)
    ]
    api.call(partial(_write_logs, UUID(run.id), records))

    assert command("item", "logs", run.id, "--since", "90min").stdout == "epoch 1\nloss\n"
    assert command("item", "logs", run.id, "-t").stdout.splitlines() == [
        f"{at(record.timestamp)}  {each}" for record in records for each in record.message.splitlines()
    ]
    late = json.loads(command("item", "logs", run.id, "--since", "90min", "--json").stdout)
    assert [row["message"] for row in late] == ["epoch 1\nloss"]
    assert "The log has no record since" in command("item", "logs", run.id, "--since", "5min").stderr


def test_item_is_shown_with_its_metrics_and_their_course(api: InMemoryApi, command: Command) -> None:
    [run, other] = add(api, "one", "two")
    metrics = Metrics(outputs={"accuracy": 0.9})
    for step in range(3):
        metrics.add(step, {"loss": 1.0 / (step + 1), "grad": float("nan")})
    api.call(lambda session: write_metrics(session.server, UUID(run.id), metrics))

    shown = command("item", "show", run.id).output
    assert re.search(r"metrics +loss +0\.33333 +█▃▁ +step 2, low 0\.33333, high 1\n", shown)
    assert re.search(r"grad +NaN +××× +step 2\n +accuracy +0\.9\n", shown)
    found = json.loads(command("item", "show", run.id, "--json").output)["metrics"]
    assert (found["loss"]["steps"], found["loss"]["value"], found["grad"]["last"]) == ([0, 1, 2], 1 / 3, [2, "NaN"])
    assert json.loads(command("item", "show", other.id, "--json").output)["metrics"] == {}
