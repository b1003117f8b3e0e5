"""What comes back after an end without success, how often, and what it finds."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent.item.finish import count_retries
from prefect_launch.client.create_job import acreate_job
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ImagePullError, InfrastructureError, NotFoundError, SpecError
from prefect_launch.runners.base import RunPlan
from prefect_launch.server.values import Item, State
from prefect_launch.testing import Script
from tests.support.bench import Bench, eventually


def rule(*on: str, most: int = 2, **more: Any) -> dict[str, Any]:
    return {"max": most, "on": list(on), "delay": 0, **more}


@pytest.mark.parametrize(
    ("cause", "script"),
    [
        ("failed", Script(exit_code=3)),
        ("failed", Script(missing=True)),
        ("oom", Script(oom_killed=True)),
        ("crashed", Script(prepare_error=ImagePullError("the registry is away"))),
        ("crashed", Script(create_error=InfrastructureError("the engine is away"))),
        ("crashed", Script(start_error=InfrastructureError("the engine is away"))),
    ],
)
async def test_item_comes_back_for_the_causes_of_its_rule(bench: Bench, cause: str, script: Script) -> None:
    bench.plays(script)
    (item,) = await bench.add(retries=rule(cause))
    agent = bench.agent()
    async with bench.running(agent):
        await bench.until(item, StateType.FAILED, StateType.CRASHED)
    tries = [name for name in await bench.states(item) if name == "AwaitingRetry"]
    assert len(tries) == 2


async def test_item_that_comes_back_and_succeeds_is_completed(bench: Bench) -> None:
    bench.plays(Script(exit_code=3), Script())
    (item,) = await bench.add(retries=rule("failed"), run_id="mine", priority="high")
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert (found.state_type, found.run_count) == (StateType.COMPLETED, 2)
    assert found.work_queue_name == item.work_queue_name == "high"
    assert found.labels["prefect-launch.run-id"] == "mine"
    assert bench.machine.started == [f"launch-{item.id}-1", f"launch-{item.id}-2"]


async def test_second_attempt_is_told_that_it_is_one(bench: Bench) -> None:
    seen: list[tuple[str | None, ...]] = []

    def script(plan: RunPlan) -> Script:
        told = tuple(plan.env.get(name) for name in ("LAUNCH_ATTEMPT", "WANDB_RESUME", "WANDB_RUN_ID"))
        if told not in seen:
            seen.append(told)
        return Script(exit_code=3 if plan.attempt == 1 else 0)

    bench.machine.script = script
    await bench.add(retries=rule("failed"), run_id="mine")
    await bench.agent().loop(until_empty=True)
    assert seen == [("1", None, "mine"), ("2", "allow", "mine")]


@pytest.mark.parametrize("script", [Script(exit_code=3), Script(oom_killed=True), Script(missing=True)])
async def test_by_default_what_the_job_did_wrong_does_not_come_back(bench: Bench, script: Script) -> None:
    bench.plays(script)
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    assert "AwaitingRetry" not in await bench.states(item)


async def test_by_default_a_run_that_was_lost_comes_back(bench: Bench) -> None:
    bench.plays(Script(seconds=60), Script())
    (item,) = await bench.add(retries={"delay": 0.05})
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
        bench.machine.lose(f"launch-{item.id}-1")
        await bench.until(item, StateType.COMPLETED)
    assert await bench.states(item) == [
        "Queued",
        "Pending",
        "Running",
        "AwaitingRetry",
        "Pending",
        "Running",
        "Completed",
    ]


async def test_item_waits_for_its_time_and_says_when_and_why(bench: Bench) -> None:
    bench.plays(Script(exit_code=3))
    (item,) = await bench.add(retries=rule("failed", delay=600))
    async with bench.running(bench.agent()):
        found = await bench.until(item, StateType.SCHEDULED)
        found = await wait_for_retry(bench, item)
    due = found.next_scheduled_start_time
    assert due is not None
    assert 590 < (due - datetime.now(timezone.utc)).total_seconds() <= 600
    assert "exit code 3" in found.message
    assert "retry 1 of 2" in found.message
    assert found.infrastructure_pid is None
    assert bench.machine.runs == {}


async def wait_for_retry(bench: Bench, item: Item) -> Any:
    return await eventually(lambda: bench.read(item.id), lambda found: found.state_name == "AwaitingRetry")


async def test_item_that_waits_for_its_retry_is_cancelled_at_once(bench: Bench) -> None:
    bench.plays(Script(exit_code=3))
    (item,) = await bench.add(retries=rule("failed", delay=600))
    async with bench.running(bench.agent()):
        await wait_for_retry(bench, item)
        await bench.server.propose(item.id, State.of(ItemState.CANCELLING))
        assert (await bench.read(item.id)).state_type is StateType.CANCELLED


async def test_run_that_was_stopped_does_not_come_back(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(retries=rule("failed", "crashed", "lost", "oom"))
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
        await bench.move(item, ItemState.CANCELLING)
        await bench.until(item, StateType.CANCELLED)


async def test_spec_that_is_refused_does_not_come_back(bench: Bench) -> None:
    bench.plays(Script(create_error=SpecError("no such option")))
    (item,) = await bench.add(retries=rule("failed", "crashed"))
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.FAILED


async def test_jobs_rule_applies_to_items_that_have_none(bench: Bench) -> None:
    job = await acreate_job("busybox:1", "image", name="flaky", retries=rule("failed", most=1), api=bench.api)
    bench.plays(Script(exit_code=3))
    items = [*await bench.add(docker=None, job=job.reference), *await bench.add(docker=None, job="flaky", retries=0)]
    await bench.agent().loop(until_empty=True)
    assert [(await bench.states(item)).count("AwaitingRetry") for item in items] == [1, 0]


async def test_job_with_a_wrong_rule_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="Unknown cause of a retry 'boom'"):
        await acreate_job("busybox:1", "image", retries={"on": ["boom"]}, api=bench.api)


# --- the outputs of the last attempt ---


async def test_second_attempt_finds_the_outputs_of_the_first(bench: Bench) -> None:
    found: dict[int, list[str]] = {}

    def script(plan: RunPlan) -> Script:
        there = [path for path in plan.output_dir.rglob("*") if path.is_file()] if plan.output_dir.exists() else []
        found.setdefault(plan.attempt, sorted(path.relative_to(plan.output_dir).as_posix() for path in there))
        if plan.attempt == 1:
            return Script(exit_code=3, outputs={"checkpoints/1.pt": b"1", "outputs.json": b"{}"})
        return Script()

    bench.machine.script = script
    await bench.add(retries=rule("failed"))
    await bench.agent().loop(until_empty=True)
    assert found == {1: [], 2: ["checkpoints/1.pt", "outputs.json"]}


async def test_attempt_on_another_machine_finds_the_outputs_in_the_store(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a")
    bench.plays(Script(exit_code=3, outputs={"model.pt": b"42"}), Script())
    (item,) = await bench.add(retries=rule("failed", delay=600))
    async with bench.running(bench.agent()):
        await wait_for_retry(bench, item)
    await bench.move(item, ItemState.CANCELLED, ItemState.QUEUED)
    bench.folder = tmp_path / "b"
    await bench.agent("other").loop(until_empty=True)
    (kept,) = (tmp_path / "b" / "runs" / str(item.id)).glob("2-*/outputs")
    assert [path.name for path in kept.iterdir()] == ["model.pt"]


# --- counting ---


def states(*names: str) -> list[State]:
    ends = {"Failed": StateType.FAILED, "Crashed": StateType.CRASHED, "Cancelled": StateType.CANCELLED}
    return [State(type=ends.get(name, StateType.SCHEDULED), name=name) for name in names]


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["Queued"], 0),
        (["Queued", "AwaitingRetry", "AwaitingRetry"], 2),
        (["Queued", "AwaitingRetry", "Queued", "AwaitingRetry"], 2),  # given back after a claim: no new beginning
        (["Queued", "AwaitingRetry", "Failed", "Queued", "AwaitingRetry"], 1),  # put back by hand: one
    ],
)
def test_retries_are_counted_since_somebody_put_the_item_there(names: list[str], count: int) -> None:
    assert count_retries(states(*names)) == count
