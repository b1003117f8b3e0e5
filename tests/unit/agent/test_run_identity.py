"""What an agent takes for its own when it starts, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.planning.plan import load_plan
from prefect_launch.runners.base import PLAN_FILE, Labels, RunPlan
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import Bench


async def left_running(bench: Bench, **spec: Any) -> tuple[Item, RunPlan]:
    """An item that runs, with no agent at it, and its plan."""
    bench.plays(Script(seconds=60), Script())
    (item,) = await bench.add(**spec)
    await bench.leave_running(bench.agent(), item)
    (run,) = bench.machine.runs.values()
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    return item, run.plan


async def forge(bench: Bench, labels: dict[str, str], name: str | None = None) -> str:
    """Let somebody else's run be there, under these labels."""
    runner = InMemoryRunner(bench.folder, bench.machine)
    folder = bench.folder / "elsewhere"
    folder.mkdir(exist_ok=True)
    made = await runner.create(RunPlan(item_id=str(uuid4()), run_id="x", run_dir=folder, labels=labels))
    handle = name or f"launch-{labels[Labels.ITEM]}-{labels[Labels.ATTEMPT]}"
    bench.machine.runs[handle] = bench.machine.runs.pop(made)
    await runner.start(handle)
    return handle


async def test_claim_is_told_to_the_job_and_stands_beside_its_attempts(bench: Bench) -> None:
    item, plan = await left_running(bench)
    (claim,) = [state for state in await bench.server.read_states(item.id) if state.name == "Pending"]
    token = claim.state_details["transition_id"]
    assert (plan.env["LAUNCH_CLAIM"], plan.labels[Labels.CLAIM]) == (token, token)
    assert (plan.run_dir.parent / "claim").read_text() == token
    await bench.agent().loop(max_runtime_seconds=0.1)


async def test_run_with_copied_labels_and_another_name_is_left_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    item, plan = await left_running(bench)
    bench.plays(Script(seconds=60))
    copy = await forge(bench, plan.labels, "somebodys-container")
    await bench.move(item, ItemState.CANCELLING)
    await bench.agent().loop(until_empty=True)
    assert bench.machine.running == [copy]
    assert f"ignoring {copy}" in caplog.text


async def test_run_with_forged_labels_is_left_alone_with_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (item,) = await bench.add()
    labels = {Labels.ITEM: str(item.id), Labels.ATTEMPT: "1", Labels.AGENT: "box", Labels.QUEUE: "gpu"}
    bench.plays(Script(seconds=60))
    forged = [
        await forge(bench, {**labels, Labels.ITEM: str(uuid4()), Labels.CLAIM: claim}, f"forged-{number}")
        for number, claim in enumerate(("", str(uuid4()), "../../../etc", "not-a-uuid"))
    ]
    named = await forge(bench, {**labels, Labels.ITEM: str(uuid4()), Labels.CLAIM: str(uuid4())})
    bench.plays(Script())
    await bench.agent().loop(until_empty=True)
    assert sorted(bench.machine.running) == sorted([*forged, named])
    assert all(f"ignoring {one}" in caplog.text for one in [*forged, named])
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"item_id": 3}', None])
async def test_item_whose_plan_is_broken_comes_back_and_others_go_on(bench: Bench, broken: str | None) -> None:
    item, plan = await left_running(bench, retries={"delay": 0})
    path = plan.run_dir / PLAN_FILE
    path.unlink() if broken is None else path.write_text(broken)
    (other,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    for one, attempts in ((item, 2), (other, 1)):
        found = await bench.read(one.id)
        assert (found.state_type, found.run_count) == (StateType.COMPLETED, attempts)
    assert bench.machine.runs == {}


def test_plan_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_bytes(b"\xff\xfe")
    assert load_plan(tmp_path) is None


async def test_run_of_an_earlier_claim_of_the_same_attempt_is_stopped_not_taken_up(bench: Bench) -> None:
    item, plan = await left_running(bench)
    # As when its agent was cut off before it could write Running, and another agent has claimed the item since.
    await bench.server.propose(item.id, State.of(ItemState.QUEUED), force=True)
    await bench.move(item, ItemState.CLAIMED)
    item_now = await bench.read(item.id)
    bench.server._store.items[item.id].item = item_now.model_copy(update={"run_count": 0})
    await bench.move(item, ItemState.RUNNING)
    await bench.agent().loop(max_runtime_seconds=0.2)
    assert bench.machine.removed == [plan.name]
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
