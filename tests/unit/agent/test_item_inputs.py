"""Outputs of other items that a run's inputs name: fetched before its start, and removed at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect_launch.core.states import StateType
from prefect_launch.runners.base import RunPlan
from prefect_launch.server.values import Item
from prefect_launch.testing import Script
from tests.support.bench import Bench

MODEL = {"model.pt": b"weights", "tokenizer/vocab.txt": b"words", "other.bin": b"other"}


class Job:
    """The first run leaves a model; those after it look at their inputs when they are created."""

    def __init__(self, *exit_codes: int) -> None:
        self.exit_codes = list(exit_codes)
        self.seen: list[dict[str, bytes]] = []
        self.plans: list[RunPlan] = []

    def __call__(self, plan: RunPlan) -> Script:
        if not plan.input_files:
            return Script(outputs=MODEL)
        if plan.name not in [each.name for each in self.plans] and plan.input_dir.exists():
            self.plans.append(plan)
            found = (path for path in plan.input_dir.rglob("*") if path.is_file())
            self.seen.append({path.relative_to(plan.input_dir).as_posix(): path.read_bytes() for path in found})
        return Script(exit_code=self.exit_codes[len(self.seen) - 1] if self.exit_codes and self.seen else 0)


async def trained(bench: Bench) -> Item:
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    return item


def taking(item: Item, *paths: str) -> dict[str, Any]:
    named = {Path(path).stem: {"item": str(item.id), "path": path} for path in paths}
    return {"overrides": {"run_config": {"files": named, "lr": 0.1}}}


async def test_run_gets_the_files_that_its_inputs_name_and_their_paths(bench: Bench) -> None:
    bench.machine.script = job = Job()
    first = await trained(bench)
    (second,) = await bench.add(**taking(first, "model.pt", "tokenizer"))

    await bench.agent().loop(until_empty=True)

    assert (await bench.read(second.id)).state_type is StateType.COMPLETED
    assert job.seen == [{f"{first.id}/model.pt": b"weights", f"{first.id}/tokenizer/vocab.txt": b"words"}]
    (plan,) = job.plans
    inside = f"/launch/inputs/{first.id}"
    told = json.loads(plan.env["LAUNCH_CONFIG"])
    assert told == {"files": {"model": f"{inside}/model.pt", "tokenizer": f"{inside}/tokenizer"}, "lr": 0.1}
    assert not plan.input_dir.exists(), "they are in the job store"


async def test_next_attempt_gets_them_too(bench: Bench) -> None:
    bench.machine.script = job = Job(3, 0)
    first = await trained(bench)
    (second,) = await bench.add(**taking(first, "model.pt"), retries={"max": 1, "on": ["failed"], "delay": 0})

    await bench.agent().loop(until_empty=True)

    assert (await bench.read(second.id)).state_type is StateType.COMPLETED
    assert job.seen == [{f"{first.id}/model.pt": b"weights"}] * 2


async def test_item_whose_input_was_deleted_meanwhile_fails_with_the_reason(bench: Bench) -> None:
    bench.machine.script = Job()
    first = await trained(bench)
    (second,) = await bench.add(**taking(first, "model.pt"))
    await bench.server.delete_item(first.id)

    await bench.agent().loop(until_empty=True)

    ended = await bench.read(second.id)
    assert ended.state_type is StateType.FAILED
    assert f"An input names 'model.pt' of the item {first.id}, which is not on the server." in ended.message
