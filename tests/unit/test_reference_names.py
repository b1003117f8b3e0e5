"""Names that code written for the reference's library uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from prefect_launch import ExecutionError, LaunchJob, RunQueue, create_job, errors
from prefect_launch.client.api import use_api
from prefect_launch.core.states import ItemState
from prefect_launch.errors import InvalidNameError, NotFoundError
from prefect_launch.jobs.model import DOCUMENT_FILE
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.spec.item_parameters import spec_of
from prefect_launch.testing import InMemoryApi


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi(entity="acme")
    api.create_run_queue("gpu", "local-container", entity="acme")
    with use_api(api):
        create_job("busybox:1", "image", name="train")
        yield api


def test_job_that_is_called_is_queued_with_its_inputs_and_the_entry_point_that_was_set(api: InMemoryApi) -> None:
    job = api.job("train")
    job.set_entrypoint(["python", "other.py"])

    run = job.call({"lr": 0.5}, queue="gpu", project="digits", priority="high", project_queue="model-registry")

    spec = spec_of(run.item)
    assert (spec.overrides.run_config, spec.overrides.entry_point) == ({"lr": 0.5}, ("python", "other.py"))
    assert (spec.job, run.project, run.priority, run.project_queue) == (
        "acme/default/train:v0",
        "digits",
        2,
        "model-registry",
    )
    assert api.job("train").changes == {}


def test_job_is_written_to_a_folder_with_its_code(api: InMemoryApi, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text("print(1)\n")
    create_job(str(code), "code", name="mine", entrypoint=["python", "main.py"])

    job = api.job("mine", path=tmp_path / "got")
    api.job("train", path=tmp_path / "image")

    assert (tmp_path / "got/main.py").read_text() == "print(1)\n"
    assert json.loads((tmp_path / "got" / DOCUMENT_FILE).read_text()) == json.loads(job.document.dump())
    assert [each.name for each in (tmp_path / "image").iterdir()] == [DOCUMENT_FILE]


def test_queue_is_made_by_its_class_and_found_by_its_entity_and_name(api: InMemoryApi) -> None:
    made = RunQueue.create("box", "local-process", entity="acme", prioritization_mode="V0")

    assert (made.name, made.type, made.prioritization_mode) == ("box", "local-process", "V0")
    assert api.run_queue("acme", "box").id == api.run_queue("box").id == made.id
    with pytest.raises(NotFoundError, match="of the entity 'acme', not of 'other'"):
        api.run_queue("other", "box")
    with pytest.raises(InvalidNameError, match="its entity and its name"):
        api.run_queue("acme", "default", "box")


def test_item_is_found_by_its_entity_project_queue_and_id(api: InMemoryApi) -> None:
    run = api.job("train").call({}, queue="gpu")

    assert api.queued_run("acme", "default", "gpu", run.id).id == api.queued_run(UUID(run.id)).id == run.id
    with pytest.raises(NotFoundError, match="on the queue 'box'"):
        api.queued_run("acme", "default", "box", run.id)
    with pytest.raises(InvalidNameError, match="entity, project, queue and id"):
        api.queued_run("gpu", run.id)


@pytest.mark.parametrize("error", [errors.BuildError, errors.ImagePullError, errors.UnreachableError])
def test_what_the_docker_engine_fails_at_is_caught_by_the_reference_s_name(error: type[Exception]) -> None:
    assert issubclass(error, errors.LaunchDockerError)
    assert issubclass(error, errors.LaunchError)


async def test_block_of_a_job_queues_it_and_gives_its_results(api: InMemoryApi, tmp_path: Path) -> None:
    block = LaunchJob(
        job="train", queue="gpu", inputs={"lr": 0.5}, config={"overrides": {"args": ["--fast"], "run_config": {"n": 1}}}
    )
    (tmp_path / "outputs.json").write_text('{"accuracy": 0.9}')

    launched = await block.trigger()

    overrides = spec_of(await launched.run.aitem()).overrides
    assert (overrides.run_config, overrides.args) == ({"n": 1, "lr": 0.5}, ("--fast",))

    async def complete(session: Session) -> None:
        for state in (ItemState.CLAIMED, ItemState.RUNNING):
            await session.server.propose(UUID(launched.run.id), State.of(state))
        await session.jobs.put_outputs(launched.run.id, 1, tmp_path)
        await session.server.propose(UUID(launched.run.id), State.of(ItemState.COMPLETED))

    await api.acall(complete)
    await launched.wait_for_completion()
    assert await launched.fetch_result() == {"accuracy": 0.9}


async def test_block_of_a_job_raises_when_its_run_failed(api: InMemoryApi) -> None:
    launched = await LaunchJob(job="train", queue="gpu").trigger()

    async def fail(session: Session) -> None:
        for state in (ItemState.CLAIMED, ItemState.FAILED):
            await session.server.propose(UUID(launched.run.id), State.of(state, "no such program"))

    await api.acall(fail)
    with pytest.raises(ExecutionError, match="no such program"):
        await launched.wait_for_completion()
