"""Which outputs are kept in a job store on a disk, and that they are kept whole or not at all."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from prefect_launch.core.filesystem import allocated_bytes
from prefect_launch.core.output_limits import OUTPUTS_FILE, OutputLimits
from prefect_launch.errors import InfrastructureError
from prefect_launch.jobs.outputs import copy_outputs, fetch_outputs, get_outputs, list_outputs, put_outputs, read_output
from prefect_launch.jobs.store import StorageBlock, StoredFiles

ITEM = str(uuid4())
MEBIBYTE = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> StoredFiles:
    return StoredFiles(LocalFileSystem(basepath=str(tmp_path / "store")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "outputs"
    folder.mkdir(parents=True)
    return folder


def make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b"begin")
        file.truncate(size)


async def test_sparse_output_costs_the_disk_its_data_only_on_both_ways(
    store: StoredFiles, folder: Path, tmp_path: Path
) -> None:
    make_sparse(folder / "model.bin", 3 * 1024 * MEBIBYTE)

    kept = await put_outputs(store, ITEM, 1, folder, limits=OutputLimits(max_bytes=MEBIBYTE))
    await get_outputs(store, ITEM, 1, tmp_path / "back")

    assert (kept.paths, bool(kept.left_out)) == (("model.bin",), False)
    for copy in (tmp_path / "store" / "outputs" / ITEM / "1" / "model.bin", tmp_path / "back" / "model.bin"):
        assert copy.stat().st_size == 3 * 1024 * MEBIBYTE
        assert allocated_bytes(copy.stat()) < MEBIBYTE


async def test_hole_counts_where_the_store_keeps_none(folder: Path) -> None:
    make_sparse(folder / "model.bin", 4 * MEBIBYTE)
    store = StoredFiles(RemoteFileSystem(basepath=f"memory://{uuid4().hex}"))

    kept = await put_outputs(store, ITEM, 1, folder, limits=OutputLimits(max_bytes=MEBIBYTE))

    assert kept.left_out.named == ("model.bin: it has 4.0 MiB",)


async def test_results_are_kept_before_all_other_files(store: StoredFiles, folder: Path) -> None:
    for name in ("a.txt", "outputs.json", "z.txt"):
        (folder / name).write_text("{}")

    kept = await put_outputs(store, ITEM, 1, folder, limits=OutputLimits(max_files=2))

    assert kept.paths == ("a.txt", "outputs.json")
    assert kept.left_out.named == ("z.txt: it is over the limit of 2 files",)


async def test_log_of_the_agent_is_kept_beside_outputs_that_are_all_too_many(
    store: StoredFiles, folder: Path, tmp_path: Path
) -> None:
    (folder / "a.txt").write_text("x")
    (folder / "job.log").write_text("the job's own file of that name")
    log = tmp_path / "run" / "job.log"
    log.write_text("log\n")

    kept = await put_outputs(store, ITEM, 1, folder, extra={"job.log": log}, limits=OutputLimits(max_files=0))

    assert kept.paths == ("job.log",)
    assert (tmp_path / "store" / "outputs" / ITEM / "1" / "job.log").read_text() == "log\n"
    assert kept.left_out.named == (
        "a.txt: it is over the limit of 0 files",
        "job.log: the run's log is kept under this name",
    )


async def test_what_is_no_regular_file_is_told_by_its_kind(
    store: StoredFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "folder").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)  # a socket's path has 107 characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        kept = await put_outputs(store, ITEM, 1, folder)

    assert kept.paths == ()
    assert kept.left_out.named == (
        "pipe: it is a pipe",
        "socket: it is a socket",
        "folder: it is a link that leads out of the outputs folder",
        "link: it is a link that leads out of the outputs folder",
    )


async def test_outputs_that_are_kept_again_take_the_place_of_the_old_ones(
    store: StoredFiles, folder: Path, tmp_path: Path
) -> None:
    (folder / "old").write_text("old")
    await put_outputs(store, ITEM, 1, folder)
    torn = tmp_path / "store" / "outputs" / ITEM / ".1.deadbeef.part"
    torn.mkdir()  # of an agent that was killed while it copied
    (folder / "old").unlink()
    (folder / "new").write_text("new")

    await put_outputs(store, ITEM, 1, folder)

    assert await get_outputs(store, ITEM, 1, tmp_path / "back") == ["new"]
    assert await list_outputs(store, ITEM, 1) == {"new": 3}
    assert sorted(path.name for path in torn.parent.iterdir()) == ["1", "files-1.json"]


class FoldersOnly:
    """A block of somebody's own, which gives a file as bytes, or a folder as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: list[str] = []

    def read_path(self, path: str) -> bytes:
        self.read.append(path)
        return (self.folder / path).read_bytes()

    def write_path(self, path: str, content: bytes) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(content)

    def get_directory(self, from_path: str | None = None, local_path: str | None = None) -> None:
        shutil.copytree(self.folder / str(from_path), str(local_path), dirs_exist_ok=True)

    def put_directory(self, local_path: str | None = None, to_path: str | None = None) -> None:
        shutil.copytree(str(local_path), self.folder / str(to_path), dirs_exist_ok=True)


