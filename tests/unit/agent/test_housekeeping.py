"""What goes from an agent's machine when it fills up, and what stays."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.housekeeping.caches import EnvironmentCache, GitCache
from prefect_launch.agent.housekeeping.housekeeper import Housekeeper, Report
from prefect_launch.core.disk_cache import size_of
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import format_size
from prefect_launch.errors import AgentConfigError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.server.values import Item
from prefect_launch.settings.agent_config import MachineSettings, parse_agent_config
from prefect_launch.testing import Script
from tests.support.bench import Bench, eventually

HOUR = 3600.0
MEBIBYTE = 1024 * 1024
CLAIM = "c1a10000-0000-4000-8000-000000000000"


def aged(folder: Path, hours: float, size: int = MEBIBYTE) -> Path:
    """Make a folder with a file of a size in it, last used some hours ago."""
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * size)
    set_age(folder, hours)
    return folder


def set_age(folder: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    beside = (path for path in folder.parent.iterdir() if path.is_file())  # What is noted of the item.
    for path in (*folder.iterdir(), folder, *beside):
        os.utime(path, (then, then))


async def keep_house(agent: LaunchAgent, *, dry_run: bool = False) -> Report:
    async with agent.connected():
        housekeeper = Housekeeper(agent.context, lambda: agent.running_items.held, settled_seconds=0)
        report = await housekeeper.once(dry_run=dry_run)
        assert report is not None
        return report


async def ended_items(bench: Bench, count: int) -> list[Item]:
    items = await bench.add(count)
    await bench.agent(max_jobs=count).loop(until_empty=True)
    return items


def folder_of(bench: Bench, item: Item, attempt: int = 1) -> Path:
    site = MachineSettings(home=bench.folder)
    return next(iter(site.run_dirs(str(item.id), attempt)), site.run_dir(str(item.id), attempt))


# --- work folders ---


async def test_work_folders_over_the_limit_go_the_one_last_used_longest_ago_first(bench: Bench) -> None:
    items = await ended_items(bench, 3)
    for item, hours in zip(items, (3, 1, 2), strict=True):
        (folder_of(bench, item) / "data").write_bytes(b"x" * MEBIBYTE)
        set_age(folder_of(bench, item), hours)
    report = await keep_house(bench.agent(keep_runs=2.5 * MEBIBYTE))
    assert [folder_of(bench, item).exists() for item in items] == [False, True, True]
    assert not folder_of(bench, items[0]).parent.exists()
    assert "1 work folders (1.0 MiB)" in report.describe()


@pytest.mark.parametrize("state", [ItemState.QUEUED, ItemState.CLAIMED])
async def test_folder_of_an_item_that_waits_or_is_in_work_stays(bench: Bench, state: ItemState) -> None:
    (item,) = await bench.add()
    if state is ItemState.CLAIMED:
        await bench.move(item, state)
    folder = aged(folder_of(bench, item), hours=100)
    await keep_house(bench.agent(keep_runs=0))
    assert folder.exists()


async def test_last_attempt_of_an_item_that_awaits_its_retry_stays(bench: Bench) -> None:
    bench.plays(Script(exit_code=1, outputs={"checkpoint": b"1"}))
    (item,) = await bench.add(retries={"max": 1, "on": ["failed"], "delay": 3600})
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.SCHEDULED)
        await eventually(lambda: bench.states(item), lambda states: "AwaitingRetry" in states)
    set_age(folder_of(bench, item), hours=100)
    await keep_house(bench.agent(keep_runs=0))
    assert (folder_of(bench, item) / "outputs" / "checkpoint").read_bytes() == b"1"


async def test_folder_of_an_item_that_the_server_does_not_know_stays_for_a_day(bench: Bench) -> None:
    young = aged(bench.folder / "runs" / str(uuid4()) / "1", hours=20)
    old = aged(bench.folder / "runs" / str(uuid4()) / "1", hours=30)
    await keep_house(bench.agent(keep_runs=0))
    assert (young.exists(), old.exists()) == (True, False)


async def test_folder_that_was_used_just_now_stays(bench: Bench) -> None:
    (item,) = await ended_items(bench, 1)
    await keep_house(bench.agent(keep_runs=0))
    assert folder_of(bench, item).exists()


async def test_what_is_no_work_folder_is_not_touched(bench: Bench) -> None:
    foreign = aged(bench.folder / "runs" / "my-notes" / "1", hours=100)
    await keep_house(bench.agent(keep_runs=0))
    assert foreign.exists()


async def test_folder_of_a_run_with_an_image_stays_while_its_engine_is_away(bench: Bench) -> None:
    (item,) = await ended_items(bench, 1)
    set_age(folder_of(bench, item), hours=100)
    bench.machine.reachable = False
    await keep_house(bench.agent(keep_runs=0))
    assert folder_of(bench, item).exists()
    bench.machine.reachable = True
    await keep_house(bench.agent(keep_runs=0))
    assert not folder_of(bench, item).exists()


async def test_dry_run_tells_what_would_go_and_removes_nothing(bench: Bench) -> None:
    (item,) = await ended_items(bench, 1)
    set_age(folder_of(bench, item), hours=100)
    report = await keep_house(bench.agent(keep_runs=0), dry_run=True)
    assert [entry.name for entry in report.caches[0].evicted] == [f"{item.id}/{folder_of(bench, item).name}"]
    assert folder_of(bench, item).exists()


async def test_no_limit_keeps_everything(bench: Bench) -> None:
    (item,) = await ended_items(bench, 1)
    set_age(folder_of(bench, item), hours=10_000)
    assert (await keep_house(bench.agent(keep_runs="none"))).is_nothing
    assert folder_of(bench, item).exists()


# --- finished runs ---


async def left_behind(bench: Bench, item: Item, script: Script, *, claim: str = CLAIM, agent: str = "gone") -> RunPlan:
    """Let an agent of another name have died after the end of an item's run, before it removed it."""
    from prefect_launch.planning.plan import save_plan

    plan = RunPlan(
        item_id=str(item.id),
        run_id="r",
        run_dir=MachineSettings(home=bench.folder).run_dir(str(item.id), 1, claim),
        labels={
            Labels.ITEM: str(item.id),
            Labels.ATTEMPT: "1",
            Labels.QUEUE: "gpu",
            Labels.AGENT: agent,
            Labels.CLAIM: claim,
        },
    )
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    save_plan(plan)
    bench.plays(script)
    agent_of_this = bench.agent()
    runner = agent_of_this._runners["local-container"]
    await runner.create(plan)
    await runner.start(plan.name)
    return plan


