"""Outputs of one item as inputs of another: checked when the item is queued, kept in it as they were named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from prefect_launch import create_job, launch_add
from prefect_launch.cli.main import app
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.names import short_id
from prefect_launch.core.states import ItemState
from prefect_launch.errors import InputError, LaunchError, NotFoundError, SpecError
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "epochs": {"type": "integer", "default": 3},
        "data": {"type": "object", "properties": {"item": {"type": "string"}, "path": {"type": "string"}}},
    },
}


def complete(api: InMemoryApi, run: QueuedRun, outputs: Path) -> None:
    """Have an item complete, and leave the files of a folder."""

    async def end(session: Session) -> None:
        for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED):
            assert (await session.server.propose(UUID(run.id), State.of(state))).accepted
        await session.jobs.put_outputs(run.id, 1, outputs)

    api.call(end)


@pytest.fixture
def trained(job_api: InMemoryApi, tmp_path: Path) -> QueuedRun:
    """An item that has completed, and left a model and a folder of a tokenizer; and a job that takes it."""
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "main.py").write_text("pass")
    create_job(tmp_path / "evaluate", "code", name="evaluate", entrypoint="python main.py", schema=SCHEMA)
    run = launch_add(docker_image="busybox:1", queue_name="gpu", name="training")
    for name in ("model.pt", "tokenizer/vocab.txt", "tokenizer/deep/merges.txt"):
        (tmp_path / "outputs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outputs" / name).write_text("x")
    complete(job_api, run, tmp_path / "outputs")
    return run


def add(**values: Any) -> QueuedRun:
    return launch_add(job="evaluate", queue_name="cpu", config=inputs(**values))


@pytest.mark.parametrize("path", ["model.pt", "tokenizer", "tokenizer/", "./tokenizer/deep"])
def test_item_keeps_from_where_its_input_comes(trained: QueuedRun, path: str) -> None:
    run = add(model={"item": trained.id, "path": path})

    wanted = {"model": {"item": trained.id, "path": path.strip("./")}, "epochs": 3}
    assert run.item.parameters["overrides"]["run_config"] == wanted
    assert json.loads(CliRunner().invoke(app, ["item", "show", run.id, "--json"]).stdout)["inputs"] == wanted


def test_group_of_inputs_that_the_job_declares_stays_a_group(trained: QueuedRun) -> None:
    group = {"item": "chair", "path": "/somewhere"}

    assert add(model="x", data=group).item.parameters["overrides"]["run_config"]["data"] == group


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ({"path": "model.pth"}, NotFoundError, r"'model.pth' of the item training .* Did you mean 'model.pt'\?"),
        ({"path": "/etc/passwd"}, InputError, "'model' names the file '/etc/passwd' of an item; it must be a path in"),
        ({"path": "../2/model.pt"}, InputError, "it must be a path in the item's outputs"),
        ({"path": "."}, InputError, "it must be a path in the item's outputs"),
        ({"item": "training"}, InputError, "'model' is a file of the item 'training'; it must be the whole id"),
        ({"item": str(uuid4())}, InputError, "which is not on the server"),
    ],
)
def test_output_that_is_not_there_is_refused_when_the_item_is_queued(
    trained: QueuedRun, value: dict[str, str], kind: type[LaunchError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        add(model={"item": trained.id, "path": "model.pt", **value})


def test_item_that_has_not_completed_has_no_outputs_for_others(trained: QueuedRun) -> None:
    waiting = launch_add(docker_image="busybox:1", queue_name="gpu", name="slow")

    with pytest.raises(InputError, match=r"of the item slow .*, which is Queued: only what has completed"):
        add(model={"item": waiting.id, "path": "model.pt"})


def test_resource_that_can_be_given_no_files_refuses_them(trained: QueuedRun, job_api: InMemoryApi) -> None:
    job_api.create_run_queue("elsewhere", "ray")
    config = inputs(model={"item": trained.id, "path": "model.pt"})

    with pytest.raises(SpecError, match=r"'model' is a file of another item, .* resource 'ray'"):
        launch_add(job="evaluate", queue_name="elsewhere", config=config)


@pytest.mark.parametrize("given_by", ["file", "options", "both"])
def test_command_line_takes_the_item_s_name_and_its_short_id(trained: QueuedRun, tmp_path: Path, given_by: str) -> None:
    for given in ("training", short_id(trained.id)):
        options = ["--set", f"model.item={given}", "--set", "model.path=model.pt"]
        file = tmp_path / "config.json"
        if given_by == "file":
            file.write_text(json.dumps(inputs(model={"item": given, "path": "model.pt"})))
            options = ["-c", str(file)]
        if given_by == "both":
            file.write_text(json.dumps(inputs(model={"path": "model.pt"})))
            options = ["-c", str(file), "--set", f"model.item={given}"]
        done = CliRunner().invoke(app, ["add", "-j", "evaluate", "-q", "cpu", *options, "--json"])
        added = json.loads(CliRunner().invoke(app, ["item", "show", json.loads(done.stdout)["id"], "--json"]).stdout)
        assert added["inputs"]["model"] == {"item": trained.id, "path": "model.pt"}


@pytest.mark.parametrize("given_by", ["options", "both"])
def test_item_and_file_that_look_like_numbers_are_taken_as_written(
    trained: QueuedRun, job_api: InMemoryApi, tmp_path: Path, given_by: str
) -> None:
    run = launch_add(docker_image="busybox:1", queue_name="gpu", name="890722e2")
    (tmp_path / "numbered").mkdir()
    (tmp_path / "numbered" / "1e3").write_text("x")
    complete(job_api, run, tmp_path / "numbered")
    options = ["--set", "model.item=890722e2", "--set", "model.path=1e3"]
    if given_by == "both":
        (tmp_path / "config.json").write_text(json.dumps(inputs(model={"item": "training", "path": "model.pt"})))
        options += ["-c", str(tmp_path / "config.json")]
    done = CliRunner().invoke(app, ["add", "-j", "evaluate", "-q", "cpu", *options, "--set", "epochs=4", "--json"])
    added = json.loads(CliRunner().invoke(app, ["item", "show", json.loads(done.stdout)["id"], "--json"]).stdout)
    assert added["inputs"] == {"model": {"item": run.id, "path": "1e3"}, "epochs": 4}
