"""`launch_add`: one item for a good spec, one clear error and nothing else for a bad one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_launch import alaunch_add, create_job, launch_add, launch_add_many
from prefect_launch.api import use_api
from prefect_launch.errors import (
    InputError,
    InvalidNameError,
    LaunchError,
    NotFoundError,
    QueueError,
    ServerUnavailableError,
    SpecError,
    UnsafeSpecError,
)
from prefect_launch.server.values import Item
from prefect_launch.states import StateType
from prefect_launch.testing import InMemoryApi

SCHEMA = {
    "type": "object",
    "properties": {
        "lr": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "epochs": {"type": "integer", "minimum": 1, "default": 3},
        "optimiser": {"type": "string", "enum": ["sgd", "adam"], "default": "adam"},
    },
    "required": ["lr"],
    "additionalProperties": False,
}
GPUS = {"gpus": {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}}
IMAGE = {"docker": {"docker_image": "registry:5000/team/busybox:1"}}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InMemoryApi]:
    """A server with a queue of containers, one of processes, and two jobs."""
    api = InMemoryApi(entity="acme", project="digits")
    api.create_run_queue("gpu", "local-container", config={"gpus": "{{ gpus }}"}, template_variables=GPUS)
    api.create_run_queue("cpu", "local-process")
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text("print('hello')\n")
    create_job(str(code), "code", name="train", entrypoint="python main.py", schema=SCHEMA, api=api)
    create_job("busybox:1", "image", name="box", api=api)
    with use_api(api):
        yield api


def items(api: InMemoryApi) -> list[Item]:
    return api.call(lambda session: session.server.list_items())


def inputs(**values: Any) -> dict[str, Any]:
    return {"overrides": {"run_config": values}}


# --- what is made ---


def test_item_carries_the_spec_and_is_found_by_its_tags(api: InMemoryApi) -> None:
    run = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), author="ann", name="my run", run_id="r1")
    (item,) = items(api)
    assert (str(item.id), item.name, item.state_name) == (run.id, "my run", "Queued")
    assert item.parameters == {
        "job": "acme/digits/train:v0",
        "entity": "acme",
        "project": "digits",
        "name": "my run",
        "run_id": "r1",
        "author": "ann",
        "overrides": {"run_config": {"lr": 0.1, "epochs": 3, "optimiser": "adam"}},
    }
    assert set(item.tags) >= {"queue:cpu", "job:train", "version:v0", "entity:acme", "project:digits", "author:ann"}
    assert item.labels["prefect-launch.job"] == "acme/digits/train:v0"
    assert (item.work_pool_name, item.work_queue_name) == ("cpu", "default")


def test_item_of_an_image_is_named_after_it(api: InMemoryApi) -> None:
    run = launch_add(docker_image="registry:5000/team/busybox@sha256:abc", queue_name="gpu")
    assert run.name.startswith("busybox-")


def test_config_is_not_changed(api: InMemoryApi) -> None:
    config = {**inputs(lr=0.1), "job": "train"}
    before = repr(config)
    launch_add(config=config, queue_name="cpu", name="x")
    assert repr(config) == before


@pytest.mark.parametrize(("priority", "queue"), [(1, "critical"), ("high", "high"), (None, "default"), (4, "low")])
def test_priority_is_the_work_queue(api: InMemoryApi, priority: Any, queue: str) -> None:
    launch_add(docker_image="b", queue_name="gpu", priority=priority)
    assert items(api)[0].work_queue_name == queue


def test_template_variables_are_the_items_job_variables(api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu", template_variables={"gpus": 4})
    assert items(api)[0].job_variables == {"gpus": 4}


def test_default_queue_is_made_on_first_use_for_what_the_job_needs(api: InMemoryApi) -> None:
    launch_add(job="train", config=inputs(lr=0.1))
    assert api.run_queue("default").type == "local-process"
    launch_add(job="train", config=inputs(lr=0.2))
    assert len(items(api)) == 2


async def test_item_is_queued_from_async_code(api: InMemoryApi) -> None:
    run = await alaunch_add(docker_image="b", queue_name="gpu")
    assert [str(item.id) for item in await asyncio.to_thread(items, api)] == [run.id]


# --- run ids ---


def test_same_spec_under_the_same_run_id_is_one_item(api: InMemoryApi) -> None:
    first = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), run_id="r1")
    second = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), run_id="r1")
    assert first.id == second.id
    assert len(items(api)) == 1


@pytest.mark.parametrize("changes", [{"config": inputs(lr=0.2)}, {"name": "other"}, {"entry_point": ["x"]}])
def test_other_spec_under_the_same_run_id_is_refused(api: InMemoryApi, changes: dict[str, Any]) -> None:
    launch_add(**{"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1), "run_id": "r1"})
    with pytest.raises(SpecError, match="The run_id 'r1' is taken by another spec"):
        launch_add(**{"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1), "run_id": "r1", **changes})
    assert len(items(api)) == 1


def test_run_id_on_another_queue_is_refused_with_the_queue(api: InMemoryApi) -> None:
    api.create_run_queue("gpu2", "local-container")
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    with pytest.raises(SpecError, match="on queue 'gpu'"):
        launch_add(docker_image="b", queue_name="gpu2", run_id="r1")
    assert len(items(api)) == 1


def test_run_ids_of_two_projects_are_apart(api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    launch_add(docker_image="b", queue_name="gpu", run_id="r1", project="other")
    assert len(items(api)) == 2


def test_same_spec_without_a_run_id_is_a_new_item_each_time(api: InMemoryApi) -> None:
    runs = [launch_add(docker_image="b", queue_name="gpu") for _ in range(3)]
    assert len({run.id for run in runs}) == len({run.run_id for run in runs}) == 3


def test_answer_that_was_lost_does_not_make_two(api: InMemoryApi) -> None:
    lost: list[str] = []

    async def lose_once(method: str) -> None:
        if method == "create_item" and not lost:
            lost.append(method)
            raise ServerUnavailableError("the answer was lost")

    api.server.after_call = lose_once
    with pytest.raises(ServerUnavailableError):
        launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    assert len(items(api)) == 1


# --- what is refused ---

REFUSED: list[tuple[dict[str, Any], type[LaunchError], str]] = [
    # the source
    ({}, SpecError, "Exactly one of job, docker_image or uri"),
    ({"job": "train", "docker_image": "b"}, SpecError, "Exactly one of"),
    ({"job": "train", "uri": "https://x/y.git"}, SpecError, "Exactly one of"),
    ({"uri": "https://x/y.git"}, SpecError, "create_job"),
    ({"docker_image": "b", "build": True}, SpecError, "build=True"),
    # names that are not there
    ({"job": "trian"}, NotFoundError, "Did you mean 'train'"),
    ({"job": "train:bset"}, NotFoundError, "alias or version 'bset'"),
    ({"job": "train:v7"}, NotFoundError, "v7"),
    ({"job": "other/digits/train"}, NotFoundError, "other/digits/train"),
    ({"job": "a/b/c/d"}, InvalidNameError, "a/b/c/d"),
    ({"job": "../train"}, InvalidNameError, r"\.\."),
    ({"docker_image": "b", "queue_name": "gup"}, NotFoundError, "Did you mean 'gpu'"),
    ({"docker_image": "b", "queue_name": "../gpu"}, LaunchError, r"\.\./gpu"),
    ({"docker_image": "b", "resource": "local-contaner"}, NotFoundError, "Did you mean 'local-container'"),
    ({"docker_image": "b", "resource": "local-process"}, SpecError, "runs its items on 'local-container'"),
    ({"docker_image": "b", "template_variables": {"gpu": 1}}, NotFoundError, "Did you mean 'gpus'"),
    ({"docker_image": "b", "config": {"overide": {}}}, NotFoundError, "Did you mean 'overrides'"),
    ({"docker_image": "b", "resource_args": {"local-container": {"memroy": 1}}}, LaunchError, "memroy"),
    ({"docker_image": "b", "resource_args": {"local-process": {"nice": 1}}}, SpecError, "are for 'local-process'"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1, epoch=3)}, InputError, "epoch"),
    # values
    ({"docker_image": "b", "template_variables": {"gpus": 9}}, SpecError, "maximum 8"),
    ({"docker_image": "b", "template_variables": {"gpus": "two"}}, SpecError, "type integer"),
    ({"job": "train", "queue_name": "cpu"}, InputError, "lr"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr="high")}, InputError, "lr"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=2)}, InputError, "lr"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1, epochs=1.5)}, InputError, "epochs"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1, optimiser="rms")}, InputError, "optimiser"),
    ({"docker_image": "b", "priority": 0}, SpecError, "Invalid priority 0"),
    ({"docker_image": "b", "priority": 9}, SpecError, "Invalid priority 9"),
    ({"docker_image": "b", "priority": "urgent"}, SpecError, "Invalid priority 'urgent'"),
    ({"docker_image": "b", "config": {"overrides": {"args": "--x"}}}, SpecError, "override args must be a list"),
    ({"docker_image": "b", "config": "not json"}, SpecError, "must be a mapping"),
    ({"docker_image": "b", "config": inputs(x=math.nan)}, SpecError, "run_config.x is nan"),
    ({"docker_image": "b", "config": inputs(x="a\0b")}, SpecError, "NUL"),
    # names
    ({"docker_image": "b", "entity": "a/b"}, InvalidNameError, "entity"),
    ({"docker_image": "b", "project": "a..b"}, InvalidNameError, "project"),
    ({"docker_image": "b", "run_id": "x" * 300}, InvalidNameError, "run_id"),
    ({"docker_image": "b", "author": "a\nb"}, InvalidNameError, "author"),
    ({"docker_image": "b", "name": "a\x07b"}, SpecError, "run name"),
    # what the resource cannot run, or the queue does not let submitters set
    ({"job": "box", "queue_name": "cpu"}, SpecError, "cannot run on the resource 'local-process'"),
    ({"docker_image": "b", "queue_name": "cpu"}, SpecError, "cannot run on the resource 'local-process'"),
    ({"docker_image": "b", "resource_args": {"local-container": {"privileged": True}}}, UnsafeSpecError, "privileged"),
    ({"docker_image": "b", "resource_args": {"local-container": {"gpus": 4}}}, UnsafeSpecError, "gpus"),
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED)
def test_bad_call_is_refused_with_one_clear_error_and_nothing_is_queued(
    api: InMemoryApi, given: dict[str, Any], error: type[LaunchError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        launch_add(**{"queue_name": "gpu", **given})
    assert "\n" not in str(raised.value)
    assert items(api) == []
    assert sorted(queue.name for queue in api.run_queues()) == ["cpu", "gpu"]


#: What can be said in a launch config too.
REFUSED_IN_LISTS = [
    case for case in REFUSED if not ({"build", "uri"} & set(case[0]) or isinstance(case[0].get("config"), str))
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED_IN_LISTS)
def test_one_bad_spec_of_a_list_keeps_all_from_being_queued(
    api: InMemoryApi, given: dict[str, Any], error: type[LaunchError], words: str
) -> None:
    data = dict(given)
    queue = data.pop("queue_name", "gpu")
    overrides = data.pop("config", {})
    image = data.pop("docker_image", None)
    bad = {**overrides, **data, **({"docker": {"docker_image": image}} if image else {})}
    good = IMAGE if queue != "cpu" else {"job": "train", **inputs(lr=0.1)}
    with pytest.raises(error, match=words):
        launch_add_many([good, bad, good], queue, api=api)
    assert items(api) == []


def test_queue_without_priorities_takes_none(api: InMemoryApi) -> None:
    api.create_run_queue("plain", "local-container", prioritization_mode="DISABLED")
    with pytest.raises(SpecError, match="has no priorities"):
        launch_add(docker_image="b", queue_name="plain", priority="high")
    assert items(api) == []
    launch_add(docker_image="b", queue_name="plain", priority="medium")


def test_server_that_is_not_there_is_told_and_nothing_is_queued_later(api: InMemoryApi) -> None:
    api.server.down()
    with pytest.raises(ServerUnavailableError, match="does not answer"):
        launch_add(docker_image="b", queue_name="gpu")
    api.server.up()
    assert items(api) == []


def test_queue_that_was_made_anew_is_seen(api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu")
    api.delete_run_queue("gpu")
    with pytest.raises(NotFoundError):
        launch_add(docker_image="b", queue_name="gpu")
    api.create_run_queue("gpu", "local-container")
    run = launch_add(docker_image="b", queue_name="gpu")
    assert api.queued_run(run.id).queue_name == "gpu"


def test_queue_that_is_deleted_in_the_middle_leaves_nothing_behind(api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu")

    async def delete_queue(method: str) -> None:
        if method == "create_item":
            api.server.before_call = None
            for deployment in await api.server.list_deployments("gpu"):
                await api.server.delete_deployment(deployment.id)
            await api.server.delete_pool("gpu")

    api.server.before_call = delete_queue
    with pytest.raises((NotFoundError, QueueError)):
        launch_add(docker_image="b", queue_name="gpu")
    assert [item for item in items(api) if item.work_pool_name] == []


# --- lists ---


def test_list_is_queued_in_its_order_in_one_request(api: InMemoryApi) -> None:
    runs = launch_add_many([{**IMAGE, "name": f"run {number}"} for number in range(120)], "gpu", api=api)
    assert [run.name for run in runs] == [f"run {number}" for number in range(120)]
    assert api.server.calls["create_items"] == 1
    assert len({run.id for run in runs}) == len(items(api)) == 120


def test_empty_list_queues_nothing(api: InMemoryApi) -> None:
    assert launch_add_many([], "gpu", api=api) == []


def test_list_with_one_run_id_twice_is_refused(api: InMemoryApi) -> None:
    with pytest.raises(SpecError, match="Two specs of the list have the run_id 'r1'"):
        launch_add_many([{**IMAGE, "run_id": "r1"}, {**IMAGE, "run_id": "r1"}], "gpu", api=api)
    assert items(api) == []


def test_list_that_is_queued_again_gives_the_same_items(api: InMemoryApi) -> None:
    specs = [{**IMAGE, "run_id": f"r{number}"} for number in range(3)]
    first = launch_add_many(specs, "gpu", api=api)
    second = launch_add_many([*specs, {**IMAGE, "run_id": "r3"}], "gpu", api=api)
    assert [run.id for run in second[:3]] == [run.id for run in first]
    assert len(items(api)) == 4


def test_list_with_a_run_id_of_another_spec_is_refused_whole(api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    with pytest.raises(SpecError, match="The run_id 'r1' is taken by another spec"):
        launch_add_many([{**IMAGE, "run_id": "r0"}, {**IMAGE, "run_id": "r1"}], "gpu", api=api)
    assert len(items(api)) == 1


def test_handles_of_a_list_are_whole(api: InMemoryApi) -> None:
    (run,) = launch_add_many([{**IMAGE, "priority": "high"}], "gpu", api=api)
    assert (run.queue_name, run.priority, run.state) == ("gpu", 2, "queued")
    assert api.call(lambda session: session.server.read_item(UUID(run.id))).state_type is StateType.SCHEDULED
