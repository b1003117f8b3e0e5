"""Packing code: what is taken, what is refused, and that the same files give the same bytes."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from prefect_launch.errors import SourceError
from prefect_launch.jobs import archive
from prefect_launch.jobs.archive import pack, taken_in


def _write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _members(content: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: member for member in tar}


async def test_same_files_give_the_same_bytes_whenever_and_wherever(code: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("requirements.txt", "main.py"):
        (copy / name).write_bytes((code / name).read_bytes())
        os.utime(copy / name, (1, 1))
    (copy / "main.py").chmod(0o600)

    assert (await pack(code)).content == (await pack(copy)).content


async def test_executable_bit_is_kept_and_other_modes_are_not(code: Path) -> None:
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o700)
    (code / "main.py").chmod(0o666)

    packed = _members((await pack(code)).content)

    assert {name: oct(member.mode) for name, member in packed.items()} == {
        "main.py": "0o644",
        "requirements.txt": "0o644",
        "run.sh": "0o755",
    }


async def test_repository_run_data_caches_and_environments_are_never_taken(code: Path) -> None:
    for folder in (".git", "wandb", "__pycache__", ".venv", "src/__pycache__"):
        (code / folder).mkdir(parents=True)
        (code / folder / "file.py").write_text("")

    assert (await pack(code)).paths == ("main.py", "requirements.txt")


async def test_ignore_files_keep_files_out_at_every_depth(code: Path) -> None:
    _write(code, data__big="", data__keep__x="", src__a="", src__b="", src__deep__b="", notes="")
    (code / ".gitignore").write_text("/data/*\n!/data/keep\nnotes\n")
    (code / "src" / ".launchignore").write_text("b\n")

    packed = (await pack(code)).paths

    assert packed == (".gitignore", "data/keep/x", "main.py", "requirements.txt", "src/.launchignore", "src/a")
    (code / "src" / "__pycache__").mkdir()
    (code / "src" / "__pycache__" / "x").write_text("")
    there = [path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()]
    assert tuple(sorted(filter(taken_in(code), there))) == packed, "a path is asked for as the folder is gone through"


async def test_launchignore_brings_back_what_gitignore_leaves_out(code: Path) -> None:
    _write(code, weights="", other="")
    (code / ".gitignore").write_text("weights\nother\n")
    (code / ".launchignore").write_text("!weights\n")

    packed = (await pack(code)).paths

    assert "weights" in packed
    assert "other" not in packed


async def test_link_inside_the_folder_stays_a_link(code: Path) -> None:
    (code / "entry.py").symlink_to("main.py")

    packed = _members((await pack(code)).content)

    assert packed["entry.py"].linkname == "main.py"


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "sub/../../secret"])
async def test_link_that_leaves_the_folder_is_refused_with_its_target(code: Path, target: str) -> None:
    (code / "sub").mkdir()
    (code / "leak").symlink_to(target)

    with pytest.raises(SourceError, match=r"The link 'leak' .* leaves it: it points to .*launchignore") as refused:
        await pack(code)
    assert repr(target) in str(refused.value)


async def test_link_that_leaves_through_another_link_is_refused(code: Path) -> None:
    (code / "a" / "b").mkdir(parents=True)
    (code / "short").symlink_to("a/b")
    (code / "leak").symlink_to("short/../../../secret")

    with pytest.raises(SourceError, match="The link 'leak'"):
        await pack(code)


async def test_link_that_leaves_but_is_ignored_does_no_harm(code: Path) -> None:
    (code / "leak").symlink_to("/etc/passwd")
    (code / ".launchignore").write_text("leak\n")

    assert "leak" not in (await pack(code)).paths


async def test_socket_in_the_folder_is_refused_by_name(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("ipc")

        with pytest.raises(SourceError, match=r"'ipc' in the code folder .* is no file"):
            await pack(code)


async def test_empty_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")

    with pytest.raises(SourceError, match="no files that belong to a job"):
        await pack(tmp_path)


async def test_too_large_a_folder_is_refused_naming_its_largest_files(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 10_000)
    (code / "data.bin").write_bytes(os.urandom(3_000_000))

    with pytest.raises(SourceError, match=r"The largest files: data.bin \(3,000,000 bytes\)"):
        await pack(code)
