"""Run queues: made, found, changed, paused, limited and deleted; wrong ones leave nothing behind."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from prefect_launch.client.api import Api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.errors import InvalidNameError, LaunchError, NotFoundError, QueueError
from prefect_launch.queues.options import QueueOptions
from prefect_launch.testing import InMemoryApi

IMAGE = {"docker": {"docker_image": "busybox:1"}}
GPUS = {"gpus": {"schema": {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}}}


@pytest.fixture
def api() -> InMemoryApi:
    return InMemoryApi(entity="acme", project="digits")


def test_queue_has_what_it_was_made_of(api: InMemoryApi) -> None:
    made = api.create_run_queue(
        "gpu", "local-container", config={"gpus": "{{ gpus }}", "memory": "4g"}, template_variables=GPUS, concurrency=3
    )
    for queue in (made, api.run_queue("gpu")):
        assert (queue.name, queue.entity, queue.type) == ("gpu", "acme", "local-container")
        options = {"gpus": "{{ gpus }}", "memory": "4g"}
        assert queue.default_resource_config == {"resource_args": {"local-container": options}}
        assert queue.template_variables == {"gpus": GPUS["gpus"]["schema"]}
        assert (queue.prioritization_mode, queue.concurrency_limit, queue.is_paused) == ("V0", 3, False)
        assert queue.items == []
    assert made.id == api.run_queue("gpu").id


def test_queue_has_four_priorities_in_their_order(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container")
    queues = api.call(lambda session: session.server.list_queues("gpu"))
    assert [queue.name for queue in queues] == ["critical", "high", "default", "low"]


def test_queue_without_priorities_has_one(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container", prioritization_mode="DISABLED")
    assert [queue.name for queue in api.call(lambda session: session.server.list_queues("gpu"))] == ["default"]


def test_config_in_the_references_wrapping_is_understood(api: InMemoryApi) -> None:
    config = {"resource_args": {"local-container": {"--shm-size": "1g"}}}
    queue = api.create_run_queue("gpu", "local-container", config=config)
    assert queue.default_resource_config == {"resource_args": {"local-container": {"shm-size": "1g"}}}


def test_config_says_beside_the_options_that_images_are_pinned(api: InMemoryApi) -> None:
    configs: dict[str, dict[str, Any]] = {
        "a": {"docker": {"pin": True}, "memory": "1g"},
        "b": {"docker": {"pin": True}, "resource_args": {"local-container": {"memory": "1g"}}},
    }
    for name, config in configs.items():
        api.create_run_queue(name, "local-container", config=config)
        queue = api.run_queue(name)
        options = {"local-container": {"memory": "1g"}}
        assert (queue.pin, queue.default_resource_config) == (True, {"resource_args": options, "docker": {"pin": True}})
    copy = api.upsert_run_queue("b", "local-container", config={"docker": {"pin": False}, "memory": "1g"})
    assert (copy.pin, copy.default_resource_config) == (False, {"resource_args": options, "docker": {"pin": False}})


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": ""}, InvalidNameError, "empty"),
        ({"name": "a/b"}, InvalidNameError, "Invalid queue name"),
        ({"name": "../x"}, InvalidNameError, "Invalid queue name"),
        ({"name": "x" * 65}, InvalidNameError, "at most 64"),
        ({"name": "a\nb"}, InvalidNameError, "Invalid queue name"),
        ({"name": "prefect-x"}, QueueError, "reserved"),
        ({"type": "local-containr"}, NotFoundError, "Did you mean 'local-container'"),
        ({"prioritization_mode": "V1"}, QueueError, "prioritization mode"),
        ({"config": {"memroy": "1g"}}, NotFoundError, "Did you mean 'memory'"),
        ({"config": {"gpus": "{{ gpu }}"}, "template_variables": GPUS}, QueueError, "Did you mean 'gpus'"),
        ({"config": "text"}, QueueError, "must be a mapping"),
        ({"config": {"resource_args": {"local-process": {}}}}, QueueError, "config is for local-process"),
        ({"config": {"resource_args": ["x"]}}, QueueError, "must be a mapping"),
        ({"config": {"resource_args": {"local-container": "x"}}}, QueueError, "must be a mapping"),
        ({"config": {"docker": {"pin": "yes"}}}, QueueError, "must be a mapping such as"),
        ({"config": {"docker": True}}, QueueError, "must be a mapping such as"),
        ({"config": {"docker": {"pinn": True}}}, NotFoundError, "Did you mean 'pin'"),
        ({"type": "local-process", "config": {"docker": {"pin": True}}}, QueueError, "runs no images"),
        ({"template_variables": {"a b": {"type": "string"}}}, QueueError, "Invalid template variable name"),
        ({"template_variables": "text"}, QueueError, "must be a mapping"),
        ({"concurrency": 0}, QueueError, "1 or more"),
        ({"concurrency": -1}, QueueError, "1 or more"),
        ({"concurrency": True}, QueueError, "1 or more"),
        ({"concurrency": 1.5}, QueueError, "1 or more"),
        ({"preempt": True, "prioritization_mode": "DISABLED"}, QueueError, "no critical and no low items"),
        ({"per_author": 0}, QueueError, "per_author must be a whole number of at least 1"),
        ({"per_author_waiting": "5"}, QueueError, "per_author_waiting must be a whole number"),
        ({"per_author": True}, QueueError, "not True"),
        ({"submitter_options": ["privilegd"]}, NotFoundError, "privileged"),
        ({"fail_impossible_after": "soon"}, QueueError, "fail_impossible_after: Invalid duration 'soon'"),
        ({"fail_impossible_after": 0}, QueueError, "fail_impossible_after: Invalid duration 0"),
        ({"entity": "a/b"}, InvalidNameError, "entity"),
    ],
)
def test_wrong_queue_is_refused_and_nothing_is_made(
    api: InMemoryApi, changes: dict[str, Any], error: type[LaunchError], words: str
) -> None:
    arguments = {"name": "gpu", "type": "local-container", **changes}
    with pytest.raises(error, match=words):
        api.create_run_queue(**arguments)
    assert api.run_queues() == []


def test_queue_that_is_there_already_is_not_made_again(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container", config={"memory": "1g"})
    with pytest.raises(QueueError, match="is there already"):
        api.create_run_queue("gpu", "local-container")
    assert api.run_queue("gpu").default_resource_config["resource_args"]["local-container"] == {"memory": "1g"}


def test_upsert_makes_a_queue_and_brings_it_up_to_date(api: InMemoryApi) -> None:
    first = api.upsert_run_queue("gpu", "local-container")
    second = api.upsert_run_queue("gpu", "local-container", config={"memory": "2g"}, concurrency=2)
    assert first.id == second.id
    assert api.run_queue("gpu").concurrency_limit == 2
    assert api.run_queue("gpu").default_resource_config["resource_args"]["local-container"] == {"memory": "2g"}


def test_resource_of_a_queue_with_waiting_items_cannot_change(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container")
    launch_add_many([IMAGE], "gpu", api=api)
    with pytest.raises(QueueError, match="1 waiting item"):
        api.upsert_run_queue("gpu", "local-process")
    assert api.run_queue("gpu").type == "local-container"


def test_resource_of_an_empty_queue_can_change(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container")
    assert api.upsert_run_queue("gpu", "local-process").type == "local-process"


def test_unknown_queue_is_refused_with_the_nearest_one(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container")
    with pytest.raises(NotFoundError, match="Did you mean 'gpu'"):
        api.run_queue("gup")


def test_queues_are_listed_by_name(api: InMemoryApi) -> None:
    for name in ("b", "a"):
        api.create_run_queue(name, "local-process")
    assert [queue.name for queue in api.run_queues()] == ["a", "b"]


def test_queue_is_paused_and_goes_on(api: InMemoryApi) -> None:
    queue = api.create_run_queue("gpu", "local-container")
    queue.pause()
    assert queue.is_paused
    assert api.run_queue("gpu").is_paused
    queue.resume()
    assert not api.run_queue("gpu").is_paused


def test_limit_is_set_and_lifted(api: InMemoryApi) -> None:
    queue = api.create_run_queue("gpu", "local-container")
    queue.set_concurrency_limit(4)
    assert api.run_queue("gpu").concurrency_limit == 4
    queue.set_concurrency_limit(None)
    assert api.run_queue("gpu").concurrency_limit is None


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_limit_that_is_none_is_refused(api: InMemoryApi, limit: Any) -> None:
    queue = api.create_run_queue("gpu", "local-container", concurrency=2)
    with pytest.raises(QueueError, match="1 or more"):
        queue.set_concurrency_limit(limit)
    assert api.run_queue("gpu").concurrency_limit == 2


def test_deleted_queue_takes_its_waiting_items_along(api: InMemoryApi) -> None:
    queue = api.create_run_queue("gpu", "local-container")
    launch_add_many([IMAGE, IMAGE], "gpu", api=api)
    assert queue.delete() == 2
    assert api.run_queues() == []
    with pytest.raises(NotFoundError):
        launch_add_many([IMAGE], "gpu", api=api)


def test_items_of_a_queue_are_its_own_newest_first(api: InMemoryApi) -> None:
    queue = api.create_run_queue("gpu", "local-container")
    api.create_run_queue("other", "local-container")
    launch_add_many([{**IMAGE, "name": "first"}, {**IMAGE, "name": "second"}], "gpu", api=api)
    launch_add_many([IMAGE], "other", api=api)
    assert [run.name for run in queue.items] == ["second", "first"]


def test_work_pool_that_is_no_launch_queue_is_reported(api: InMemoryApi) -> None:
    api.create_run_queue("gpu", "local-container")
    api.call(
        lambda session: session.server.create_pool(
            "bare", base_job_template={}, description=None, concurrency_limit=None
        )
    )
    with pytest.raises(QueueError, match="has no launch configuration"):
        api.run_queue("bare")
    assert [queue.name for queue in api.run_queues()] == ["gpu"]


def test_both_calls_that_write_a_queue_take_the_same_arguments_the_references_first() -> None:
    created, upserted = (inspect.signature(call) for call in (Api.create_run_queue, Api.upsert_run_queue))

    assert created == upserted
    reference = ["self", "name", "type", "entity", "prioritization_mode", "config", "template_variables"]
    assert list(created.parameters)[:7] == reference
    assert all(one.kind is one.KEYWORD_ONLY for one in list(created.parameters.values())[7:])


def test_queue_is_written_from_one_value_of_options(api: InMemoryApi) -> None:
    options = QueueOptions("gpu", "local-container", config={"memory": "1g"}, concurrency=2)
    api.write_run_queue(options, replace=False)

    with pytest.raises(QueueError, match="is there already"):
        api.write_run_queue(options, replace=False)
    changed = api.write_run_queue(dataclasses.replace(options, concurrency=3), replace=True)

    assert (changed.name, changed.concurrency_limit, changed.type) == ("gpu", 3, "local-container")


def test_argument_that_a_queue_has_not_is_refused_by_the_calls_name(api: InMemoryApi) -> None:
    with pytest.raises(TypeError, match=r"create_run_queue\(\) got an unexpected keyword argument 'memory'"):
        api.create_run_queue("gpu", "local-container", memory="1g")  # type: ignore[call-arg]