async def test_some_files_come_from_a_block_of_any_type_and_none_is_read_into_memory(
    folder: Path, tmp_path: Path
) -> None:
    block, back = FoldersOnly(tmp_path / "store"), tmp_path / "back"
    store = StoredFiles(cast(StorageBlock, block))
    (folder / "deep").mkdir()
    (folder / "deep" / "model.pt").write_text("model")
    (folder / "other").write_text("other")
    await put_outputs(store, ITEM, 1, folder)
    back.mkdir()

    names = list(await list_outputs(store, ITEM, 1))
    await fetch_outputs(store, ITEM, 1, ["deep/model.pt"], back)

    assert names == ["deep/model.pt", "other"]
    assert [path.relative_to(back).as_posix() for path in back.rglob("*")] == ["deep", "deep/model.pt"]
    assert block.read == [f"outputs/{ITEM}/files-1.json"]


async def test_copy_that_fails_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    (folder / "file").write_text("x")
    (tmp_path / "store").write_text("a file where the store's folder should be")
    store = StoredFiles(LocalFileSystem(basepath=str(tmp_path / "store")))

    with pytest.raises(InfrastructureError, match="could not write") as refused:
        await put_outputs(store, ITEM, 1, folder)
    assert "that folder's permissions" in str(refused.value), "it is a local folder"
    assert "credentials" not in str(refused.value)

    assert [path.name for path in folder.parent.iterdir()] == ["outputs"]


async def test_folder_named_as_the_results_is_kept_and_is_no_fault_of_the_store(
    store: StoredFiles, folder: Path
) -> None:
    (folder / OUTPUTS_FILE).mkdir()
    (folder / OUTPUTS_FILE / "part").write_text("1")
    kept = await put_outputs(store, ITEM, 1, folder)

    assert kept.paths == (f"{OUTPUTS_FILE}/part",)
    assert await read_output(store, ITEM, 1, OUTPUTS_FILE) is None


async def test_what_a_block_says_of_a_fault_is_reported_with_one_full_stop() -> None:
    class Broken:
        def read_path(self, path: str) -> bytes:
            raise RuntimeError("The service is away.")

    with pytest.raises(InfrastructureError, match=r"The service is away\. Look at the storage block's address"):
        await read_output(StoredFiles(cast(StorageBlock, Broken())), ITEM, 1, OUTPUTS_FILE)


async def test_links_that_wandb_leaves_in_each_run_are_no_loss(store: StoredFiles, folder: Path) -> None:
    run = folder / "wandb" / "offline-run-1"
    (run / "logs").mkdir(parents=True)
    (run / "logs" / "debug.log").write_text("x")
    (run.parent / "latest-run").symlink_to(run.name)
    (run.parent / "debug.log").symlink_to("latest-run/logs/debug.log")
    (run.parent / "absolute").symlink_to(run)
    (run / "logs" / "debug-core.log").symlink_to("/home/me/.cache/wandb/logs/core-debug-1.log")

    kept = await put_outputs(store, ITEM, 1, folder)

    assert kept.paths == ("wandb/offline-run-1/logs/debug.log",)
    assert not kept.left_out


async def test_outputs_are_copied_for_the_next_attempt_as_they_are_kept(folder: Path, tmp_path: Path) -> None:
    make_sparse(folder / "sparse", 100 * MEBIBYTE)
    (folder / "big").write_bytes(b"x" * MEBIBYTE)
    (folder / "link").symlink_to("/etc/hostname")
    (folder / OUTPUTS_FILE).write_text("{}")
    target = tmp_path / "next"

    copied = await copy_outputs(folder, target, OutputLimits(max_bytes=MEBIBYTE // 2))

    assert copied.paths == (OUTPUTS_FILE, "sparse")
    assert [one.split(":")[0] for one in copied.left_out.named] == ["big", "link"]
    assert sorted(path.name for path in target.iterdir()) == [OUTPUTS_FILE, "sparse"]
    assert allocated_bytes((target / "sparse").stat()) < MEBIBYTE
    (target / OUTPUTS_FILE).write_text("changed")
    assert (folder / OUTPUTS_FILE).read_text() == "{}"


async def test_copy_for_the_next_attempt_ends_with_its_caller(folder: Path, tmp_path: Path) -> None:
    for number in range(100):
        (folder / str(number)).write_bytes(b"x" * MEBIBYTE)
    copying = asyncio.create_task(copy_outputs(folder, tmp_path / "next", OutputLimits()))
    await asyncio.sleep(0)  # It has begun.

    copying.cancel()
    await asyncio.wait({copying})

    def left() -> int:
        return len(list((tmp_path / "next").glob("*")))

    whole = left()
    assert copying.cancelled()
    assert whole < 100
    await asyncio.sleep(0.1)
    assert left() == whole, "nothing goes on behind it"