async def test_finished_run_of_an_item_that_has_ended_goes_with_its_log_kept(bench: Bench) -> None:
    (item,) = await bench.add()
    plan = await left_behind(bench, item, Script(log=(b"hello\n",)))
    await bench.machine.runs[plan.name].process.wait()  # type: ignore[union-attr]
    report = await keep_house(bench.agent())
    assert (report.finished, list(bench.machine.runs)) == ((), [plan.name])  # its item still waits
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.CRASHED)
    report = await keep_house(bench.agent(), dry_run=True)
    assert (report.finished, list(bench.machine.runs)) == ((plan.name,), [plan.name])
    report = await keep_house(bench.agent())
    assert (report.finished, list(bench.machine.runs)) == ((plan.name,), [])
    assert plan.log_path.read_bytes() == b"hello\n"


async def test_run_that_runs_is_left_to_its_agent_even_when_its_item_has_ended(bench: Bench) -> None:
    (item,) = await bench.add()
    plan = await left_behind(bench, item, Script(seconds=60))
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.CRASHED)
    await keep_house(bench.agent())
    assert bench.machine.running == [plan.name]


async def test_run_whose_labels_do_not_fit_the_plan_in_this_home_is_not_touched(bench: Bench) -> None:
    (item,) = await bench.add()
    plan = await left_behind(bench, item, Script())
    await bench.machine.runs[plan.name].process.wait()  # type: ignore[union-attr]
    text = (plan.run_dir / "plan.json").read_text()
    (plan.run_dir / "plan.json").write_text(text.replace(CLAIM, str(uuid4())))
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.CRASHED)
    await keep_house(bench.agent())
    assert list(bench.machine.runs) == [plan.name]


# --- environments ---


def environment(folder: Path, name: str, hours: float) -> Path:
    path = aged(folder / name, hours)
    (path / ".ready").touch()
    set_age(path, hours)
    return path


async def test_environments_over_the_limit_go_but_none_that_is_used_or_being_built(tmp_path: Path) -> None:
    old, used, built, young = (
        environment(tmp_path, name, hours) for name, hours in (("old", 9), ("used", 8), ("built", 7), ("young", 1))
    )
    cache = EnvironmentCache(tmp_path, MEBIBYTE, lambda: [used])
    with (tmp_path / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        reports = await cache.evict()
    assert [entry.name for entry in reports.evicted] == ["old", "young"]
    assert [path.exists() for path in (old, used, built, young)] == [False, True, True, False]


async def test_environment_that_was_taken_since_it_was_measured_stays(tmp_path: Path) -> None:
    path = environment(tmp_path, "one", hours=9)
    cache = EnvironmentCache(tmp_path, 0, list)
    (entry,) = cache._entries(dry_run=False)
    (path / ".ready").touch()
    assert cache.detach(entry) is None
    assert path.exists()


async def test_what_a_killed_clean_up_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = aged(tmp_path / ".gone-environments-x-1-1", hours=0)
    await EnvironmentCache(tmp_path, None, list).evict()
    assert not left.exists()


# --- copies of git remotes ---


async def test_git_copies_over_the_limit_go_but_none_that_git_holds(tmp_path: Path) -> None:
    old, held, young = (aged(tmp_path / name, hours) for name, hours in (("old", 9), ("held", 8), ("young", 0)))
    with (tmp_path / "held.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        reports = await GitCache(tmp_path, MEBIBYTE).evict()
    assert [entry.name for entry in reports.evicted] == ["old"]
    assert [path.exists() for path in (old, held, young)] == [False, True, True]


# --- the rest ---


async def test_one_process_keeps_a_house_at_a_time(bench: Bench) -> None:
    async with bench.agent().connected() as agent:
        with (bench.folder / "housekeeping.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert await Housekeeper(agent.context).once() is None


def test_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * MEBIBYTE)
    os.link(tmp_path / "a", tmp_path / "b")
    assert MEBIBYTE <= size_of(tmp_path) < 1.5 * MEBIBYTE


def test_limits_are_sizes_or_none() -> None:
    config = parse_agent_config({"keep_runs": "1.5g", "keep_environments": "none", "keep_git": 0, "keep_images": "2m"})
    assert (config.keep_runs, config.keep_environments) == (1.5 * 1024**3, None)
    assert (config.keep_git, config.keep_images) == (0, 2 * MEBIBYTE)
    with pytest.raises(AgentConfigError, match="'keep_runs' must be none or a size; got 'much'"):
        parse_agent_config({"keep_runs": "much"})


def test_amount_of_bytes_is_said_as_people_do() -> None:
    assert [format_size(amount) for amount in (0, 1023, 1536, 20 * 1024**3)] == ["0 B", "1023 B", "1.5 KiB", "20.0 GiB"]
