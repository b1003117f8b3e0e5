"""Folders that are nested deeper than Python's stack."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_launch.builds.context import read_context
from prefect_launch.core.disk_cache import size_of
from prefect_launch.core.filesystem import (
    copy_tree,
    make_folders,
    remove_tree,
    temporary_folder,
    temporary_folder_async,
    walk,
)
from prefect_launch.core.output_limits import MAX_DEPTH
from prefect_launch.environments.projects import CodeTree
from prefect_launch.environments.requirements import Requirements, stage
from prefect_launch.jobs.archive import pack, unpack
from prefect_launch.jobs.outputs import put_outputs
from prefect_launch.jobs.store import StoredFiles
from prefect_launch.runners.docker.files import put_code_in
from prefect_launch.sources.fetch import reject_links_outside
from prefect_launch.testing.engine import InMemoryDocker, InMemoryEngine

LEVELS = 3 * sys.getrecursionlimit()
#: Deeper than Python's stack, and with paths that the system still takes.
CODE_LEVELS = 1_200


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


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    """A job's code in folders that are nested deeper than Python's stack."""
    top = tmp_path / "code"
    inner = top.joinpath(*["d"] * CODE_LEVELS)
    make_folders(inner)
    (top / "train.py").write_text("")
    (inner / "deep.py").write_text("1")
    yield top
    for made in tmp_path.iterdir():
        remove_tree(made)


DEEP = "d/" * CODE_LEVELS + "deep.py"


async def test_deeply_nested_code_is_packed_and_unpacked_whole(code: Path, tmp_path: Path) -> None:
    packed = await pack(code)
    assert packed.paths == (DEEP, "train.py")
    await unpack(packed.content, tmp_path / "there", content_digest=packed.content_digest, job="deep")
    assert (tmp_path / "there" / DEEP).read_text() == "1"


async def test_deeply_nested_repository_is_looked_through_for_links(code: Path) -> None:
    await reject_links_outside(code, "https://host.example/repository.git")


def test_deeply_nested_build_context_is_read_with_its_ignore_file(code: Path) -> None:
    names = [entry.name for entry in read_context(code, limit=10_000).entries]
    assert names == [DEEP, "train.py"]
    (code / ".dockerignore").write_text("d\n")
    names = [entry.name for entry in read_context(code, limit=10_000, keep=[DEEP]).entries]
    assert names == [".dockerignore", DEEP, "train.py"]
    assert [entry.name for entry in read_context(code, limit=10_000).entries] == [".dockerignore", "train.py"]


def test_deeply_nested_local_requirement_is_read_and_staged(code: Path, tmp_path: Path) -> None:
    assert list(CodeTree(code).files("d")) == [DEEP]
    assert CodeTree(code).digest("d")
    stage(Requirements(local=("d",)), code, tmp_path / "staged")
    assert (tmp_path / "staged" / DEEP).is_file()


def test_deeply_nested_folder_is_copied(code: Path, tmp_path: Path) -> None:
    assert copy_tree(code, tmp_path / "copy") == 2
    assert (tmp_path / "copy" / DEEP).read_text() == "1"


async def test_deeply_nested_code_goes_into_a_container(code: Path) -> None:
    docker = InMemoryDocker(images={"box": {}})
    engine = InMemoryEngine(docker)
    container = await engine.create("c", {"Image": "box", "Labels": {}})
    (code / ".git").mkdir()
    (code / ".git" / "config").write_text("")
    await put_code_in(engine, container, code)
    assert sorted(docker.containers[container].files) == [f"/workspace/{DEEP}", "/workspace/train.py"]


async def test_temporary_folder_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    with temporary_folder(".scratch-", tmp_path) as folder:
        make_folders(folder.joinpath(*["d"] * CODE_LEVELS))
    assert not folder.exists()
    async with temporary_folder_async(".scratch-", tmp_path) as folder:
        make_folders(folder.joinpath(*["d"] * CODE_LEVELS))
    assert not folder.exists()
