"""Sparse files keep their holes wherever they are copied."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from prefect_launch.core.filesystem import (
    CopyStoppedError,
    HolesWriter,
    allocated_bytes,
    copy_file,
    copy_tree,
    data_bytes,
)

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
