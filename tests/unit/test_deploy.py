"""Deployments of jobs, queues as people find them in the UI, and the block types that Prefect finds."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from prefect.blocks.core import Block

import prefect_launch
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.queues.deployment import deploy_job
from prefect_launch.server.values import ItemDraft
from prefect_launch.testing import InMemoryApi


@pytest.fixture
def api(tmp_path: Path) -> InMemoryApi:
    api = InMemoryApi(entity="acme", project="digits")
    api.create_run_queue("cpu", "local-process")
    (tmp_path / "train.py").write_text("print(1)")
    create_job(str(tmp_path), "code", name="train", entrypoint="python train.py", api=api)
    return api


def test_run_of_a_deployment_has_the_tags_of_a_queued_one(api: InMemoryApi) -> None:
    (run,) = launch_add_many([{"job": "train"}], "cpu", api=api)
    _, deployment, _ = api.call(lambda session: deploy_job(session, "train", "cpu"))
    draft = ItemDraft(name="by-hand", parameters={}, idempotency_key="by-hand")
    started = api.call(lambda session: session.server.create_item(deployment, draft))

    assert started is not None
    assert set(started.tags) == set(run.item.tags)
    assert set(run.item.tags) >= {"launch", "queue:cpu", "job:train", "version:v0", "entity:acme", "project:digits"}


def test_description_of_a_queue_tells_how_to_start_an_agent_unless_somebody_wrote_another(api: InMemoryApi) -> None:
    async def description() -> str:
        pool = await api.server.read_pool("cpu")
        assert pool is not None
        return pool.description or ""

    assert "'prefect-launch agent start -q cpu'" in api.call(lambda session: description())
    api.upsert_run_queue("cpu", "local-container")
    assert "on local-container." in api.call(lambda session: description())
    api.call(lambda session: api.server.update_pool("cpu", description="Ask Ada."))
    api.upsert_run_queue("cpu", "local-process")
    assert api.call(lambda session: description()) == "Ask Ada."


def test_block_types_are_found_in_the_package_as_prefect_block_register_looks_for_them() -> None:
    found = {name for name, value in inspect.getmembers(prefect_launch) if Block.is_block_class(value)}

    assert found == {"JobStore", "LaunchAgentConfig", "LaunchJob"}
