"""The index of a user's runs on one machine: found from any home, and only what this user has made."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder
from prefect_launch.runners.process.process_index import ProcessIndex, machine, state_folder

ITEM = "6f0c2bd2-8a8e-4b9f-9a2b-0d8f6f8b5b11"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return state_folder()


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A home of prefect-launch."""
    return tmp_path / "one"


@pytest.fixture
def other(tmp_path: Path) -> ProcessIndex:
    """The index as an agent of another home has it."""
    return ProcessIndex(tmp_path / "other")


def make_plan(home: Path, item: str = ITEM, attempt: int = 1, claim: str | None = None) -> RunPlan:
    token = str(uuid4()) if claim is None else claim
    run_dir = home / "runs" / item / f"{attempt}-{token[:8]}"
    run_dir.mkdir(parents=True)
    labels = {Labels.ITEM: item, Labels.ATTEMPT: str(attempt), **({Labels.CLAIM: token} if token else {})}
    return RunPlan(item_id=item, attempt=attempt, run_id="r", run_dir=run_dir, labels=labels)


def handles(index: ProcessIndex) -> list[str]:
    return [found.handle for found in index.find_beside(ITEM)]


def test_run_of_another_home_is_found_with_its_attempt_and_claim(one: Path, other: ProcessIndex) -> None:
    plan = make_plan(one, attempt=2)
    ProcessIndex(one).add(plan)
    ProcessIndex(one).add(plan)
    [found] = other.find_beside(ITEM)
    assert (found.handle, found.labels) == (str(plan.run_dir), plan.labels)


def test_runs_of_other_items_are_not_found(one: Path, other: ProcessIndex) -> None:
    ProcessIndex(one).add(make_plan(one, item=str(uuid4())))
    assert other.find_beside(ITEM) == []


def test_run_that_has_ended_is_not_found(one: Path, other: ProcessIndex) -> None:
    plan = make_plan(one)
    ProcessIndex(one).add(plan)
    (plan.run_dir / supervisor.EXIT).write_text("{}")
    assert other.find_beside(ITEM) == []


def test_run_whose_files_are_broken_is_found(one: Path, other: ProcessIndex) -> None:
    plan = make_plan(one)
    ProcessIndex(one).add(plan)
    for name in (supervisor.PROCESS, supervisor.SUPERVISOR, supervisor.STARTED):
        (plan.run_dir / name).write_text("{")
    assert handles(other) == [str(plan.run_dir)]


def test_run_is_removed_and_no_other(one: Path, other: ProcessIndex, tmp_path: Path) -> None:
    removed, kept = make_plan(one), make_plan(tmp_path / "other")
    ProcessIndex(one).add(removed)
    other.add(kept)
    ProcessIndex(one).remove(RunFolder(removed.run_dir))
    assert handles(other) == [str(kept.run_dir)]


def test_run_that_is_under_no_claim_is_nobody_elses(one: Path, other: ProcessIndex) -> None:
    plan = make_plan(one, claim="")
    ProcessIndex(one).add(plan)
    assert other.find_beside(ITEM) == []


@pytest.mark.parametrize("key", ["boot_id", "pid_namespace"])
def test_run_of_an_earlier_boot_or_of_another_container_is_not_found(one: Path, other: ProcessIndex, key: str) -> None:
    plan = make_plan(one)
    ProcessIndex(one).add(plan)
    RunFolder(plan.run_dir).write(supervisor.PROCESS, {"machine": machine()})
    assert handles(other) == [str(plan.run_dir)]
    RunFolder(plan.run_dir).write(supervisor.PROCESS, {"machine": {**machine(), key: "another"}})
    assert other.find_beside(ITEM) == []


def test_home_that_is_gone_is_dropped_from_the_list_and_those_of_another_machine_are_not(
    one: Path, other: ProcessIndex, state: Path
) -> None:
    ProcessIndex(one).add(make_plan(one))
    elsewhere = state / "homes" / "another-machine"
    elsewhere.mkdir()
    (elsewhere / "x").symlink_to(one)
    shutil.rmtree(one)
    assert other.find_beside(ITEM) == []
    assert [link.is_symlink() for link in (state / "homes").glob("*/*")] == [True]


def test_home_whose_list_cannot_be_read_hides_no_other(one: Path, other: ProcessIndex, tmp_path: Path) -> None:
    plan = make_plan(one)
    ProcessIndex(one).add(plan)
    broken = tmp_path / "broken"
    ProcessIndex(broken).add(make_plan(broken))
    shutil.rmtree(broken / "processes")
    (broken / "processes").symlink_to(broken / "processes")
    assert handles(other) == [str(plan.run_dir)]


def test_link_to_a_folder_that_was_removed_under_its_job_stays(one: Path, other: ProcessIndex) -> None:
    plan = make_plan(one)
    ProcessIndex(one).add(plan)
    plan.run_dir.rmdir()
    assert handles(other) == [str(plan.run_dir)]


@pytest.mark.parametrize("is_open", [False, True])
def test_list_of_homes_that_is_not_this_users_alone_is_not_used_and_that_is_said_once(
    one: Path, state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_open: bool
) -> None:
    ProcessIndex(one).add(make_plan(one))
    [folder] = (state / "homes").iterdir()
    if is_open:
        folder.chmod(0o777)
    else:
        folder.rename(tmp_path / "foreign")
        folder.symlink_to(tmp_path / "foreign")
    index, plan = ProcessIndex(tmp_path / "two"), make_plan(tmp_path / "two")
    with caplog.at_level(logging.DEBUG):
        assert index.find_beside(ITEM) == []
        index.add(plan)
        assert handles(index) == [str(plan.run_dir)]
        index.remove(RunFolder(plan.run_dir))
    assert len(list(folder.iterdir())) == 1
    assert caplog.text.count("is not known") == 1


def test_list_of_homes_that_cannot_be_made_leaves_each_home_by_itself(
    one: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.parent.touch()
    index, plan = ProcessIndex(one), make_plan(one)
    with caplog.at_level(logging.DEBUG):
        index.add(plan)
        assert handles(index) == [str(plan.run_dir)]
        index.remove(RunFolder(plan.run_dir))
        assert handles(index) == []
    assert caplog.text.count("is not known") == 1


def test_index_is_read_while_another_agent_removes_runs(one: Path) -> None:
    over, plans = threading.Event(), [make_plan(one, attempt=number + 1) for number in range(50)]

    def churn() -> None:
        index = ProcessIndex(one)
        while not over.is_set():
            for plan in plans:
                index.add(plan)
            for plan in plans:
                index.remove(RunFolder(plan.run_dir))

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(200):
            assert {*handles(ProcessIndex(one))} <= {str(plan.run_dir) for plan in plans}
    finally:
        over.set()
        churning.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_another_user_is_left_alone(one: Path, other: ProcessIndex) -> None:
    plan = make_plan(one)
    ProcessIndex(one).add(plan)
    os.chown(plan.run_dir, 12345, 12345)
    assert other.find_beside(ITEM) == []


def test_state_folder_is_the_users_own_whatever_home_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    own = state_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == own
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "prefect-launch"
