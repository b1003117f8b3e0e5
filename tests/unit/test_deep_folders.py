"""Folders that are nested deeper than Python's stack."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_launch.deep_folders import remove_tree, walk
from prefect_launch.jobs.files import StoredFiles
from prefect_launch.jobs.outputs import put_outputs
from prefect_launch.output_limits import MAX_DEPTH
from prefect_launch.shelf import size_of

LEVELS = 3 * sys.getrecursionlimit()


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder that a job has nested without end; its paths are longer than the system takes, too."""
    top = tmp_path / "outputs"
    top.mkdir()
    (top / "loop").symlink_to("loop")
    (top / "kept").write_text("1")
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(LEVELS):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("file", os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)
    yield top
    remove_tree(top)  # pytest's own way of removing it fails


def test_deep_folder_is_gone_through_measured_and_removed(deep: Path) -> None:
    faults: list[OSError] = []
    seen = [folders for _, folders, _ in walk(deep, onerror=faults.append)]
    assert len(seen) > sys.getrecursionlimit()
    assert len(faults) == 1, "the path that is too long for the system"
    assert size_of(deep) > 0
    remove_tree(deep)
    assert not deep.exists()


async def test_outputs_that_are_nested_too_deep_are_left_out_and_told_of(deep: Path, tmp_path: Path) -> None:
    store = StoredFiles(LocalFileSystem(basepath=str(tmp_path / "store")))
    kept = await put_outputs(store, str(uuid4()), 1, deep)
    assert kept.paths == ("kept",)
    assert f"nested in more than {MAX_DEPTH} folders" in "".join(kept.left_out.named)
