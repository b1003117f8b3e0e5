"""`launch_add`: one item for a good spec, one clear error and nothing else for a bad one."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from prefect_launch import alaunch_add, launch_add, launch_add_many
from prefect_launch.core.states import StateType
from prefect_launch.errors import (
    NotFoundError,
    QueueError,
    ServerUnavailableError,
    SpecError,
)
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import IMAGE, inputs, items

# --- what is made ---


def test_item_carries_the_spec_and_is_found_by_its_tags(job_api: InMemoryApi) -> None:
    run = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), author="ann", name="my run", run_id="r1")
    (item,) = items(job_api)
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


def test_item_of_an_image_is_named_after_it(job_api: InMemoryApi) -> None:
    run = launch_add(
        docker_image="registry:5000/team/busybox@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        queue_name="gpu",
    )
    assert run.name.startswith("busybox-")


def test_config_is_not_changed(job_api: InMemoryApi) -> None:
    config = {**inputs(lr=0.1), "job": "train"}
    before = repr(config)
    launch_add(config=config, queue_name="cpu", name="x")
    assert repr(config) == before


@pytest.mark.parametrize(("priority", "queue"), [(1, "critical"), ("high", "high"), (None, "default"), (4, "low")])
def test_priority_is_the_work_queue(job_api: InMemoryApi, priority: Any, queue: str) -> None:
    launch_add(docker_image="b", queue_name="gpu", priority=priority)
    assert items(job_api)[0].work_queue_name == queue


def test_template_variables_are_the_items_job_variables(job_api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu", template_variables={"gpus": 4})
    assert items(job_api)[0].job_variables == {"gpus": 4}


def test_default_queue_is_made_on_first_use_for_what_the_job_needs(job_api: InMemoryApi) -> None:
    launch_add(job="train", config=inputs(lr=0.1))
    assert job_api.run_queue("default").type == "local-process"
    launch_add(job="train", config=inputs(lr=0.2))
    assert len(items(job_api)) == 2


async def test_item_is_queued_from_async_code(job_api: InMemoryApi) -> None:
    run = await alaunch_add(docker_image="b", queue_name="gpu")
    assert [str(item.id) for item in await asyncio.to_thread(items, job_api)] == [run.id]


# --- run ids ---


def test_same_spec_under_the_same_run_id_is_one_item(job_api: InMemoryApi) -> None:
    first = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), run_id="r1")
    second = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), run_id="r1")
    assert first.id == second.id
    assert len(items(job_api)) == 1


@pytest.mark.parametrize("changes", [{"config": inputs(lr=0.2)}, {"name": "other"}, {"entry_point": ["x"]}])
def test_other_spec_under_the_same_run_id_is_refused(job_api: InMemoryApi, changes: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1), "run_id": "r1"}
    launch_add(**spec)
    with pytest.raises(SpecError, match="The run_id 'r1' is taken by another spec"):
        launch_add(**{**spec, **changes})
    assert len(items(job_api)) == 1


def test_run_id_on_another_queue_is_refused_with_the_queue(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("gpu2", "local-container")
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    with pytest.raises(SpecError, match="on queue 'gpu'"):
        launch_add(docker_image="b", queue_name="gpu2", run_id="r1")
    assert len(items(job_api)) == 1


def test_run_ids_of_two_projects_are_apart(job_api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    launch_add(docker_image="b", queue_name="gpu", run_id="r1", project="other")
    assert len(items(job_api)) == 2


def test_same_spec_without_a_run_id_is_a_new_item_each_time(job_api: InMemoryApi) -> None:
    runs = [launch_add(docker_image="b", queue_name="gpu") for _ in range(3)]
    assert len({run.id for run in runs}) == len({run.run_id for run in runs}) == 3


def test_answer_that_was_lost_does_not_make_two(job_api: InMemoryApi) -> None:
    lost: list[str] = []

    async def lose_once(method: str) -> None:
        if method == "create_item" and not lost:
            lost.append(method)
            raise ServerUnavailableError("the answer was lost")

    job_api.server.after_call = lose_once
    with pytest.raises(ServerUnavailableError):
        launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    assert len(items(job_api)) == 1


# --- the server, and the queue ---


def test_queue_without_priorities_takes_none(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("plain", "local-container", prioritization_mode="DISABLED")
    with pytest.raises(SpecError, match="has no priorities"):
        launch_add(docker_image="b", queue_name="plain", priority="high")
    assert items(job_api) == []
    launch_add(docker_image="b", queue_name="plain", priority="medium")


def test_server_that_is_not_there_is_reported_and_nothing_is_queued_later(job_api: InMemoryApi) -> None:
    job_api.server.down()
    with pytest.raises(ServerUnavailableError, match="does not answer"):
        launch_add(docker_image="b", queue_name="gpu")
    job_api.server.up()
    assert items(job_api) == []


def test_queue_that_was_made_anew_is_seen(job_api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu")
    job_api.delete_run_queue("gpu")
    with pytest.raises(NotFoundError):
        launch_add(docker_image="b", queue_name="gpu")
    job_api.create_run_queue("gpu", "local-container")
    run = launch_add(docker_image="b", queue_name="gpu")
    assert job_api.queued_run(run.id).queue_name == "gpu"


def test_queue_that_is_deleted_in_the_middle_leaves_nothing_behind(job_api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu")

    async def delete_queue(method: str) -> None:
        if method == "create_item":
            job_api.server.before_call = None
            for deployment in await job_api.server.list_deployments("gpu"):
                await job_api.server.delete_deployment(deployment.id)
            await job_api.server.delete_pool("gpu")

    job_api.server.before_call = delete_queue
    with pytest.raises((NotFoundError, QueueError)):
        launch_add(docker_image="b", queue_name="gpu")
    assert [item for item in items(job_api) if item.work_pool_name] == []


# --- lists ---


def test_list_is_queued_in_its_order_in_few_requests(job_api: InMemoryApi) -> None:
    runs = launch_add_many([{**IMAGE, "name": f"run {number}"} for number in range(120)], "gpu", api=job_api)
    assert [run.name for run in runs] == [f"run {number}" for number in range(120)]
    assert job_api.server.calls["create_items"] == 1
    assert len({run.id for run in runs}) == len(items(job_api)) == 120


def test_empty_list_queues_nothing(job_api: InMemoryApi) -> None:
    assert launch_add_many([], "gpu", api=job_api) == []


def test_list_with_one_run_id_twice_is_refused(job_api: InMemoryApi) -> None:
    with pytest.raises(SpecError, match="Two specs of the list have the run_id 'r1'"):
        launch_add_many([{**IMAGE, "run_id": "r1"}, {**IMAGE, "run_id": "r1"}], "gpu", api=job_api)
    assert items(job_api) == []


def test_list_that_is_queued_again_gives_the_same_items(job_api: InMemoryApi) -> None:
    specs = [{**IMAGE, "run_id": f"r{number}"} for number in range(3)]
    first = launch_add_many(specs, "gpu", api=job_api)
    second = launch_add_many([*specs, {**IMAGE, "run_id": "r3"}], "gpu", api=job_api)
    assert [run.id for run in second[:3]] == [run.id for run in first]
    assert len(items(job_api)) == 4


def test_list_whose_call_was_broken_off_is_completed_by_the_same_call(job_api: InMemoryApi) -> None:
    specs = [{**IMAGE, "name": f"run {number}"} for number in range(120)]
    told = []

    def break_off(made: int, of: int) -> None:
        told.append((made, of))
        if made == 100:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        launch_add_many(specs, "gpu", run_id="grid", progress=break_off, api=job_api)
    assert told == [(0, 120), (50, 120), (100, 120)]
    there = {item.id for item in items(job_api)}
    told.clear()
    runs = launch_add_many(specs, "gpu", run_id="grid", progress=lambda *made: told.append(made), api=job_api)
    assert told == [(100, 120), (120, 120)]
    assert [run.name for run in runs] == [spec["name"] for spec in specs]
    assert [run.run_id for run in runs] == [f"grid-{number}" for number in range(1, 121)]
    assert len(items(job_api)) == 120
    assert len(there & {UUID(run.id) for run in runs}) == 100


def test_list_is_completed_from_its_end_and_not_changed_in_its_midst(job_api: InMemoryApi) -> None:
    specs = [{**IMAGE, "name": name} for name in ("a", "b")]
    first = launch_add_many(specs, "gpu", run_id="grid", api=job_api)
    longer = launch_add_many([*specs, {**IMAGE, "name": "c"}], "gpu", run_id="grid", api=job_api)
    assert [run.id for run in longer[:2]] == [run.id for run in first]
    with pytest.raises(SpecError, match="The run_id 'grid-1' is taken by another spec"):
        launch_add_many(specs[1:], "gpu", run_id="grid", api=job_api)
    assert len(items(job_api)) == 3


def test_list_with_a_run_id_of_another_spec_is_refused_whole(job_api: InMemoryApi) -> None:
    launch_add(docker_image="b", queue_name="gpu", run_id="r1")
    with pytest.raises(SpecError, match="The run_id 'r1' is taken by another spec"):
        launch_add_many([{**IMAGE, "run_id": "r0"}, {**IMAGE, "run_id": "r1"}], "gpu", api=job_api)
    assert len(items(job_api)) == 1


def test_handles_of_a_list_are_whole(job_api: InMemoryApi) -> None:
    (run,) = launch_add_many([{**IMAGE, "priority": "high"}], "gpu", api=job_api)
    assert (run.queue_name, run.priority, run.state) == ("gpu", 2, "queued")
    item = job_api.call(lambda session: session.server.read_item(UUID(run.id)))
    assert item is not None
    assert item.state_type is StateType.SCHEDULED


@pytest.mark.parametrize("version", ["v0", "0", "latest"])
def test_version_beside_a_job_is_taken_when_it_agrees_with_it(job_api: InMemoryApi, version: str) -> None:
    assert launch_add(job="box:latest", queue_name="gpu", version=version).item.labels["prefect-launch.job"] == (
        "acme/digits/box:v0"
    )
