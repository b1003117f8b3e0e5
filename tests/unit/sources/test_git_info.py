"""What is told of a work tree: of the folder that was asked for, and by git alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefect_launch.sources.git_info import describe_work_tree
from tests.support.git_repository import Repository


async def test_folder_in_no_repository_has_nothing_to_tell(tmp_path: Path) -> None:
    assert await describe_work_tree(tmp_path) is None
    assert await describe_work_tree(tmp_path / "gone") is None


async def test_program_that_the_work_tree_names_as_its_monitor_does_not_run(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    repository.commit(main="x")
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    monitor.chmod(0o755)
    repository.git("config", "core.fsmonitor", str(monitor))

    told = await describe_work_tree(repository.path)

    assert told is not None
    assert not told["dirty"]
    assert sorted(os.listdir(tmp_path)) == ["monitor", "repo"]


async def test_work_tree_asked_in_another_repositorys_hook_is_the_one_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = Repository(tmp_path / "mine"), Repository(tmp_path / "other")
    commit = mine.commit(main="x")
    other.commit(main="y")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.path))

    told = await describe_work_tree(mine.path)

    assert told is not None
    assert told["commit"] == commit
