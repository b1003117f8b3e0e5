"""Deep folders, sparse files and full disks."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem

from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.outcome import Category, diagnose, outcome_of_error, outcome_of_exit
from prefect_launch.builds.build_engine import BuildEngine
from prefect_launch.builds.context import read_context
from prefect_launch.builds.full_disks import explaining_full_disks
from prefect_launch.core.disk_cache import size_of
from prefect_launch.core.filesystem import (
    CopyStoppedError,
    HolesWriter,
    allocated_bytes,
    copy_file,
    copy_tree,
    data_bytes,
    has_room,
    is_disk_full,
    make_folders,
    remove_tree,
    temporary_folder,
    temporary_folder_async,
    walk,
)
from prefect_launch.core.output_limits import MAX_DEPTH
from prefect_launch.core.states import ItemState
from prefect_launch.environments.projects import CodeTree
from prefect_launch.environments.requirements import Requirements, stage
from prefect_launch.errors import BuildDiskError, BuildError, InfrastructureError, RegistryError, SourceError
from prefect_launch.jobs.archive import pack, unpack
from prefect_launch.jobs.outputs import put_outputs
from prefect_launch.jobs.store import StoredFiles
from prefect_launch.runners.base import ExitStatus, Phase
from prefect_launch.runners.docker import logs as engine_logs
from prefect_launch.runners.docker.files import put_code_in
from prefect_launch.runners.log_streams import CopiedLog
from prefect_launch.sources.fetch import reject_links_outside
from prefect_launch.spec.scheduling import Cause
from prefect_launch.testing import InMemoryDocker, InMemoryEngine, InMemoryServer, Script

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


MEBIBYTE = 1024 * 1024


def sparse(path: Path, size: int = 3 * 1024 * MEBIBYTE) -> Path:
    """A file of 3 GiB that holds a few bytes in its middle."""
    with path.open("wb") as file:
        file.seek(100 * MEBIBYTE)
        file.write(b"middle")
        file.truncate(size)
    return path


def test_copy_of_a_sparse_file_has_its_bytes_size_mode_and_holes(tmp_path: Path) -> None:
    source = sparse(tmp_path / "source")
    source.chmod(0o640)

    copy_file(source, tmp_path / "copy")

    made = (tmp_path / "copy").stat()
    assert (made.st_size, made.st_mode) == (3 * 1024 * MEBIBYTE, source.stat().st_mode)
    assert allocated_bytes(made) == allocated_bytes(source.stat()) < MEBIBYTE
    with (tmp_path / "copy").open("rb") as file:
        assert os.pread(file.fileno(), 8, 100 * MEBIBYTE - 1) == b"\0middle\0"
        assert data_bytes(file.fileno(), 0, made.st_size) == allocated_bytes(made)
        assert data_bytes(file.fileno(), 200 * MEBIBYTE, made.st_size) == 0


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5, os.urandom(3 * MEBIBYTE + 7)])
def test_copy_of_any_file_has_its_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "copy").write_bytes(b"longer than it, and there already" * 1000)

    copy_file(tmp_path / "source", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == content


def test_copy_follows_no_link_and_tells_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")

    with pytest.raises(OSError, match="link"):
        copy_file(tmp_path / "link", tmp_path / "copy")
    with pytest.raises(FileNotFoundError):
        copy_tree(tmp_path / "nothing", tmp_path / "copy")


def test_copy_of_a_folder_has_its_regular_files_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("x")
    (source / "link").symlink_to("/etc/hostname")
    (source / "folder").symlink_to("/etc")
    os.mkfifo(source / "pipe")

    assert copy_tree(source, tmp_path / "copy") == 1

    assert [path.name for path in sorted((tmp_path / "copy").rglob("*"))] == ["deep", "file"]


def test_copy_that_is_told_to_stop_stops(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    stop = threading.Event()
    stop.set()

    with pytest.raises(CopyStoppedError):
        copy_file(tmp_path / "source", tmp_path / "copy", stop=stop)


def test_zeros_that_are_written_become_holes_and_read_as_zeros(tmp_path: Path) -> None:
    pieces = [b"begin", bytes(10 * MEBIBYTE), os.urandom(MEBIBYTE), bytes(10 * MEBIBYTE + 3)]

    with HolesWriter(tmp_path / "made", "w") as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
        assert file.finish() == sum(map(len, pieces))

    assert (tmp_path / "made").read_bytes() == b"".join(pieces)
    assert allocated_bytes((tmp_path / "made").stat()) < 2 * MEBIBYTE


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/x")


def wrapped(error: Exception) -> Exception:
    try:
        raise SourceError("The code cannot be unpacked.") from error
    except SourceError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (wrapped(FULL), True),
        (InfrastructureError("uv says: error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("space"), False),
    ],
)
def test_full_disk_is_known_by_the_error_or_what_led_to_it(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full


@pytest.mark.parametrize("error", [FULL, wrapped(FULL)])
def test_full_disk_is_the_machines_fault_whatever_failed_over_it(error: Exception) -> None:
    outcome = outcome_of_error(error, Phase.AGENT)
    assert (outcome.state, outcome.cause) == (ItemState.CRASHED, Cause.CRASHED)
    assert outcome.message.startswith("[agent] No space left on device: ")
    assert "prefect-launch agent clean" in outcome.message
    assert diagnose(outcome, None, error, []) is Category.DISK_FULL


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (wrapped(FULL), "the disk of the machine that builds is full."),
        (InfrastructureError("write /x: no space left on device"), "the disk of the Docker Engine at unix:///nobody"),
    ],
)
async def test_full_disk_of_a_build_is_a_failed_build_that_tells_whose_disk_it_is(error: Exception, whose: str) -> None:
    engine = BuildEngine("unix:///nobody.sock")
    with pytest.raises(BuildDiskError) as told:
        async with explaining_full_disks(engine), explaining_full_disks(engine):
            raise error
    outcome = outcome_of_error(told.value, Phase.BUILD)
    assert (outcome.state, outcome.cause) == (ItemState.FAILED, Cause.CRASHED)
    assert outcome.message.startswith(f"[build] No space left on device: {whose}")
    assert outcome.message.count("Free space there") == 1
    assert str(error) in outcome.message
    assert diagnose(outcome, None, told.value, []) is Category.DISK_FULL


@pytest.mark.parametrize("error", [RegistryError("500: no space left on device"), BuildError("exit code 1")])
async def test_what_is_no_full_disk_of_a_build_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as told:
        async with explaining_full_disks(BuildEngine("unix:///nobody.sock")):
            raise error
    assert told.value is error


def test_process_that_a_full_disk_kept_from_starting_says_so() -> None:
    end = ExitStatus(exit_code=None, error="it was never started: no space left on device.")
    assert diagnose(outcome_of_exit(end), end, None, []) is Category.DISK_FULL


def test_room_is_seen(tmp_path: Path) -> None:
    assert has_room(tmp_path)


async def test_log_is_sent_when_it_cannot_be_noted_how_far(tmp_path: Path) -> None:
    server, item = InMemoryServer(), uuid4()
    (tmp_path / "job.log").write_text("one\ntwo\n")
    (tmp_path / "log-sent.part").mkdir()  # what is written there fails
    await LogShipper(server, item, tmp_path / "job.log").finish()
    assert [record.message for record in await server.read_logs(item)] == ["one\ntwo"]


async def test_copier_that_finds_no_room_goes_on_where_the_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([False, False, True, True, False])
    append = CopiedLog.append

    def append_or_refuse(copied: CopiedLog, content: bytes, is_error: bool) -> None:
        if next(refusals, False):
            append(copied, content[:2], is_error)  # a part of it came through
            raise FULL
        append(copied, content, is_error)

    monkeypatch.setattr(CopiedLog, "append", append_or_refuse)
    lines = tuple(f"line {number}\n".encode() for number in range(9))
    engine = InMemoryEngine(InMemoryDocker(lambda config: Script(log=lines), images={"i": {}}))
    container = await engine.create("c", {"Image": "i", "Labels": {}})
    await engine.start(container)
    await engine.ended(container)
    log = tmp_path / "job.log"
    copier = engine_logs.LogCopier(engine, container, log)
    assert [copier._copy(follow=False) for _ in range(2)] == [False, False]
    assert "No space left on device" in str(copier.problem)
    copier.start()
    copier.finish(5)
    assert copier.problem is None
    assert log.read_bytes() == b"".join(lines)
