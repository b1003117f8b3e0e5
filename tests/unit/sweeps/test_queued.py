"""Sweeps on a queue: what is made of one, and that nothing is made of a wrong one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.core.states import StateType
from prefect_launch.errors import LaunchError, QueueError, SpecError
from prefect_launch.server.values import SCHEDULER_FLOW, ItemDraft
from prefect_launch.spec.item_parameters import is_scheduler
from prefect_launch.sweeps.queued import ensure_sweep_deployment, queue_sweep
from prefect_launch.sweeps.sweep_run import config_of
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import GRID

SWEEP: dict[str, Any] = {"method": "grid", "parameters": GRID, "name": "rates"}


def given(**changes: Any) -> dict[str, Any]:
    return {"config": SWEEP, "queue": "cpu", "job": "train", "num_workers": 2, **changes}


async def test_sweep_is_an_item_of_the_queue_of_its_trials_of_a_flow_of_its_own(job_api: InMemoryApi) -> None:
    sweep_id = await queue_sweep(job_api, given())
    (item,) = await job_api.server.list_items(pool="cpu")
    assert (item.id, item.name, item.state_name) == (sweep_id, "rates", "Queued")
    assert (item.flow, item.work_queue_name) == (SCHEDULER_FLOW, "sweeps")
    assert is_scheduler(item)
    config = config_of(item)
    assert (config.launch.queue, config.scheduler.num_workers) == ("cpu", 2)
    assert config.job == "acme/digits/train:v0"  # at one version, whatever comes later
    assert item.labels["prefect-launch.entity"] == "acme"


async def test_two_sweeps_have_one_deployment_and_two_names(job_api: InMemoryApi) -> None:
    nameless = {key: value for key, value in SWEEP.items() if key != "name"}
    for _ in range(2):
        await queue_sweep(job_api, given(config=nameless))
    items = await job_api.server.list_items(pool="cpu")
    assert len({item.deployment_id for item in items}) == 1
    assert len({item.name for item in items}) == 2
    assert [one.name for one in await job_api.server.list_queues("cpu")][-1] == "sweeps"


async def test_sweep_that_is_started_from_its_form_has_its_trials_on_the_queue_of_the_form(
    job_api: InMemoryApi,
) -> None:
    async with job_api.open() as session:
        deployment = await ensure_sweep_deployment(session, "cpu")
    draft = ItemDraft(name="by hand", parameters={"config": SWEEP, "job": "train"}, idempotency_key="by-hand")
    made = await job_api.server.create_item(deployment, draft)
    assert made is not None
    item = await job_api.server.read_item(made.id)
    assert item is not None
    assert config_of(item).launch.queue == "cpu"
    wrong = draft.model_copy(update={"parameters": {"config": SWEEP, "run_cap": 0}, "idempotency_key": "wrong"})
    with pytest.raises(SpecError, match="run_cap"):
        await job_api.server.create_item(deployment, wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": {**SWEEP, "method": "gird"}},
        {"queue": None},
        {"queue": "cpuu"},
        {"job": "trian"},
        {"config": {**SWEEP, "parameters": {"lr": {"values": ["fast"]}}}},
    ],
)
async def test_wrong_sweep_leaves_nothing_behind(job_api: InMemoryApi, wrong: dict[str, Any]) -> None:
    with pytest.raises(LaunchError):
        await queue_sweep(job_api, given(**wrong))
    assert await job_api.server.list_items() == []
    assert await job_api.server.find_deployment("queue-cpu", flow=SCHEDULER_FLOW) is None
    assert "sweeps" not in [one.name for one in await job_api.server.list_queues("cpu")]


async def test_queue_whose_limit_the_scheduler_would_use_up_is_refused(job_api: InMemoryApi) -> None:
    await job_api.server.update_pool("cpu", concurrency_limit=1)
    with pytest.raises(QueueError, match="has a limit of 1 active items, and a sweep's scheduler is one of them"):
        await queue_sweep(job_api, given())
    assert await job_api.server.list_items() == []
    await job_api.server.update_pool("cpu", concurrency_limit=2)
    await queue_sweep(job_api, given())


# --- the command ---


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_create_prints_the_sweep_and_its_page(job_api: InMemoryApi, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(SWEEP))
    made = command("sweep", "create", str(file), "-q", "cpu", "-j", "train", "--num-workers", "3", "--run-cap", "2")
    assert made.exit_code == 0, made.output
    (item,) = asyncio.run(job_api.server.list_items(pool="cpu"))
    assert made.stdout.splitlines() == [
        f"sweep: {item.id}",
        f"page:  {job_api.ui_url}/runs/flow-run/{item.id}",
    ]
    config = config_of(item)
    assert (config.scheduler.num_workers, config.run_cap) == (3, 2)
    told = json.loads(command("sweep", "create", str(file), "-q", "cpu", "-j", "train", "--json").stdout)
    assert told["url"].endswith(told["id"])


def test_sweep_among_items_is_shown_as_one_and_cancelled_as_one(job_api: InMemoryApi) -> None:
    sweep_id = asyncio.run(queue_sweep(job_api, given()))
    (row,) = [line.split() for line in command("item", "list").stdout.splitlines()[1:]]
    assert row[1:6] == ["rates", "cpu", "queued", "medium", "sweep"]
    shown = command("item", "show", "rates")
    assert shown.exit_code == 0, shown.output
    assert "num_workers: 2" in shown.stdout
    told = json.loads(command("item", "show", "rates", "--json").stdout)
    assert (told["job"], told["sweep"]["job"]) == ("sweep", "acme/digits/train:v0")
    assert command("item", "cancel", "rates").exit_code == 0
    item = asyncio.run(job_api.server.read_item(sweep_id))
    assert item is not None
    assert item.state_type is StateType.CANCELLED
