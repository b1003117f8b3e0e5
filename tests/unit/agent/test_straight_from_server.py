"""Items that somebody has made by the server's own API, past every check of ours: the agent refuses them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.server.values import Item, ItemDraft
from prefect_launch.spec.item_parameters import FORM_LABEL, JOB_LABEL
from tests.support.bench import QUEUE, RESOURCE, Bench
from tests.support.devices import agent_of

FORM = {FORM_LABEL: "job", JOB_LABEL: "acme/digits/e:v1"}


async def deploy(bench: Bench, labels: dict[str, Any]) -> UUID:
    return await bench.server.upsert_deployment(
        "e", pool=QUEUE, parameters={}, parameter_schema={}, description="", tags=(), labels=labels, enforce=False
    )


async def made(bench: Bench, deployment: UUID, parameters: dict[str, Any], labels: dict[str, Any]) -> Item:
    item = await bench.server.create_item(
        deployment, ItemDraft(name="raw", parameters=parameters, labels=labels, idempotency_key=uuid4().hex)
    )
    assert item is not None
    return item


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({JOB_LABEL: "acme/digits/wb:v0"}, "labels name acme/digits/wb, and its deployment starts acme/digits/e."),
        ({FORM_LABEL: ""}, "labels name no job, and its deployment starts acme/digits/e."),
    ],
)
async def test_item_of_a_form_whose_labels_say_another_job_is_refused(
    bench: Bench, labels: dict[str, Any], words: str
) -> None:
    item = await made(bench, await deploy(bench, FORM), {"docker": {"docker_image": "b"}}, labels)
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.FAILED)
    assert f"[agent] The item's {words}" in failed.message


async def test_item_of_a_queue_s_own_deployment_is_of_no_form(bench: Bench) -> None:
    (queued,) = await bench.add()
    assert queued.deployment_id is not None
    item = await made(bench, queued.deployment_id, {"docker": {"docker_image": "b"}}, FORM)
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.FAILED)
        await bench.until(queued, StateType.COMPLETED)
    assert "labels name acme/digits/e, and its deployment starts any job, by its parameters" in failed.message


async def test_older_version_of_the_deployment_s_job_goes_on_to_its_job(bench: Bench) -> None:
    item = await made(bench, await deploy(bench, FORM), {}, {JOB_LABEL: "acme/digits/e:v0"})
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.FAILED)
    assert "labels" not in failed.message
    assert "acme/digits/e" in failed.message  # No such job is there; it was looked for.


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"resource": "local-process"}, "runs its items on 'local-container', but the spec asks for 'local-process'"),
        ({"resource_args": {RESOURCE: {"gpus": -1}}}, "option 'gpus' is -1, and at most 1 is allowed on this queue"),
        ({"resource_args": {RESOURCE: {"gpus": 3}}}, "option 'gpus' is 3, and at most 1 is allowed on this queue"),
    ],
)
async def test_item_that_its_queue_refuses_fails_and_waits_for_no_device(
    bench: Bench, asked: dict[str, Any], words: str
) -> None:
    bench.api.upsert_run_queue(QUEUE, RESOURCE, config={"limits": {"gpus": 1}})
    (queued,) = await bench.add()
    assert queued.deployment_id is not None
    item = await made(bench, queued.deployment_id, {"docker": {"docker_image": "b"}, **asked}, {})
    async with bench.running(agent_of(bench, 0)):
        failed = await bench.until(item, StateType.FAILED)
    assert failed.message.startswith("[agent] ")
    assert words in failed.message


async def test_item_that_prefect_has_made_gets_the_name_that_its_parameters_give(bench: Bench) -> None:
    (queued,) = await bench.add()
    assert queued.deployment_id is not None
    item = await made(bench, queued.deployment_id, {"docker": {"docker_image": "b"}, "name": "d2"}, {})
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.COMPLETED)
    assert [found.id for found in await bench.server.list_items(names=["d2"])] == [item.id]
    assert (await bench.read(queued.id)).name == queued.name
