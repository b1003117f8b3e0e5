"""Archives of a run's code for clusters: what they hold, and that the same code gives the same bytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_launch.runners.remote.code import write_tar, write_zip


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with what belongs to a job's code, and what never does."""
    folder = tmp_path / "code"
    for name in ("train.py", "deep/run.sh", "deep/.git/config", "wandb/run.log", "__pycache__/a.pyc", ".venv/bin/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "deep" / "run.sh").chmod(0o700)
    (folder / "empty").mkdir()
    (tmp_path / "agents-own").mkdir()
    (tmp_path / "agents-own" / "key").write_text("secret")
    (folder / "key").symlink_to(tmp_path / "agents-own" / "key")
    (folder / "out").symlink_to("../agents-own")
    (folder / "again.py").symlink_to("train.py")
    (folder / "same").symlink_to("deep")
    (folder / "deep" / "up").symlink_to("..")
    (folder / "broken").symlink_to("nothing")
    os.mkfifo(folder / "pipe")
    os.link(folder / "train.py", folder / "twice.py")
    return folder


def tar_of(folder: Path, mode_bits: int = 0) -> bytes:
    packed = io.BytesIO()
    write_tar(folder, packed, extra={"more.txt": b"more"}, mode_bits=mode_bits)
    return packed.getvalue()


def zip_of(folder: Path) -> bytes:
    packed = io.BytesIO()
    write_zip(folder, packed, extra={"more.txt": b"more"})
    return packed.getvalue()


def test_tar_holds_the_code_and_its_inner_links_and_nothing_else(code: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of(code))) as tar:
        found = {one.name: one for one in tar}
        assert tar.extractfile("twice.py").read() == b"train.py"  # type: ignore[union-attr]
    links = {name: one.linkname for name, one in found.items() if one.issym()}
    assert links == {"again.py": "train.py", "same": "deep", "deep/up": "..", "broken": "nothing"}
    assert {name for name, one in found.items() if one.isreg()} == {"train.py", "twice.py", "deep/run.sh", "more.txt"}
    assert {name for name, one in found.items() if one.isdir()} == {"deep", "empty"}
    assert found["deep/run.sh"].mode & 0o777 == 0o700


def test_zip_follows_the_inner_links_and_holds_nothing_else(code: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(zip_of(code))) as archive:
        names = archive.namelist()
        assert names == ["again.py", "same/run.sh", "train.py", "twice.py", "deep/run.sh", "more.txt"]
        assert archive.read("same/run.sh") == b"deep/run.sh"
        assert archive.getinfo("deep/run.sh").external_attr >> 16 & 0o777 == 0o755


@pytest.mark.parametrize("packed", [tar_of, zip_of])
def test_same_code_gives_the_same_bytes_wherever_and_whenever_it_was_unpacked(
    code: Path, tmp_path: Path, packed: Callable[[Path], bytes]
) -> None:
    (code / "pipe").unlink()
    shutil.copytree(code, tmp_path / "other", symlinks=True, copy_function=shutil.copy)
    assert packed(code) == packed(tmp_path / "other")


def test_modes_are_opened_for_any_user_where_that_is_asked_for(code: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of(code, 0o666))) as tar:
        modes = {one.name: one.mode & 0o777 for one in tar if not one.issym()}
    assert (modes["deep/run.sh"], modes["deep"], modes["more.txt"]) == (0o766, 0o777, 0o666)
