"""The in-memory `Api` is a whole one: queues, items and jobs, from synchronous and asynchronous code alike."""

from __future__ import annotations

import pytest

from prefect_launch import create_job
from prefect_launch.client.launch_add import alaunch_add_many, launch_add_many
from prefect_launch.core.states import StateType
from prefect_launch.errors import NotFoundError, ServerUnavailableError
from prefect_launch.testing import InMemoryApi

IMAGE = {"docker": {"docker_image": "busybox:1"}}


@pytest.fixture
def api() -> InMemoryApi:
    api = InMemoryApi(entity="acme", project="digits")
    api.create_run_queue("gpu", "local-container")
    return api


def test_item_that_is_queued_waits_on_the_in_memory_server(api: InMemoryApi) -> None:
    runs = launch_add_many([IMAGE, {**IMAGE, "priority": "high"}], "gpu", api=api)
    assert len(runs) == 2
    assert {item.id for item in api.items(queue="gpu", states=[StateType.SCHEDULED])} == {run.id for run in runs}


async def test_item_that_is_queued_from_async_code_is_seen_over_an_own_connection(api: InMemoryApi) -> None:
    (run,) = await alaunch_add_many([IMAGE], "gpu", api=api)
    async with api.connect() as server:
        (item,) = await server.list_items(pool="gpu")
    assert str(item.id) == str(run.id)


def test_two_apis_share_nothing_and_a_copy_shares_all(api: InMemoryApi) -> None:
    assert [queue.name for queue in api.model_copy(update={"entity": "other"}).run_queues()] == ["gpu"]
    assert InMemoryApi().run_queues() == []


def test_server_that_is_down_is_told_to_the_caller(api: InMemoryApi) -> None:
    api.server.down()
    with pytest.raises(ServerUnavailableError):
        api.run_queues()
    api.server.up()
    assert len(api.run_queues()) == 1


def test_job_that_is_made_is_found_and_its_files_are_kept_in_memory(api: InMemoryApi) -> None:
    made = create_job("busybox:1", "image", name="train", api=api)
    assert api.job("train").digest == made.digest == api.job("acme/digits/train:v0").digest
    (run,) = launch_add_many([{"job": "train"}], "gpu", api=api)
    assert run.item.state_name == "Queued"


def test_job_that_is_not_there_is_not_found(api: InMemoryApi) -> None:
    with pytest.raises(NotFoundError, match="trian"):
        api.job("trian")
