"""Items that were claimed again, and processes that were made for them before: only the newest claim's runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefect_launch.runners.base import Labels, RunPlan, note_claim
from prefect_launch.runners.process.runner import LocalProcessRunner
from tests.integration.runners.test_local_process import lives, make_plan, until_log_has


@pytest.fixture
def runner(tmp_path: Path) -> LocalProcessRunner:
    return LocalProcessRunner(tmp_path / "home")


def claimed(plan: RunPlan, claim: str) -> RunPlan:
    """The plan of the same attempt under a claim, laid out as an agent does it."""
    run_dir = plan.run_dir / f"1-{claim}"
    run_dir.mkdir()
    note_claim(run_dir, claim)
    return plan.model_copy(update={"run_dir": run_dir, "labels": {**plan.labels, Labels.CLAIM: claim}})


async def test_process_of_an_older_claim_is_never_started(runner: LocalProcessRunner, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", "echo ran >> ../ran"))
    old = claimed(plan, "old")
    await runner.prepare(old)
    late = await runner.create(old)
    claimed(plan, "new")  # Planned elsewhere, on the same home.
    await runner.start(late)
    end = await runner.watch(late, old)
    assert (end.succeeded, end.describe()) == (False, "not started: the item was claimed again")
    assert not (plan.run_dir / "ran").exists()


async def test_process_of_an_older_claim_that_runs_is_gone_before_the_newer_one_is_made(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", "echo pid $$; sleep 60"))
    old = claimed(plan, "old")
    await runner.prepare(old)
    await runner.start(await runner.create(old))
    pid = int((await until_log_has(old, "pid")).split()[1])
    new = claimed(plan, "new")
    handle = await LocalProcessRunner(tmp_path / "home").create(new)
    assert not lives(pid)
    [found] = await runner.find({Labels.ITEM: plan.item_id})
    assert (found.handle, found.labels[Labels.CLAIM]) == (handle, "new")


async def test_agent_of_an_older_claim_leaves_what_the_newer_one_made(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = make_plan(tmp_path, ("sh", "-c", "echo ran >> ../ran"))
    old, new = claimed(plan, "old"), claimed(plan, "new")
    await runner.prepare(new)
    handle = await runner.create(new)
    other = LocalProcessRunner(tmp_path / "home")
    await other.stop(str(old.run_dir), 0.1)
    await other.remove(str(old.run_dir))
    await runner.start(handle)
    assert (await runner.watch(handle, new)).succeeded


async def test_run_that_another_machine_made_in_the_same_home_is_left_alone(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    plan = claimed(make_plan(tmp_path, ("sh", "-c", "sleep 60")), "here")
    await runner.prepare(plan)
    await runner.create(plan)
    process = plan.run_dir / "process.json"
    told = json.loads(process.read_text())
    for host, boot_id, there in (("far", "other", 0), ("renamed", told["machine"]["boot_id"], 1)):
        process.write_text(json.dumps({**told, "machine": {"host": host, "boot_id": boot_id}}))
        assert len(await runner.find(plan.labels)) == there
