"""What goes into a build, and its digest."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from prefect_launch.builds.context import BuildContext, merge, read_context
from prefect_launch.errors import SourceError

GIGABYTE = 1024**3


def folder(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(context: BuildContext) -> list[str]:
    return [entry.name for entry in context.entries]


def test_same_content_has_the_same_digest_whatever_its_times_and_owners(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", a="1", b__c="2"), folder(tmp_path / "two", b__c="2", a="1")
    os.utime(two / "a", (0, 0))
    (two / "a").chmod(0o600)
    assert read_context(one, limit=GIGABYTE).digest == read_context(two, limit=GIGABYTE).digest


@pytest.mark.parametrize("change", ["content", "name", "mode", "link", "empty folder"])
def test_every_change_that_an_image_would_show_changes_the_digest(tmp_path: Path, change: str) -> None:
    root = folder(tmp_path / "code", a="1")
    before = read_context(root, limit=GIGABYTE).digest
    if change == "content":
        (root / "a").write_text("2")
    elif change == "name":
        (root / "a").rename(root / "b")
    elif change == "mode":
        (root / "a").chmod(0o755)
    elif change == "link":
        (root / "l").symlink_to("a")
    else:
        (root / "empty").mkdir()
    assert read_context(root, limit=GIGABYTE).digest != before


def test_repository_caches_and_what_dockerignore_says_stay_out(tmp_path: Path) -> None:
    root = folder(tmp_path, main="1", data__big="2", data__keep="3", x__y__z="4")
    folder(root, **{".git__config": "5", "wandb__run": "6", ".venv__bin": "7"})
    (root / ".dockerignore").write_text("# data\ndata/*\n!data/keep\nmain\n")
    assert names(read_context(root, limit=GIGABYTE)) == [".dockerignore", "data/keep", "x/y/z"]
    assert "main" in names(read_context(root, limit=GIGABYTE, keep=["main"]))


def test_context_above_the_limit_is_refused_with_its_ten_largest_entries(tmp_path: Path) -> None:
    root = folder(tmp_path, **{f"file{number:02}": "x" * (100 + number) for number in range(12)})
    folder(root, data__one="x" * 5_000, data__two="x" * 5_000)
    with pytest.raises(SourceError, match="context_limit") as refused:
        read_context(root, limit=1_000)
    said = str(refused.value)
    assert "data/ (10,000 bytes), file11 (111 bytes)" in said
    assert "file03" in said
    assert "file02" not in said


def test_archive_holds_what_was_listed_and_is_always_the_same(tmp_path: Path) -> None:
    root = folder(tmp_path, a="1", b__c="2")
    (root / "b/c").chmod(0o700)
    (root / "link").symlink_to("a")
    context = merge(read_context(root, limit=GIGABYTE, prefix="code/"), BuildContext().plus({"Dockerfile": b"FROM x"}))
    packed, again = io.BytesIO(), io.BytesIO()
    context.write(packed)
    context.write(again)
    assert packed.getvalue() == again.getvalue()
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        members = {member.name: member for member in archive}
        assert sorted(members) == ["Dockerfile", "code/a", "code/b/c", "code/link"]
        assert (members["code/a"].mode, members["code/b/c"].mode) == (0o644, 0o755)
        assert members["code/link"].linkname == "a"


def test_pipe_in_the_code_is_no_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert names(read_context(tmp_path, limit=GIGABYTE)) == []
