"""Branches, tags and commits of a real repository: found, fetched, and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefect_launch.errors import InfrastructureError, NotFoundError, OperatorError, SourceError
from prefect_launch.sources.fetch import GitCheckout
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.git_info import resolve_commit
from tests.support.git_repository import Repository

GIT = Git(allowed_protocols=("file",))


async def test_default_branch_branch_tag_and_commit_give_the_full_commit(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "light")
    repository.git("tag", "--annotate", "--message", "x", "heavy")
    second = repository.commit(main="print('two')")
    repository.git("branch", "feature/x", first)

    for ref, commit in (
        (None, second),
        ("main", second),
        ("origin/main", second),
        ("refs/heads/main", second),
        ("feature/x", first),
        ("light", first),
        ("heavy", first),
        (first, first),
        (first[:9], first),
    ):
        assert await resolve_commit(GIT, repository.url, ref) == commit, ref


async def test_commit_that_no_branch_or_tag_points_to_is_found(repository: Repository) -> None:
    middle = repository.commit(main="print('two')")
    repository.commit(main="print('three')")

    assert await resolve_commit(GIT, repository.url, middle) == middle
    assert await resolve_commit(GIT, repository.url, middle[:10].upper()) == middle


async def test_unknown_branch_or_commit_is_refused_with_the_nearest(repository: Repository) -> None:
    for ref in ("mian", "0" * 40, "deadbeef", "--upload-pack=x", "a..b"):
        with pytest.raises(NotFoundError, match="Unknown branch, tag or commit"):
            await resolve_commit(GIT, repository.url, ref)
    with pytest.raises(NotFoundError, match="Did you mean 'main'"):
        await resolve_commit(GIT, repository.url, "mian")


async def test_repository_without_a_default_branch_asks_for_a_name(tmp_path: Path) -> None:
    empty = Repository(tmp_path / "empty")

    with pytest.raises(SourceError, match="Unable to determine branch or commit"):
        await resolve_commit(GIT, empty.url, None)


async def test_git_itself_refuses_protocols_that_are_not_allowed(repository: Repository) -> None:
    with pytest.raises(SourceError, match="transport 'file' not allowed"):
        await resolve_commit(Git(), repository.url, None)


async def test_remote_that_is_gone_is_refused_with_gits_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'git ls-remote' of file:\S+ failed: .* not appear to be a git repo"):
        await resolve_commit(GIT, f"file://{tmp_path}/gone", None)


async def test_host_that_cannot_be_reached_is_the_infrastructures_fault() -> None:
    with pytest.raises(InfrastructureError, match="Look at the network"):
        await resolve_commit(Git(), "https://127.0.0.1:1/team/digits", None)


async def test_missing_git_is_told_to_the_machines_operator(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(OperatorError, match="Install git"):
        await resolve_commit(GIT, repository.url, None)


async def test_git_that_is_given_up_has_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "git"
    program.write_text(
        "#!/bin/sh\necho 'no answer from https://me:hunter2@git.example, retrying' >&2\nexec sleep 300\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InfrastructureError, match=r"took more than 0\.5 s: no answer from .*, retrying\. Look") as late:
        await GIT.run("fetch", cwd=tmp_path, timeout=0.5)
    assert "hunter2" not in str(late.value)


async def test_folder_that_git_cannot_enter_is_reported_and_no_other_one_is_asked(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.path)
    (tmp_path / "file").write_text("")

    for folder in (tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(OperatorError, match=f"git cannot be run in {folder}: "):
            await GIT.run("rev-parse", "HEAD", cwd=folder)


async def test_one_commit_is_checked_out_without_history(repository: Repository, tmp_path: Path) -> None:
    second = repository.commit(main="print('two')")
    repository.commit(main="print('three')")

    await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, second, tmp_path / "code")

    assert (tmp_path / "code" / "main.py").read_text() == "print('two')"
    assert await GIT.run("rev-list", "--all", "--count", cwd=tmp_path / "code") == "1\n"
    assert sorted(os.listdir(tmp_path)) == ["code", "home", "remote"]


async def test_submodules_come_along(repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.commit(lib="x = 1")
    repository.git("submodule", "--quiet", "add", inner.url, "inner")
    commit = repository.commit()

    await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")

    assert (tmp_path / "code" / "inner" / "lib.py").read_text() == "x = 1"


async def test_hooks_of_the_machines_templates_do_not_run(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path / "template"))

    commit = repository.git("rev-parse", "HEAD")
    await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")

    assert "ran" not in os.listdir(tmp_path)


async def test_commit_that_is_gone_is_refused_and_nothing_is_left(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, "1" * 40, tmp_path / "code")

    assert sorted(os.listdir(tmp_path)) == ["home", "remote"]


@pytest.mark.parametrize(
    "variable",
    ["GIT_DIR", "GIT_COMMON_DIR", "GIT_CONFIG_PARAMETERS", "GIT_OBJECT_DIRECTORY", "GIT_QUARANTINE_PATH"],
)
async def test_git_started_inside_another_repository_uses_its_own(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "other.git"))
    commit = await resolve_commit(GIT, repository.url, None)

    await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")

    assert sorted(os.listdir(tmp_path)) == ["code", "home", "remote"]
