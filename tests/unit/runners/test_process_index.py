"""The register of a user's runs on one machine: found from any home, and only what this user has made."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder
from prefect_launch.runners.process.process_index import MachineIndex, state_folder

ITEM = "6f0c2bd2-8a8e-4b9f-9a2b-0d8f6f8b5b11"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "running"


def make_plan(home: Path, item: str = ITEM, attempt: int = 1, claim: str | None = None) -> RunPlan:
    token = str(uuid4()) if claim is None else claim
    run_dir = home / "runs" / item / f"{attempt}-{token[:8]}"
    run_dir.mkdir(parents=True)
    labels = {Labels.ITEM: item, Labels.ATTEMPT: str(attempt), **({Labels.CLAIM: token} if token else {})}
    return RunPlan(item_id=item, attempt=attempt, run_id="r", run_dir=run_dir, labels=labels)


def link_of(root: Path, plan: RunPlan) -> Path:
    [link] = root.glob(f"*/*/{plan.name}-*")
    return link


def test_run_of_another_home_is_found_with_its_attempt_and_claim(root: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one", attempt=2)
    MachineIndex(root).add(plan)
    MachineIndex(root).add(plan)
    [found] = MachineIndex(root).find(ITEM)
    assert (found.handle, found.labels) == (str(plan.run_dir), plan.labels)


def test_runs_of_other_items_are_not_found(root: Path, tmp_path: Path) -> None:
    MachineIndex(root).add(make_plan(tmp_path / "one", item=str(uuid4())))
    assert MachineIndex(root).find(ITEM) == []


def test_run_that_has_ended_is_not_found(root: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one")
    MachineIndex(root).add(plan)
    (plan.run_dir / supervisor.EXIT).write_text("{}")
    assert MachineIndex(root).find(ITEM) == []


def test_run_whose_files_are_broken_is_found(root: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one")
    MachineIndex(root).add(plan)
    for name in (supervisor.PROCESS, supervisor.SUPERVISOR, supervisor.STARTED):
        (plan.run_dir / name).write_text("{")
    assert [found.handle for found in MachineIndex(root).find(ITEM)] == [str(plan.run_dir)]


def test_run_is_struck_out_and_no_other(root: Path, tmp_path: Path) -> None:
    register = MachineIndex(root)
    one, other = make_plan(tmp_path / "one"), make_plan(tmp_path / "other")
    register.add(one)
    register.add(other)
    register.remove(RunFolder(one.run_dir))
    assert [found.handle for found in register.find(ITEM)] == [str(other.run_dir)]


def test_run_that_is_under_no_claim_is_not_entered(root: Path, tmp_path: Path) -> None:
    register = MachineIndex(root)
    register.add(make_plan(tmp_path / "one", claim=""))
    assert list(root.glob("*/*/*")) == []


def test_register_of_an_earlier_boot_is_dropped_and_that_of_another_machine_is_not(root: Path, tmp_path: Path) -> None:
    here = root / os.uname().nodename
    earlier, elsewhere = here / "an-earlier-boot-1", root / "another-machine" / "boot-1"
    for folder in (earlier, elsewhere):
        folder.mkdir(parents=True)
        (folder / f"launch-{ITEM}-1-x").symlink_to(tmp_path)
    assert MachineIndex(root).find(ITEM) == []
    assert (earlier.exists(), elsewhere.exists()) == (False, True)


def test_link_to_a_folder_that_is_gone_is_dropped_at_the_next_start(root: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one")
    MachineIndex(root).add(plan)
    link = link_of(root, plan)
    plan.run_dir.rmdir()
    assert MachineIndex(root).find(ITEM) == []
    assert not link.is_symlink()


def test_link_to_a_folder_that_was_removed_under_its_job_stays(root: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one")
    MachineIndex(root).add(plan)
    plan.run_dir.rmdir()
    job = subprocess.Popen(["sleep", "60"], env={**os.environ, "LAUNCH_OUTPUT_DIR": str(plan.output_dir)})
    try:
        assert [found.handle for found in MachineIndex(root).find(ITEM)] == [str(plan.run_dir)]
    finally:
        job.kill()
        job.wait()


@pytest.mark.parametrize("is_open", [False, True])
def test_register_that_is_not_this_users_alone_is_not_used_and_that_is_said_once(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_open: bool
) -> None:
    plan = make_plan(tmp_path / "one")
    MachineIndex(root).add(plan)
    folder = link_of(root, plan).parent
    if is_open:
        folder.chmod(0o777)
    else:
        folder.rename(tmp_path / "foreign")
        folder.symlink_to(tmp_path / "foreign")
    register = MachineIndex(root)
    with caplog.at_level(logging.DEBUG):
        assert register.find(ITEM) == []
        register.add(make_plan(tmp_path / "two"))
        register.remove(RunFolder(plan.run_dir))
    assert len(list(folder.iterdir())) == 1
    assert caplog.text.count("is not known") == 1


def test_register_that_cannot_be_made_leaves_each_home_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    register = MachineIndex(tmp_path / "file" / "running")
    plan = make_plan(tmp_path / "one")
    with caplog.at_level(logging.DEBUG):
        register.add(plan)
        assert register.find(ITEM) == []
        register.remove(RunFolder(plan.run_dir))
    assert caplog.text.count("is not known") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_another_user_is_left_alone(root: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "one")
    MachineIndex(root).add(plan)
    os.chown(plan.run_dir, 12345, 12345)
    assert MachineIndex(root).find(ITEM) == []


def test_state_folder_is_the_users_own_whatever_home_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    own = state_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == own
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "prefect-launch"
