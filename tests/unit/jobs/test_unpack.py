"""Unpacking what a stranger may have made: refused whole, with nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from prefect_launch.errors import ArtifactError, InfrastructureError
from prefect_launch.jobs import archive as unpacking
from prefect_launch.jobs.archive import pack, unpack


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


def _archive(*members: tarfile.TarInfo) -> tuple[bytes, str]:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer:
        for member in members:
            writer.addfile(member, io.BytesIO(b"x" * member.size))
    return gzip.compress(tar.getvalue()), f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"


async def _unpack(folder: Path, *members: tarfile.TarInfo) -> None:
    content, digest = _archive(*members)
    await unpack(content, folder, content_digest=digest, job="team/demo/train:v0")


async def test_what_was_packed_comes_out_with_links_and_executable_bits(code: Path, tmp_path: Path) -> None:
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o755)
    (code / "entry.py").symlink_to("main.py")
    packed = await pack(code)

    await unpack(packed.content, tmp_path / "out", content_digest=packed.content_digest, job="train")

    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o111
    assert (tmp_path / "out" / "entry.py").readlink() == Path("main.py")
    assert (tmp_path / "out" / "main.py").read_text() == "print('hello')\n"


@pytest.mark.parametrize("has_filter", [True, False])
async def test_owners_and_special_bits_of_an_archive_are_dropped_on_any_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_filter: bool
) -> None:
    if not has_filter:  # As on Debian 12's own Python 3.11.2.
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    member = _member("run.sh", size=1)
    member.mode, member.uid, member.gid, member.uname = 0o6777, 12345, 12345, "nobody"

    await _unpack(tmp_path / "out", member)

    about = (tmp_path / "out" / "run.sh").stat()
    assert (about.st_mode & 0o7777, about.st_uid, about.st_gid) == (0o755, os.getuid(), os.getgid())


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (_member("/etc/cron.d/job"), "would be written outside"),
        (_member("../outside"), "would be written outside"),
        (_member("a/../../outside"), "would be written outside"),
        (_member("leak", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
        (_member("a/leak", tarfile.SYMTYPE, "../../outside"), "is a link to"),
        (_member("hard", tarfile.LNKTYPE, "/etc/passwd"), "is neither a file"),
        (_member("device", tarfile.CHRTYPE), "is neither a file"),
        (_member("pipe", tarfile.FIFOTYPE), "is neither a file"),
    ],
)
async def test_member_that_reaches_outside_is_refused_and_nothing_is_left(
    tmp_path: Path, member: tarfile.TarInfo, reason: str
) -> None:
    with pytest.raises(ArtifactError, match=reason):
        await _unpack(tmp_path / "out" / "code", _member("main.py"), member)

    assert os.listdir(tmp_path / "out") == []


async def test_member_below_a_link_is_refused(tmp_path: Path) -> None:
    members = [_member("inner"), _member("d", tarfile.SYMTYPE, "inner"), _member("d/file", size=3)]

    with pytest.raises(ArtifactError, match="through a link"):
        await _unpack(tmp_path / "out", *members)


async def test_file_that_takes_the_place_of_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="through a link"):
        await _unpack(tmp_path / "out", _member("d", tarfile.SYMTYPE, "x"), _member("d", size=3))


async def test_archive_with_another_content_than_the_job_names_is_refused(tmp_path: Path) -> None:
    content, _ = _archive(_member("main.py"))

    with pytest.raises(ArtifactError, match="another content than the job names"):
        await unpack(content, tmp_path / "out", content_digest=f"sha256:{'0' * 64}", job="train")


async def test_rubbish_and_half_a_gzip_are_refused(tmp_path: Path) -> None:
    content, digest = _archive(_member("main.py", size=5000))
    for bad in (b"rubbish", content[:-9], b""):
        with pytest.raises(ArtifactError):
            await unpack(bad, tmp_path / "out", content_digest=digest, job="train")
    assert os.listdir(tmp_path) == []


async def test_archive_that_grows_beyond_all_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 2_000_000)

    with pytest.raises(ArtifactError, match="more than 2,000,000 bytes"):
        await _unpack(tmp_path / "out", _member("zeros", size=5_000_000))
    assert os.listdir(tmp_path) == []


async def test_folder_in_use_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(InfrastructureError, match="in use"):
        await _unpack(tmp_path / "out", _member("main.py"))

    assert os.listdir(tmp_path / "out") == ["mine"]
    assert os.listdir(tmp_path) == ["out"]
